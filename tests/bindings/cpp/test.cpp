// Runs svdq.hpp with the demo model: test MODEL_FOLDER LORA_FILE, or test open MODEL_FOLDER, which opens a result
// that has no value.

#include <cstdio>
#include <cstdlib>
#include <cstring>

// Without exceptions: says that it was called.
[[noreturn]] inline void fatal(int code, const char* text) {
    std::fprintf(stderr, "fatal %d: %s\n", code, text);
    std::exit(42);
}
#define SVDQ_CPP_FATAL(code, text) fatal(code, text.c_str())

#include "svdq.hpp"

#include <atomic>
#include <thread>

#if __cplusplus >= 201703L
#  include <filesystem>
#  include <memory_resource>
#  include <string_view>
#endif
#if __cplusplus >= 202002L
#  include <span>
#endif

#include "test.hpp"

namespace {

const std::uint32_t SIDE = 128;
const char* const PROMPT = "pixel art blue potion";

static_assert(!std::is_copy_constructible<svdq::Model>::value, "handles own");
static_assert(!std::is_copy_assignable<svdq::Job>::value, "handles own");
static_assert(std::is_nothrow_move_constructible<svdq::Context>::value, "");
static_assert(std::is_nothrow_move_assignable<svdq::Prompt>::value, "");
static_assert(sizeof(svdq::Lora) == sizeof(void*), "a handle is a pointer");
static_assert(!std::is_convertible<svdq::Model, bool>::value, "");

svdq::Context cpu() { return svdq::Context::create(svdq::ContextParams().use_cpu()).value(); }

svdq::GenerateParams quick() {
    svdq::GenerateParams params(PROMPT);
    params.steps = 2;
    params.seed = 7;
    return params;
}

Bytes picture(const svdq::Model& model, const svdq::GenerateParams& params) {
    Bytes pixels(SIDE * SIDE * 4);
    model.generate(params, svdq::Image::of(pixels, SIDE, SIDE)).value();
    return pixels;
}

Bytes read_file(const std::string& path) {
    std::FILE* file = std::fopen(path.c_str(), "rb");
    CHECK(file);
    CHECK(std::fseek(file, 0, SEEK_END) == 0);
    Bytes bytes(static_cast<std::size_t>(std::ftell(file)));
    std::rewind(file);
    CHECK(std::fread(bytes.data(), 1, bytes.size(), file) == bytes.size());
    CHECK(std::fclose(file) == 0);
    return bytes;
}

// ---- errors ----

void errors_are_results(const std::string& model) {
    const svdq::Context context = cpu();
    const svdq::Result<svdq::Model> missing = context.load("/nowhere/\xc3\xa9");
    CHECK(!missing && missing.code() == SVDQ_ERR_NOT_FOUND);
    CHECK(missing.text().find("/nowhere/\xc3\xa9") != std::string::npos);
    CHECK(std::strcmp(svdq::result_name(missing.code()), "SVDQ_ERR_NOT_FOUND") == 0);

    // strings that C would cut
    svdq::Result<svdq::Model> cut = context.load(model + std::string("\0.txt", 5));
    CHECK(cut.code() == SVDQ_ERR_INVALID_ARGUMENT && cut.text() == "path: has a NUL in it");

    // a moved-from handle is empty, and says so
    svdq::Model first = context.load(model).value();
    svdq::Model second(std::move(first));
    CHECK(second && !first);  // NOLINT: what is left is the subject
    CHECK(first.info().code() == SVDQ_ERR_INVALID_ARGUMENT);
    CHECK(first.submit(quick()).code() == SVDQ_ERR_INVALID_ARGUMENT);
    first.reset();
    first = std::move(second);
    CHECK(first && !second);
    svdq::Model& itself = first;
    first = std::move(itself);
    CHECK(first);
    svdq::Model again(first.detach());
    CHECK(!first && again.info().value().default_width == SIDE);
    CHECK(svdq::Job().poll().code() == SVDQ_ERR_INVALID_ARGUMENT);
    CHECK(svdq::Job().wait().code() == SVDQ_ERR_INVALID_ARGUMENT);
    svdq::Job().cancel();
    CHECK(svdq::Context().load(model).code() == SVDQ_ERR_INVALID_ARGUMENT);
    CHECK(svdq::Context().read_log().code() == SVDQ_ERR_INVALID_ARGUMENT);
    CHECK(svdq::Lora().info().code() == SVDQ_ERR_INVALID_ARGUMENT);

    const svdq::GenerateParams nul(std::string("a\0b", 3));
    CHECK(again.generate(nul, svdq::Image()).text() == "prompt: has a NUL in it");
    Bytes small(10);
    CHECK(again.generate(quick(), svdq::Image::of(small, SIDE, SIDE)).code() == SVDQ_ERR_BUFFER_TOO_SMALL);

#if SVDQ_CPP_EXCEPTIONS
    bool caught = false;
    try {
        context.load("/nowhere").value();
    } catch (const svdq::Error& error) {
        caught = error.code() == SVDQ_ERR_NOT_FOUND && std::strstr(error.text(), "/nowhere") == error.text() &&
                 std::string(error.what()) == std::string("SVDQ_ERR_NOT_FOUND: ") + error.text();
    }
    CHECK(caught);
#endif
}

// ---- pictures ----

Bytes pictures(const svdq::Model& model, const std::string& lora_path) {
    const Bytes plain = picture(model, quick());
    CHECK(plain == picture(model, quick()));

    // the caller's layout: bottom-up, padded BGRA
    const std::size_t stride = SIDE * 4 + 16;
    Bytes padded(stride * SIDE, 0xee);
    svdq::Image image = svdq::Image::of(padded, SIDE, SIDE, SVDQ_FORMAT_BGRA8);
    image.row_stride = stride;
    image.flags = SVDQ_IMAGE_BOTTOM_UP;
    CHECK(image.bytes().value() == stride * (SIDE - 1) + SIDE * 4);
    model.generate(quick(), image).value();
    for (std::size_t y = 0; y < SIDE; ++y) {
        const unsigned char* row = &padded[stride * (SIDE - 1 - y)];
        for (std::size_t x = 0; x < SIDE; ++x) {
            const unsigned char* pixel = &plain[(y * SIDE + x) * 4];
            CHECK(row[4 * x] == pixel[2] && row[4 * x + 1] == pixel[1] && row[4 * x + 2] == pixel[0]);
        }
        CHECK(y == 0 || row[SIDE * 4] == 0xee);
    }

    const svdq::GenerateParams defaults = model.defaults().value();
    CHECK(defaults.width == SIDE && defaults.height == SIDE && defaults.steps > 0);
    const svdq_generate_cost cost = model.cost(quick()).value();
    CHECK(cost.fits == 1 && cost.image_bytes == plain.size() && cost.host_bytes > 0);
    svdq::GenerateParams odd = quick();
    odd.width = 100;
    CHECK(model.cost(odd).code() == SVDQ_ERR_INVALID_ARGUMENT);

    // a prompt that is encoded once
    const svdq::Prompt prompt = model.encode(PROMPT).value();
    svdq::GenerateParams encoded = quick();
    encoded.prompt.clear();
    encoded.encoded = prompt.get();
    CHECK(picture(model, encoded) == plain);

    // LoRAs change the picture while they are named
    const svdq::Lora lora = model.load_lora(lora_path).value();
    CHECK(lora.info().value().rank == 8);
    svdq::GenerateParams styled = quick();
    styled.loras.add(lora, 0.5F);
    CHECK(picture(model, styled) != plain);
    styled.loras.clear();
    CHECK(picture(model, styled) == plain);
    return plain;
}

void starts_from_an_image(const svdq::Context& context, const std::string& path, const Bytes& start) {
    svdq::ModelParams params(path);
    params.flags = SVDQ_MODEL_IMAGE_INPUT;
    const svdq::Model model = context.load(params).value();
    svdq::GenerateParams what = quick();
    what.steps = 4;
    const Bytes without = picture(model, what);
    what.start_from(svdq::Image::readable(start.data(), start.size(), SIDE, SIDE), 0.5F);
    CHECK(picture(model, what) != without);
}

// ---- sources ----

const char* const FILES[] = {
    "model_index.json",
    "scheduler/scheduler_config.json",
    "svdq-int4_r32-demo.safetensors",
    "svdq.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "text_encoder_2/config.json",
    "text_encoder_2/model.safetensors",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer_2/tokenizer.json",
    "tokenizer_2/tokenizer_config.json",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
};

/// A file in a pak.
struct Reader {
    Bytes bytes;
    int reads;
    int fail_at;

