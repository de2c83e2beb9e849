/* frames.c: a sequence of pictures made during a game's frames, and what that costs a frame.
 *
 *   cc frames.c -lsvdq -o frames
 *   ./frames assets/demo 20 0.5
 *
 * The loop below is a game of 60 frames a second that shows picture after picture of one prompt. Every call into the
 * library is timed. The program fails when one of them takes longer than the limit, here 0.5 ms.
 */
#define _POSIX_C_SOURCE 200809L
#include <string.h>
#include <time.h>

#include "common.h"

#define FRAME_MS (1000.0 / 60)
#define MAX_CALLS 100000

static struct {
    const char *name;
    double ms;
} calls[MAX_CALLS];
static size_t call_count;

static double now_ms(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec * 1e3 + (double)time.tv_nsec / 1e6;
}

/* Makes a call, which has to succeed, and notes how long the frame waited for it. */
#define TIMED(function, ...)                         \
    do {                                             \
        double start_ = now_ms();                    \
        svdq_result result_ = function(__VA_ARGS__); \
        note(#function, now_ms() - start_);          \
        check(result_, #function);                   \
    } while (0)

static void note(const char *name, double ms) {
    if (call_count < MAX_CALLS) {
        calls[call_count].name = name;
        calls[call_count++].ms = ms;
    }
}

static int by_ms(const void *a, const void *b) {
    double left = *(const double *)a, right = *(const double *)b;
    return (left > right) - (left < right);
}

/* Prints percentiles of a function's calls in microseconds, and returns the longest in milliseconds. */
static double report(const char *name) {
    static double sorted[MAX_CALLS];
    size_t count = 0;
    for (size_t i = 0; i < call_count; i++)
        if (strcmp(calls[i].name, name) == 0)
            sorted[count++] = calls[i].ms;
    if (count == 0)
        return 0;
    qsort(sorted, count, sizeof sorted[0], by_ms);
    printf("%-20s %6zu %9.1f %9.1f %9.1f\n", name, count, sorted[count / 2] * 1e3, sorted[count * 99 / 100] * 1e3,
           sorted[count - 1] * 1e3);
    return sorted[count - 1];
}

/* Sleeps until the next frame begins, as waiting for the display does. */
static void wait_until(double ms) {
    double left = ms - now_ms();
    if (left > 0) {
        struct timespec time = {0, (long)(left * 1e6)};
        nanosleep(&time, NULL);
    }
}

/* Plays until `pictures` were shown; returns the number of frames. */
static unsigned play(svdq_model *model, const char *prompt, unsigned pictures) {
    svdq_generate_params params = {.struct_size = sizeof params};
    CHECK(svdq_generate_params_init(model, &params));
    params.steps = 8;
    params.prompt = prompt;
    svdq_image texture = new_image(SVDQ_FORMAT_BGRA8, params.width, params.height);
    svdq_job_status status = {.struct_size = sizeof status};
    svdq_job *job = NULL;
    unsigned frames = 0;
    double next = now_ms();
    for (unsigned shown = 0; shown < pictures; frames++) {
        if (!job)
            TIMED(svdq_job_submit, model, &params, &job);
        TIMED(svdq_job_poll, job, &status);
        if (status.state == SVDQ_JOB_DONE) {
            TIMED(svdq_job_read_image, job, SVDQ_JOB_IMAGE, &texture);
            double start = now_ms();
            svdq_job_release(job);
            note("svdq_job_release", now_ms() - start);
            job = NULL;
            params.seed++;
            shown++;
        } else if (status.result != SVDQ_PENDING) {
            fprintf(stderr, "the job came to %s\n", svdq_result_name(status.result));
            exit(EXIT_FAILURE);
        }
        next += FRAME_MS;
        wait_until(next);
    }
    free(texture.pixels);
    return frames;
}

int main(int argc, char **argv) {
    if (argc < 3 || argc > 4 || atoi(argv[2]) < 1) {
        fprintf(stderr, "usage: %s MODEL_FOLDER PICTURES [LIMIT_MS]\n", argv[0]);
        return EXIT_FAILURE;
    }
    /* On the CPU: leave cores to the game. */
    svdq_context_params params = {.struct_size = sizeof params, .threads = 1};
    svdq_context *context = NULL;
    CHECK(svdq_context_create(&params, &context));
    svdq_model *model = load_folder(context, argv[1]);

    unsigned frames = play(model, "pixel art campfire", (unsigned)atoi(argv[2]));
    printf("%u frames at 60 Hz, %s pictures\n", frames, argv[2]);
    printf("%-20s %6s %9s %9s %9s\n", "microseconds", "calls", "median", "99%", "worst");
    const char *const names[] = {"svdq_job_submit", "svdq_job_poll", "svdq_job_read_image", "svdq_job_release"};
    double worst = 0;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        double longest = report(names[i]);
        worst = longest > worst ? longest : worst;
    }
    svdq_model_release(model);
    CHECK(svdq_context_shutdown(context, 10000));
    svdq_context_release(context);
    if (argc < 4 || worst <= atof(argv[3]))
        return EXIT_SUCCESS;
    fprintf(stderr, "a frame waited %.3f ms for a call\n", worst);
    return EXIT_FAILURE;
}
