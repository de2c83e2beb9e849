/* pak.c: a model out of a game's one big file, read by the library through a function of the game's.
 *
 *   cc pak.c -lsvdq -o pak
 *   (cd assets/demo && find *.json *.safetensors scheduler t* vae -type f | xargs ../../pak pack ../../demo.pak)
 *   ./pak demo.pak "pixel art blue potion" potion.ppm
 *
 * The format: "PAK1", the number of files in 32 bits, an entry for each file, then their bytes.
 */
#if !defined(_WIN32)
#  define _FILE_OFFSET_BITS 64
#  define _POSIX_C_SOURCE 200112L
#  define seek(file, offset) fseeko(file, (off_t)(offset), SEEK_SET)
#else
#  define seek(file, offset) _fseeki64(file, (long long)(offset), SEEK_SET)
#endif
#include <string.h>
#include <sys/types.h>

#include "common.h"

struct entry {
    char name[112]; /* as the folder of the model has it: "vae/config.json" */
    uint64_t offset;
    uint64_t size;
};

/* What the library hands back to read_at: a file of the pak. */
struct packed {
    FILE *pak;
    struct entry entry;
};

static void fail(const char *path) {
    perror(path);
    exit(EXIT_FAILURE);
}

static void pack(const char *path, char **names, uint32_t count) {
    struct entry *entries = calloc(count, sizeof *entries);
    FILE *pak = fopen(path, "wb");
    if (!entries || !pak || fwrite("PAK1", 4, 1, pak) != 1 || fwrite(&count, 4, 1, pak) != 1)
        fail(path);
    uint64_t end = 8 + count * sizeof *entries;
    for (uint32_t i = 0; i < count; i++) {
        static char buffer[1 << 16];
        FILE *file = fopen(names[i], "rb");
        size_t part;
        if (!file || strlen(names[i]) >= sizeof entries[i].name || seek(pak, end) != 0)
            fail(names[i]);
        strcpy(entries[i].name, names[i]);
        entries[i].offset = end;
        while ((part = fread(buffer, 1, sizeof buffer, file)) > 0) {
            if (fwrite(buffer, part, 1, pak) != 1)
                fail(path);
            end += part;
        }
        entries[i].size = end - entries[i].offset;
        fclose(file);
    }
    if (seek(pak, 8) != 0 || fwrite(entries, sizeof *entries, count, pak) != count || fclose(pak) != 0)
        fail(path);
    free(entries);
}

/* Called by the library while it loads, in the thread that loads, never twice at a time. */
static svdq_result read_at(void *user, uint64_t offset, void *to, size_t size) {
    const struct packed *file = user;
    if (seek(file->pak, file->entry.offset + offset) != 0)
        return SVDQ_ERR_IO;
    return fread(to, 1, size, file->pak) == size ? SVDQ_OK : SVDQ_ERR_IO;
}

static svdq_model *load(svdq_context *context, const char *path) {
    char magic[4];
    uint32_t count = 0;
    FILE *pak = fopen(path, "rb");
    if (!pak || fread(magic, 4, 1, pak) != 1 || fread(&count, 4, 1, pak) != 1)
        fail(path);
    if (memcmp(magic, "PAK1", 4) != 0 || count == 0 || count > 256) {
        fprintf(stderr, "%s: not a pak\n", path);
        exit(EXIT_FAILURE);
    }
    struct packed *files = calloc(count, sizeof *files);
    svdq_source *sources = calloc(count, sizeof *sources);
    for (uint32_t i = 0; files && sources && i < count; i++) {
        files[i].pak = pak;
        if (fread(&files[i].entry, sizeof files[i].entry, 1, pak) != 1)
            fail(path);
        files[i].entry.name[sizeof files[i].entry.name - 1] = '\0';
        sources[i].struct_size = sizeof sources[i];
        sources[i].kind = SVDQ_SOURCE_CALLBACKS;
        sources[i].path = files[i].entry.name;
        sources[i].size = files[i].entry.size;
        sources[i].read_at = read_at;
        sources[i].user = &files[i];
    }
    svdq_model_params params = {.struct_size = sizeof params, .source_count = count, .sources = sources};
    svdq_model *model = NULL;
    CHECK(svdq_model_load(context, &params, &model));
    /* Nothing of the pak is needed any more. */
    free(sources);
    free(files);
    fclose(pak);
    return model;
}

int main(int argc, char **argv) {
    if (argc > 3 && strcmp(argv[1], "pack") == 0) {
        pack(argv[2], argv + 3, (uint32_t)argc - 3);
        return EXIT_SUCCESS;
    }
    if (argc != 4) {
        fprintf(stderr, "usage: %s pack PAK FILE...\n       %s PAK PROMPT OUT.ppm\n", argv[0], argv[0]);
        return EXIT_FAILURE;
    }
    svdq_context *context = NULL;
    CHECK(svdq_context_create(NULL, &context));
    svdq_model *model = load(context, argv[1]);
    svdq_generate_params params = {.struct_size = sizeof params};
    CHECK(svdq_generate_params_init(model, &params));
    params.prompt = argv[2];
    params.seed = 42;
    svdq_image image = new_image(SVDQ_FORMAT_RGB8, params.width, params.height);
    CHECK(svdq_generate(model, &params, &image));
    write_ppm(argv[3], &image);
    free(image.pixels);
    svdq_model_release(model);
    svdq_context_release(context);
    return EXIT_SUCCESS;
}