    bool operator()(std::uint64_t offset, void* dst, std::size_t size) {
        CHECK(offset + size <= bytes.size());
        if (++reads == fail_at) {
#if SVDQ_CPP_EXCEPTIONS
            throw "thrown through C";
#else
            return false;
#endif
        }
        std::memcpy(dst, bytes.data() + offset, size);
        return true;
    }
};

void sources(const svdq::Context& context, const std::string& folder, const Bytes& expected) {
    std::vector<Bytes> contents;
    std::vector<Reader> readers;
    for (const char* file : FILES) {
        contents.push_back(read_file(folder + "/" + file));
        readers.push_back(Reader{contents.back(), 0, 0});
    }
    svdq::ModelParams memory;
    svdq::ModelParams pak;
    for (std::size_t i = 0; i < contents.size(); ++i) {
        memory.sources.push_back(svdq::Source::memory(contents[i], FILES[i]));
        pak.sources.push_back(svdq::Source::reader(readers[i], readers[i].bytes.size(), FILES[i]));
    }
    CHECK(picture(context.load(memory).value(), quick()) == expected);
    CHECK(picture(context.load(pak).value(), quick()) == expected);
    CHECK(svdq::Model::inspect(pak).value().precision == SVDQ_PRECISION_INT4);

    Reader& broken = readers[2];
    CHECK(broken.reads > 0);
    broken.reads = 0;
    broken.fail_at = 1;
    CHECK(context.load(pak).code() == SVDQ_ERR_IO);

#if __cplusplus >= 201703L
    CHECK(svdq::Model::inspect(svdq::Source(std::filesystem::path(folder))));
    const std::string_view view(PROMPT);
    svdq::GenerateParams viewed = quick();
    viewed.prompt = view;
#endif
#if __cplusplus >= 202002L
    const std::span<const unsigned char> span(contents[2]);
    memory.sources[2] = svdq::Source::memory(span, FILES[2]);
    CHECK(svdq::Model::inspect(memory).value().rank == 32);
#endif
}

// ---- jobs ----

void jobs(const svdq::Context& context, const svdq::Model& model, const Bytes& expected) {
    svdq::Job job = model.submit(quick()).value();
    job.wait().value();
    CHECK(job.wait(std::chrono::milliseconds(0)).value());
    Bytes pixels(SIDE * SIDE * 4);
    job.read_image(svdq::Image::of(pixels, SIDE, SIDE)).value();
    CHECK(pixels == expected);
    const svdq_job_status done = job.poll().value();
    CHECK(done.state == SVDQ_JOB_DONE && done.result == SVDQ_OK && done.fraction == 1.0F && done.seed == 7);
    CHECK(job.error().empty());

    // previews while it runs; then cancelled, and the model makes the same picture
    svdq::GenerateParams lengthy = quick();
    lengthy.steps = 1000;
    lengthy.preview_every = 1;
    job = model.submit(lengthy).value();
    CHECK(!job.wait(std::chrono::microseconds(1)).value());
    CHECK(job.read_image(svdq::Image::of(pixels, SIDE, SIDE)).code() == SVDQ_ERR_BUSY);
    svdq_job_status status = job.poll().value();
    float fraction = 0;
    while (status.preview_serial < 2) {
        CHECK(!job.wait(std::chrono::duration<double>(0.001)).value());
        status = job.poll().value();
        CHECK(status.fraction >= fraction && status.result == SVDQ_PENDING);
        fraction = status.fraction;
    }
    Bytes preview(std::size_t(status.preview_width) * status.preview_height * 4);
    job.read_preview(svdq::Image::of(preview, status.preview_width, status.preview_height)).value();
    std::thread([&job] { job.cancel(); }).join();
    const svdq::Result<void> cancelled = job.wait();
    CHECK(cancelled.code() == SVDQ_ERR_CANCELLED && !cancelled.text().empty());
    CHECK(job.poll().value().state == SVDQ_JOB_CANCELLED);
    CHECK(job.read_image(svdq::Image::of(pixels, SIDE, SIDE)).code() == SVDQ_ERR_CANCELLED);
    CHECK(picture(model, quick()) == expected);

    // a job that goes while it runs
    { const svdq::Job forgotten = model.submit(lengthy).value(); }

    // a load
    job = context.submit_load("/nowhere").value();
    const svdq::Result<void> failed = job.wait();
    CHECK(failed.code() == SVDQ_ERR_NOT_FOUND && failed.text().find("/nowhere") == 0);
    CHECK(job.take_model().code() == SVDQ_ERR_NOT_FOUND);
}

void load_job(const svdq::Context& context, const std::string& path, const Bytes& expected) {
    const svdq::Job job = context.submit_load(path).value();
    job.wait().value();
    const svdq::Model model = job.take_model().value();
    CHECK(!job.take_model());
    CHECK(picture(model, quick()) == expected);
}

// ---- hooks ----

struct Sink {
    std::atomic<int> lines;

