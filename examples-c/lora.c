/* lora.c: one prompt in several styles. LoRAs are loaded once and named by the pictures that use them, so that switching
 * costs nothing.
 *
 *   cc lora.c -lsvdq -o lora
 *   ./lora assets/demo "pixel art blue potion" potion assets/demo/lora/pocket-green.safetensors
 *
 * potion-0.ppm has no LoRA, potion-1.ppm the first, and so on; potion-mix.ppm has all of them at half their strength.
 */
#include "common.h"

#define MAX_LORAS 8

static void generate(svdq_model *model, const char *prompt, const svdq_lora_ref *loras, uint32_t count,
                     const char *path) {
    svdq_generate_params params = {.struct_size = sizeof params};
    CHECK(svdq_generate_params_init(model, &params));
    params.prompt = prompt;
    params.seed = 42;
    params.loras = loras;
    params.lora_count = count;
    svdq_image image = new_image(SVDQ_FORMAT_RGB8, params.width, params.height);
    CHECK(svdq_generate(model, &params, &image));
    write_ppm(path, &image);
    free(image.pixels);
}

int main(int argc, char **argv) {
    int count = argc - 4;
    if (count < 1 || count > MAX_LORAS) {
        fprintf(stderr, "usage: %s MODEL_FOLDER PROMPT OUT LORA.safetensors...\n", argv[0]);
        return EXIT_FAILURE;
    }
    svdq_context *context = NULL;
    CHECK(svdq_context_create(NULL, &context));
    svdq_model *model = load_folder(context, argv[1]);

    svdq_lora *loras[MAX_LORAS];
    svdq_lora_ref refs[MAX_LORAS];
    for (int i = 0; i < count; i++) {
        svdq_source file = {.struct_size = sizeof file, .kind = SVDQ_SOURCE_PATH, .path = argv[4 + i]};
        CHECK(svdq_lora_load(model, &file, &loras[i]));
        svdq_lora_info info = {.struct_size = sizeof info};
        CHECK(svdq_lora_get_info(loras[i], &info));
        printf("%s: rank %u, %u modules\n", argv[4 + i], (unsigned)info.rank, (unsigned)info.modules);
        refs[i] = (svdq_lora_ref){.struct_size = sizeof refs[i], .strength = 1.0f, .lora = loras[i]};
    }

    char path[1024];
    for (int i = 0; i <= count; i++) {
        snprintf(path, sizeof path, "%s-%d.ppm", argv[3], i);
        generate(model, argv[2], i == 0 ? NULL : &refs[i - 1], i == 0 ? 0 : 1, path);
    }
    for (int i = 0; i < count; i++)
        refs[i].strength = 0.5f;
    snprintf(path, sizeof path, "%s-mix.ppm", argv[3]);
    generate(model, argv[2], refs, (uint32_t)count, path);

    for (int i = 0; i < count; i++)
        svdq_lora_release(loras[i]);
    svdq_model_release(model);
    svdq_context_release(context);
    return EXIT_SUCCESS;
}
