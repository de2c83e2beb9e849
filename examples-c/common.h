/* common.h: what the examples share. */
#ifndef COMMON_H
#define COMMON_H

#include <stdio.h>
#include <stdlib.h>

#include "svdq.h"

/* Ends the program when a call failed, and says why. A game would show a message instead. */
#define CHECK(call) check((call), #call)

static inline void check(svdq_result result, const char *call) {
    if (result == SVDQ_OK)
        return;
    char text[512];
    svdq_last_error(text, sizeof text, NULL);
    fprintf(stderr, "%s: %s: %s\n", call, svdq_result_name(result), text);
    exit(EXIT_FAILURE);
}

/* The model in a folder. */
static inline svdq_model *load_folder(svdq_context *context, const char *path) {
    svdq_source source = {.struct_size = sizeof source, .kind = SVDQ_SOURCE_PATH, .path = path};
    svdq_model_params params = {.struct_size = sizeof params, .source_count = 1, .sources = &source};
    svdq_model *model = NULL;
    CHECK(svdq_model_load(context, &params, &model));
    return model;
}

/* An image of this size in memory that free(image.pixels) gives back. */
static inline svdq_image new_image(uint32_t format, uint32_t width, uint32_t height) {
    svdq_image image = {.struct_size = sizeof image, .format = format, .width = width, .height = height};
    CHECK(svdq_image_bytes(&image, &image.capacity));
    image.pixels = malloc((size_t)image.capacity);
    return image;
}

/* Writes an image of SVDQ_FORMAT_RGB8. */
static inline void write_ppm(const char *path, const svdq_image *image) {
    FILE *file = fopen(path, "wb");
    if (file) {
        fprintf(file, "P6\n%u %u\n255\n", (unsigned)image->width, (unsigned)image->height);
        size_t written = fwrite(image->pixels, (size_t)image->capacity, 1, file);
        if (fclose(file) == 0 && written == 1)
            return;
    }
    perror(path);
    exit(EXIT_FAILURE);
}

#endif
