/* Loads, makes a picture, and fails in all ways: quiet MODEL_FOLDER NO_MODEL QUESTION.
 *
 * Writes nothing, and ends with the number of a line of this file where something went as it should not. */
#include <stdlib.h>
#include <string.h>

#include "svdq.h"

#define IS(call, expected)       \
    do {                         \
        if ((call) != (expected)) \
            exit(__LINE__ % 256); \
    } while (0)

static unsigned char pixels[32 * 32 * 4];

int main(int argc, char **argv) {
    if (argc != 4)
        return 2;
    if (argv[3][0])
        (void)getenv(argv[3]);

    svdq_context *context = NULL, *none = NULL;
    svdq_context_params on_gpu = {.struct_size = sizeof on_gpu, .device_select = SVDQ_DEVICE_UUID};
    if (svdq_context_create(&on_gpu, &none) == SVDQ_OK || none)
        return 3;
    uint32_t count = 0;
    (void)svdq_device_count(&count);
    svdq_device_info device = {.struct_size = sizeof device};
    if (svdq_device_get_info(count, &device) == SVDQ_OK)
        return 4;
    svdq_context_params params = {.struct_size = sizeof params, .device_select = SVDQ_DEVICE_CPU};
    params.device_index = 9, params.threads = 2;
    IS(svdq_context_create(&params, &context), SVDQ_OK);

    svdq_source source = {.struct_size = sizeof source, .kind = SVDQ_SOURCE_PATH, .path = "/nowhere"};
    svdq_model_params load = {.struct_size = sizeof load, .source_count = 1, .sources = &source};
    svdq_model *model = NULL;
    IS(svdq_model_load(context, &load, &model), SVDQ_ERR_NOT_FOUND);
    source.path = argv[2];
    if (svdq_model_load(context, &load, &model) == SVDQ_OK)
        return 5;
    IS(svdq_model_load(NULL, &load, &model), SVDQ_ERR_INVALID_ARGUMENT);
    svdq_job *job = NULL;
    IS(svdq_job_submit_load(context, &load, &job), SVDQ_OK);
    if (svdq_job_wait(job, UINT32_MAX) == SVDQ_OK)
        return 6;
    svdq_job_release(job);
    source.path = argv[1];
    IS(svdq_model_load(context, &load, &model), SVDQ_OK);

    svdq_lora *lora = NULL;
    source.path = argv[2];
    IS(svdq_lora_load(model, &source, &lora), SVDQ_ERR_BAD_FORMAT);

    svdq_generate_params generate = {.struct_size = sizeof generate, .width = 31, .height = 32, .steps = 2};
    svdq_image image = {.struct_size = sizeof image, .format = SVDQ_FORMAT_RGBA8, .width = 32, .height = 32};
    generate.prompt = "a key";
    image.pixels = pixels;
    image.capacity = sizeof pixels;
    IS(svdq_generate(model, &generate, &image), SVDQ_ERR_INVALID_ARGUMENT);
    generate.width = 32;
    IS(svdq_generate(model, &generate, &image), SVDQ_OK);
    IS(svdq_job_submit(model, &generate, &job), SVDQ_OK);
    IS(svdq_job_cancel(job), SVDQ_OK);
    svdq_job_release(job);

    int32_t level = 1;
    char line[512] = "";
    while (level != 0)
        IS(svdq_context_read_log(context, &level, line, sizeof line, NULL), SVDQ_OK);
    IS(svdq_context_shutdown(context, UINT32_MAX), SVDQ_OK);
    IS(svdq_generate(model, &generate, &image), SVDQ_ERR_SHUTTING_DOWN);
    svdq_model_release(model);
    svdq_context_release(context);
    return 0;
}
