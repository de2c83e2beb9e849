/* async.c: loads and generates in the background, shows progress and previews; Ctrl-C cancels.
 *
 *   cc async.c -lsvdq -o async
 *   ./async assets/demo "pixel art blue potion" potion.ppm
 *
 * While it runs, previews are in potion.ppm.preview.ppm.
 */
#include <signal.h>

#include "common.h"

static volatile sig_atomic_t interrupted;

static void on_interrupt(int number) {
    (void)number;
    interrupted = 1;
}

static const char *phase_name(uint32_t phase) {
    static const char *const names[] = {"waiting", "loading", "encoding", "denoising", "decoding"};
    return phase < sizeof names / sizeof names[0] ? names[phase] : "working";
}

static void save_preview(const svdq_job *job, const svdq_job_status *status, const char *path) {
    char name[1024];
    snprintf(name, sizeof name, "%s.preview.ppm", path);
    svdq_image preview = new_image(SVDQ_FORMAT_RGB8, status->preview_width, status->preview_height);
    CHECK(svdq_job_read_image(job, SVDQ_JOB_PREVIEW, &preview));
    write_ppm(name, &preview);
    free(preview.pixels);
}

/* Follows a job to its end. 1: it is done. 0: it was cancelled. */
static int follow(svdq_job *job, const char *path) {
    svdq_job_status status = {.struct_size = sizeof status};
    uint32_t previews = 0;
    do {
        /* A game draws a frame here; this program has nothing else to do. The result is in status too. */
        svdq_job_wait(job, 16);
        CHECK(svdq_job_poll(job, &status));
        const char *phase = status.state == SVDQ_JOB_DONE ? "done" : phase_name(status.phase);
        fprintf(stderr, "\r%-9s %3.0f%%", phase, (double)status.fraction * 100);
        if (status.preview_serial != previews) {
            previews = status.preview_serial;
            save_preview(job, &status, path);
        }
        if (interrupted)
            CHECK(svdq_job_cancel(job));
    } while (status.result == SVDQ_PENDING);
    fprintf(stderr, "\n");

    if (status.state == SVDQ_JOB_FAILED) {
        char text[512];
        CHECK(svdq_job_error(job, text, sizeof text, NULL));
        fprintf(stderr, "%s: %s\n", svdq_result_name(status.result), text);
        exit(EXIT_FAILURE);
    }
    return status.state == SVDQ_JOB_DONE;
}

/* The model, or NULL when the user lost patience. */
static svdq_model *load(svdq_context *context, const char *folder, const char *path) {
    svdq_source source = {.struct_size = sizeof source, .kind = SVDQ_SOURCE_PATH, .path = folder};
    svdq_model_params params = {.struct_size = sizeof params, .source_count = 1, .sources = &source};
    svdq_job *job = NULL;
    svdq_model *model = NULL;
    CHECK(svdq_job_submit_load(context, &params, &job));
    if (follow(job, path))
        CHECK(svdq_job_take_model(job, &model));
    svdq_job_release(job);
    return model;
}

static int generate(svdq_model *model, const char *prompt, const char *path) {
    svdq_generate_params params = {.struct_size = sizeof params};
    CHECK(svdq_generate_params_init(model, &params));
    params.prompt = prompt;
    params.seed = 42;
    params.preview_every = 4;
    svdq_job *job = NULL;
    CHECK(svdq_job_submit(model, &params, &job));
    int done = follow(job, path);
    if (done) {
        svdq_image image = new_image(SVDQ_FORMAT_RGB8, params.width, params.height);
        CHECK(svdq_job_read_image(job, SVDQ_JOB_IMAGE, &image));
        write_ppm(path, &image);
        free(image.pixels);
    }
    svdq_job_release(job);
    return done;
}

int main(int argc, char **argv) {
    if (argc != 4) {
        fprintf(stderr, "usage: %s MODEL_FOLDER PROMPT OUT.ppm\n", argv[0]);
        return EXIT_FAILURE;
    }
    signal(SIGINT, on_interrupt);
    svdq_context *context = NULL;
    CHECK(svdq_context_create(NULL, &context));
    svdq_model *model = load(context, argv[1], argv[3]);
    int done = model && generate(model, argv[2], argv[3]);
    svdq_model_release(model);

    /* After this no thread of the library's runs. */
    CHECK(svdq_context_shutdown(context, 10000));
    svdq_context_release(context);
    if (!done)
        fprintf(stderr, "cancelled\n");
    return done ? EXIT_SUCCESS : EXIT_FAILURE;
}
