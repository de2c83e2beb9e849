// example.cpp: a picture from a prompt, made in the background, written as a PPM.
//
//   c++ -std=c++11 example.cpp $(pkg-config --cflags --libs svdq) -o example
//   ./example assets/demo "pixel art blue potion" potion.ppm
//
// Nothing in it depends on exceptions: with -fno-exceptions it is the same program.

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "svdq.hpp"

namespace {

// What a game does in each frame: ask how far the job is, and draw.
svdq::Result<void> wait_with_progress(const svdq::Job& job) {
    for (;;) {
        const svdq::Result<bool> done = job.wait(std::chrono::milliseconds(16));
        const svdq::Result<svdq_job_status> status = job.poll();
        if (status) std::fprintf(stderr, "\r%3.0f %%", static_cast<double>(status->fraction) * 100);
        if (!done || *done) {
            std::fputc('\n', stderr);
            return job.wait();
        }
    }
}

svdq::Result<void> generate(const svdq::Model& model, const char* prompt, std::vector<unsigned char>& pixels,
                            svdq::Image& image) {
    svdq::Result<svdq::GenerateParams> what = model.defaults();
    if (!what) return what.failure();
    what->prompt = prompt;
    what->seed = 42;

    const svdq::Result<svdq::Job> job = model.submit(*what);
    if (!job) return job.failure();
    const svdq::Result<void> made = wait_with_progress(*job);
    if (!made) return made;
    pixels.resize(std::size_t(what->width) * what->height * 3);
    image = svdq::Image::of(pixels, what->width, what->height, SVDQ_FORMAT_RGB8);
    return job->read_image(image);
}

svdq::Result<svdq::Model> load(const char* folder) {
    const svdq::Result<svdq::Context> context = svdq::Context::create();
    if (!context) return context.failure();
    return context->load(folder);  // the model keeps what it needs of its context
}

bool write_ppm(const char* path, const svdq::Image& image) {
    std::FILE* file = std::fopen(path, "wb");
    if (!file) return false;
    std::fprintf(file, "P6\n%u %u\n255\n", image.width, image.height);
    const bool written = std::fwrite(image.pixels, static_cast<std::size_t>(image.capacity), 1, file) == 1;
    return std::fclose(file) == 0 && written;
}

int failed(const char* what, const std::string& why) {
    std::fprintf(stderr, "%s: %s\n", what, why.c_str());
    return EXIT_FAILURE;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 4) return failed("usage", "example MODEL_FOLDER PROMPT OUT.ppm");
    const svdq::Result<svdq::Model> model = load(argv[1]);
    if (!model) return failed(svdq::result_name(model.code()), model.text());
    std::vector<unsigned char> pixels;
    svdq::Image image;
    const svdq::Result<void> made = generate(*model, argv[2], pixels, image);
    if (!made) return failed(svdq::result_name(made.code()), made.text());
    if (!write_ppm(argv[3], image)) return failed(argv[3], "cannot be written");
    return EXIT_SUCCESS;
}
