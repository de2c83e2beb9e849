/* Loads, uses and releases a model again and again: lifecycle MODEL_FOLDER ROUNDS.
 *
 * Releases the context once before and once after the model, and fails when memory grows from the
 * tenth round on or when a file of the model stays mapped. With PLANTED_LEAK the models are not
 * released, which the tools that look for leaks have to find. */
#include <dirent.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "svdq.h"

#define CHECK(call)                                                                     \
    do {                                                                                \
        svdq_result result_ = (call);                                                   \
        if (result_ != SVDQ_OK) {                                                       \
            char text_[512];                                                            \
            svdq_last_error(text_, sizeof text_, NULL);                                 \
            fprintf(stderr, "%s: %s: %s\n", #call, svdq_result_name(result_), text_);   \
            exit(1);                                                                    \
        }                                                                               \
    } while (0)

static unsigned char pixels[16 * 16 * 4];

static void round_trip(const char *path, int context_first) {
    svdq_context_params context_params = {.struct_size = sizeof context_params};
    svdq_context *context = NULL;
    CHECK(svdq_context_params_init(&context_params));
    context_params.header_version = SVDQ_VERSION_NUMBER;
    CHECK(svdq_context_create(&context_params, &context));

    svdq_source source = {.struct_size = sizeof source, .kind = SVDQ_SOURCE_PATH, .path = path};
    svdq_model_params params = {.struct_size = sizeof params, .source_count = 1, .sources = &source};
    svdq_model *model = NULL;
    CHECK(svdq_model_load(context, &params, &model));
    if (context_first)
        svdq_context_release(context);

    svdq_generate_params generate = {.struct_size = sizeof generate, .width = 16, .height = 16, .steps = 1};
    svdq_image image = {.struct_size = sizeof image, .format = SVDQ_FORMAT_BGRA8, .width = 16, .height = 16};
    generate.prompt = "a key";
    image.pixels = pixels;
    image.capacity = sizeof pixels;
    CHECK(svdq_generate(model, &generate, &image));

    svdq_model *none = NULL;
    source.path = "/nowhere";
    if (!context_first && svdq_model_load(context, &params, &none) != SVDQ_ERR_NOT_FOUND)
        exit(1);
#ifndef PLANTED_LEAK
    svdq_model_release(model);
#endif
    if (!context_first)
        svdq_context_release(context);
}

/* 1 when a file of the folder is mapped into this process. */
static int mapped(const char *folder) {
    char line[4096];
    int found = 0;
    FILE *maps = fopen("/proc/self/maps", "r");
    while (maps && fgets(line, sizeof line, maps))
        found |= strstr(line, folder) != NULL;
    if (!maps || fclose(maps) != 0)
        exit(1);
    return found;
}

/* Waits for the library's threads, which end by themselves once nothing is held any more. */
static void threads_have_ended(void) {
    for (int tries = 0; tries < 5000; tries++) {
        int threads = 0;
        DIR *tasks = opendir("/proc/self/task");
        if (!tasks)
            exit(1);
        for (struct dirent *task; (task = readdir(tasks)) != NULL;)
            threads += task->d_name[0] != '.';
        closedir(tasks);
        if (threads == 1)
            return;
        usleep(1000);
    }
    fprintf(stderr, "a thread is left\n");
    exit(1);
}

int main(int argc, char **argv) {
    if (argc != 3)
        return 2;
    size_t before = 0;
    for (int round = 0, rounds = atoi(argv[2]); round < rounds; round++) {
        round_trip(argv[1], round % 2);
        threads_have_ended();
        struct mallinfo2 info = mallinfo2();
        /* By round 10 the caches that the process keeps are as large as they get. */
        if (round == 10)
            before = info.uordblks + info.hblkhd;
        else if (round > 10 && info.uordblks + info.hblkhd > before + 1024) {
            fprintf(stderr, "round %d: %zu bytes, %zu before\n", round, info.uordblks + info.hblkhd, before);
            return 1;
        }
        if (mapped(argv[1])) {
            fprintf(stderr, "round %d: a file of %s is still mapped\n", round, argv[1]);
            return 1;
        }
    }
    return 0;
}