    void operator()(std::int32_t level, const char* message) {
        CHECK(level >= SVDQ_LOG_ERROR && level <= SVDQ_LOG_DEBUG && message);
        ++lines;
#if SVDQ_CPP_EXCEPTIONS
        throw 1;
#endif
    }
};

struct Counted {
    std::atomic<std::size_t> bytes;
    std::atomic<std::size_t> peak;

    void* allocate(std::size_t size, std::size_t alignment) {
        void* memory = nullptr;
        if (posix_memalign(&memory, alignment < sizeof(void*) ? sizeof(void*) : alignment, size) != 0) return nullptr;
        const std::size_t now = bytes += size;
        if (now > peak) peak = now;
        return memory;
    }
    void deallocate(void* memory, std::size_t size, std::size_t) {
        bytes -= size;
        std::free(memory);
    }
};

void hooks(const std::string& path, const Bytes& expected) {
    Sink sink = {{0}};
    Counted memory = {{0}, {0}};
    svdq::ContextParams params;
    params.use_cpu().log_to(sink).allocate_with(memory);
    params.threads = 1;
    svdq::Context context = svdq::Context::create(params).value();
    svdq::Model model = context.load(path).value();
    CHECK(picture(model, quick()) == expected);
    CHECK(memory.peak > expected.size());
    const svdq_memory_info info = context.memory().value();
    CHECK(info.host_used == memory.bytes && info.host_peak == memory.peak);
    context.set_memory_budget(0).value();

    svdq::GenerateParams lengthy = quick();
    lengthy.steps = 1000;
    const svdq::Job job = model.submit(lengthy).value();
    CHECK(context.shutdown(std::chrono::seconds(20)).value());
    CHECK(job.poll().value().state == SVDQ_JOB_CANCELLED);
    CHECK(model.submit(quick()).code() == SVDQ_ERR_SHUTTING_DOWN);
    CHECK(sink.lines > 0);
    context.reset();
    model.reset();
    svdq::Job(const_cast<svdq::Job&>(job).detach()).reset();
    CHECK(memory.bytes == 0);

#if __cplusplus >= 201703L
    svdq::ContextParams pmr;
    pmr.use_cpu().allocate_with(*std::pmr::new_delete_resource());
    CHECK(picture(svdq::Context::create(pmr).value().load(path).value(), quick()) == expected);
#endif
}

void polled_log(const svdq::Context& context) {
    int lines = 0;
    for (;;) {
        const svdq::LogLine line = context.read_log().value();
        if (line.level == 0) break;
        CHECK(!line.message.empty());
        ++lines;
    }
    CHECK(lines > 0);
    CHECK(context.read_log().value().message.empty());
}

void devices() {
    const svdq::Result<std::vector<svdq_device_info>> devices = svdq::devices();
    if (devices) {
        for (const svdq_device_info& device : *devices) CHECK(device.memory_total > 0);
    } else {
        CHECK(devices.code() == SVDQ_ERR_NO_DRIVER || devices.code() == SVDQ_ERR_DRIVER_TOO_OLD);
    }
    svdq_device_info unknown = svdq_device_info();
    std::memset(unknown.uuid, 0x5a, sizeof unknown.uuid);
    CHECK(!svdq::Context::create(svdq::ContextParams().use(unknown)));
    CHECK(!svdq::Context::create(svdq::ContextParams().use_luid(unknown.uuid)));
}

}  // namespace

int main(int argc, char** argv) {
    CHECK(argc == 3);
    if (std::strcmp(argv[1], "open") == 0) {
        cpu().load(argv[2]).value();
        return EXIT_SUCCESS;
    }
    const std::string path = argv[1];
    CHECK(svdq::version_number() == SVDQ_VERSION_NUMBER);
    CHECK(svdq::build_info().find(svdq::version_string()) != std::string::npos);
    devices();
    errors_are_results(path);
    CHECK(loaded_elsewhere("/nowhere").find("/nowhere") == 0);
    CHECK(loaded_in_the_other_mode("/nowhere") == loaded_elsewhere("/nowhere"));

    svdq::Context context = cpu();
    svdq::Model model = context.load(path).value();
    const Bytes plain = pictures(model, argv[2]);
    sources(context, path, plain);
    starts_from_an_image(context, path, plain);
    jobs(context, model, plain);
    load_job(context, path, plain);
    hooks(path, plain);
    polled_log(context);
    context.reset();  // the model keeps what it needs
    CHECK(picture(model, quick()) == plain);
    return EXIT_SUCCESS;
}
