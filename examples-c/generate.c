/* generate.c: a picture from a prompt, written as a PPM.
 *
 *   cc generate.c -lsvdq -o generate
 *   ./generate assets/demo "pixel art blue potion" potion.ppm
 */
#include <stdio.h>
#include <stdlib.h>

#include "svdq.h"

/* Says which call failed, and why. */
static int failed(const char *call, svdq_result result) {
    char text[512];
    svdq_last_error(text, sizeof text, NULL);
    fprintf(stderr, "%s: %s: %s\n", call, svdq_result_name(result), text);
    return EXIT_FAILURE;
}

static int write_ppm(const char *path, const svdq_image *image) {
    FILE *file = fopen(path, "wb");
    if (file) {
        fprintf(file, "P6\n%u %u\n255\n", (unsigned)image->width, (unsigned)image->height);
        size_t written = fwrite(image->pixels, (size_t)image->capacity, 1, file);
        if (fclose(file) == 0 && written == 1)
            return EXIT_SUCCESS;
    }
    perror(path);
    return EXIT_FAILURE;
}

/* Generates with the model's own size, steps and guidance. */
static int generate(svdq_model *model, const char *prompt, const char *path) {
    svdq_generate_params params = {.struct_size = sizeof params};
    svdq_result result = svdq_generate_params_init(model, &params);
    if (result != SVDQ_OK)
        return failed("svdq_generate_params_init", result);
    params.prompt = prompt;
    params.seed = 42;

    svdq_image image = {.struct_size = sizeof image, .format = SVDQ_FORMAT_RGB8};
    image.width = params.width;
    image.height = params.height;
    result = svdq_image_bytes(&image, &image.capacity);
    if (result != SVDQ_OK)
        return failed("svdq_image_bytes", result);
    image.pixels = malloc((size_t)image.capacity);
    result = svdq_generate(model, &params, &image);
    int status = result == SVDQ_OK ? write_ppm(path, &image) : failed("svdq_generate", result);
    free(image.pixels);
    return status;
}

int main(int argc, char **argv) {
    if (argc != 4) {
        fprintf(stderr, "usage: %s MODEL_FOLDER PROMPT OUT.ppm\n", argv[0]);
        return EXIT_FAILURE;
    }
    svdq_context *context = NULL;
    svdq_result result = svdq_context_create(NULL, &context);
    if (result != SVDQ_OK)
        return failed("svdq_context_create", result);

    svdq_source source = {.struct_size = sizeof source, .kind = SVDQ_SOURCE_PATH, .path = argv[1]};
    svdq_model_params params = {.struct_size = sizeof params, .source_count = 1, .sources = &source};
    svdq_model *model = NULL;
    result = svdq_model_load(context, &params, &model);
    svdq_context_release(context);
    if (result != SVDQ_OK)
        return failed("svdq_model_load", result);
    int status = generate(model, argv[2], argv[3]);
    svdq_model_release(model);
    return status;
}
