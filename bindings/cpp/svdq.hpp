/*
 * svdq.hpp: libsvdq in C++11 and later. Header-only, over svdq.h, which stays the manual of what the
 * functions do; this file says what C++ adds. example.cpp is a whole program.
 *
 *     svdq::Context context = svdq::Context::create().value();
 *     svdq::Model model = context.load("assets/demo").value();
 *     svdq::GenerateParams what("pixel art blue potion");
 *     std::vector<unsigned char> pixels(128 * 128 * 4);
 *     svdq::Result<void> made = model.generate(what, svdq::Image::of(pixels, 128, 128));
 *     if (!made) std::puts(made.text().c_str());
 *
 * Errors. Functions that can fail return svdq::Result<T>, with exceptions and without. There is one
 * surface, so that code moves between an engine (-fno-exceptions -fno-rtti) and a tool unchanged; which
 * of the two it is shows only where a result is opened that has no value: value(), * and -> then throw
 * svdq::Error, or without exceptions call SVDQ_CPP_FATAL. Nothing else throws, but for std::bad_alloc
 * and the like from the strings and vectors that you pass.
 *
 * Ownership. Context, Model, Lora, Prompt and Job are handles: they own one object of the library, can be
 * moved and not copied, and release it when they go, in any order and from any thread. An empty handle
 * (default-made, moved from) may be used: every call with it fails with SVDQ_ERR_INVALID_ARGUMENT. Parameter
 * types own their strings and arrays. What is borrowed takes an lvalue, and says for how long.
 *
 * Callables that the library calls (read-at, log, memory) are borrowed and never copied. What they throw is
 * caught and becomes a failure of the callable.
 *
 * Threads: as svdq.h says for the function that is called. One C++ object, as opposed to the library's object
 * behind it, is not to be changed (assigned, moved, reset) while another thread uses it.
 *
 * Modes: exceptions are used where the compiler has them on, unless SVDQ_CPP_EXCEPTIONS is defined as 0.
 * Translation units of both modes may be linked together: the names of types differ by an inline namespace,
 * so no handle can be passed from one to the other by mistake; pass what get() or detach() returns.
 */

#ifndef SVDQ_HPP
#define SVDQ_HPP

#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "svdq.h"

#ifndef SVDQ_CPP_EXCEPTIONS
#  if defined(__cpp_exceptions) || defined(__EXCEPTIONS) || defined(_CPPUNWIND)
#    define SVDQ_CPP_EXCEPTIONS 1
#  else
#    define SVDQ_CPP_EXCEPTIONS 0
#  endif
#endif

// What is done without exceptions when a result is opened that has no value: a mistake of the program, as a
// null pointer is. Must not return. The same in all translation units.
#ifndef SVDQ_CPP_FATAL
#  define SVDQ_CPP_FATAL(code, text) std::abort()
#endif

#if (defined(_MSVC_LANG) && _MSVC_LANG >= 201703L) || __cplusplus >= 201703L
#  define SVDQ_CPP_NODISCARD [[nodiscard]]
#else
#  define SVDQ_CPP_NODISCARD
#endif

#if SVDQ_CPP_EXCEPTIONS
#  define SVDQ_CPP_MODE throwing
#  define SVDQ_CPP_TRY try
#  define SVDQ_CPP_CATCH_ALL catch (...)
#else
#  define SVDQ_CPP_MODE nonthrowing
#  define SVDQ_CPP_TRY if (true)
#  define SVDQ_CPP_CATCH_ALL else
#endif

namespace svdq {
inline namespace SVDQ_CPP_MODE {

class Model;

// ---- results ----

/** What Result::value() throws: the number and the words. */
class Error : public std::runtime_error {
public:
    Error(svdq_result code, const std::string& text)
        : std::runtime_error(std::string(svdq_result_name(code)) + ": " + text), code_(code) {}

    /** SVDQ_ERR_*. */
    svdq_result code() const noexcept { return code_; }

    /** One line of English that names what is at fault. what() has the number's name before it. */
    const char* text() const noexcept { return std::strstr(what(), ": ") + 2; }

private:
    svdq_result code_;
};

/** Why there is no value. Converts to every Result: `if (!job) return job.failure();` passes it on. */
struct Failure {
    svdq_result code;
    std::string text;
};

namespace detail {

/** A C struct of zeros with its size set. */
template <class Struct>
Struct sized() {
    Struct value = Struct();
    value.struct_size = static_cast<std::uint32_t>(sizeof(Struct));
    return value;
}

/** What a function writes into (buf, cap, needed). Empty where it fails. */
template <class Function>
std::string read_text(Function function) {
    char small[256];
    std::size_t needed = 0;
    svdq_result result = function(small, sizeof small, &needed);
    if (result == SVDQ_OK) return std::string(small);
    std::string text;
    while (result == SVDQ_ERR_BUFFER_TOO_SMALL) {
        text.resize(needed);
        result = function(&text[0], text.size(), &needed);
    }
    if (result != SVDQ_OK) return std::string();
    text.resize(std::strlen(text.c_str()));
    return text;
}

inline std::string last_error() {
    return read_text(svdq_last_error);
}

inline Failure failure(svdq_result code) { return Failure{code, last_error()}; }

/** Whether a string can be passed to C whole. */
inline bool passes(const std::string& text) { return text.find('\0') == std::string::npos; }

inline Failure cut(const char* what) {
    return Failure{SVDQ_ERR_INVALID_ARGUMENT, std::string(what) + ": has a NUL in it"};
}

[[noreturn]] inline void open_failed(svdq_result code, const std::string& text) {
#if SVDQ_CPP_EXCEPTIONS
    throw Error(code, text);
#else
    static_cast<void>(code);
    static_cast<void>(text);
    SVDQ_CPP_FATAL(code, text);
    std::abort();
#endif
}

/** Milliseconds, rounded up. Waits of more than 1000 hours are cut to that. */
template <class Rep, class Period>
std::uint32_t milliseconds(const std::chrono::duration<Rep, Period>& time) {
    if (!(time > std::chrono::duration<Rep, Period>::zero())) return 0;
    if (time >= std::chrono::hours(1000)) return 3600000000U;
    std::chrono::milliseconds whole = std::chrono::duration_cast<std::chrono::milliseconds>(time);
    if (whole < time) ++whole;
    return static_cast<std::uint32_t>(whole.count());
}

}  // namespace detail

/** A value, or why there is none. */
template <class T>
class SVDQ_CPP_NODISCARD Result {
public:
    Result(T value) : code_(SVDQ_OK), value_(std::move(value)) {}
    Result(Failure failure) : code_(failure.code), text_(std::move(failure.text)), value_() {}

    bool ok() const noexcept { return code_ == SVDQ_OK; }
    explicit operator bool() const noexcept { return ok(); }

    /** SVDQ_OK, or SVDQ_ERR_*. */
    svdq_result code() const noexcept { return code_; }

    /** One line of English that names what is at fault; "" with a value. */
    const std::string& text() const noexcept { return text_; }

    /** To be returned from a function whose own result has another type; only where there is no value. */
    Failure failure() const { return Failure{code_, text_}; }

    /** The value. Where there is none: throws Error, or calls SVDQ_CPP_FATAL. */
    T& value() & { return opened(), value_; }
    const T& value() const& { return opened(), value_; }
    T value() && { return opened(), std::move(value_); }
    T& operator*() & { return value(); }
    const T& operator*() const& { return value(); }
    T operator*() && { return std::move(*this).value(); }
    T* operator->() { return &value(); }
    const T* operator->() const { return &value(); }

private:
    void opened() const {
        if (!ok()) detail::open_failed(code_, text_);
    }

    svdq_result code_;
    std::string text_;
    T value_;
};

/** Success, or why not. */
template <>
class SVDQ_CPP_NODISCARD Result<void> {
public:
    Result() : code_(SVDQ_OK) {}
    Result(Failure failure) : code_(failure.code), text_(std::move(failure.text)) {}

    bool ok() const noexcept { return code_ == SVDQ_OK; }
    explicit operator bool() const noexcept { return ok(); }
    svdq_result code() const noexcept { return code_; }
    const std::string& text() const noexcept { return text_; }
    Failure failure() const { return Failure{code_, text_}; }

    /** Throws Error, or calls SVDQ_CPP_FATAL, unless it is a success. */
    void value() const {
        if (!ok()) detail::open_failed(code_, text_);
    }

private:
    svdq_result code_;
    std::string text_;
};

namespace detail {

inline Result<void> result(svdq_result code) {
    if (code != SVDQ_OK) return failure(code);
    return Result<void>();
}

template <class T>
Result<T> result(svdq_result code, T value) {
    if (code != SVDQ_OK) return failure(code);
    return Result<T>(std::move(value));
}

/** SVDQ_OK is true, SVDQ_PENDING false. */
inline Result<bool> ended(svdq_result code) {
    if (code == SVDQ_PENDING) return Result<bool>(false);
    return result(code, true);
}

/** Owns one object of the library; see the top of this file. */
template <class Object>
class Handle {
public:
    typedef typename Object::Type Type;

    Handle() noexcept : object_(nullptr) {}

    /** Takes over an object that C made. */
    explicit Handle(Type* object) noexcept : object_(object) {}

    Handle(Handle&& other) noexcept : object_(other.detach()) {}
    Handle& operator=(Handle&& other) noexcept {
        if (this != &other) {
            reset();
            object_ = other.detach();
        }
        return *this;
    }
    ~Handle() { reset(); }

    /** The object, which stays this handle's. nullptr when it is empty. */
    Type* get() const noexcept { return object_; }
    explicit operator bool() const noexcept { return object_ != nullptr; }

    /** Releases the object, if there is one. */
    void reset() noexcept {
        if (object_) Object::release(object_);
        object_ = nullptr;
    }

    /** The object, which is the caller's to release from here on. */
    Type* detach() noexcept {
        Type* object = object_;
        object_ = nullptr;
        return object;
    }

private:
    Type* object_;
};

struct ContextObject {
    typedef svdq_context Type;
    static void release(Type* object) noexcept { svdq_context_release(object); }
};
struct ModelObject {
    typedef svdq_model Type;
    static void release(Type* object) noexcept { svdq_model_release(object); }
};
struct LoraObject {
    typedef svdq_lora Type;
    static void release(Type* object) noexcept { svdq_lora_release(object); }
};
struct PromptObject {
    typedef svdq_prompt Type;
    static void release(Type* object) noexcept { svdq_prompt_release(object); }
};
struct JobObject {
    typedef svdq_job Type;
    static void release(Type* object) noexcept { svdq_job_release(object); }
};

template <class Callable>
void* borrow(Callable& callable) noexcept {
    return const_cast<void*>(static_cast<const void*>(&callable));
}

// These have C++ linkage, as templates must. On every platform of the library C calls them the same way.

template <class Sink>
void log(void* user, std::int32_t level, const char* message) noexcept {
    SVDQ_CPP_TRY { (*static_cast<Sink*>(user))(level, message); }
    SVDQ_CPP_CATCH_ALL {}
}

template <class Memory>
void* allocate(void* user, std::size_t size, std::size_t alignment) noexcept {
    SVDQ_CPP_TRY { return static_cast<Memory*>(user)->allocate(size, alignment); }
    SVDQ_CPP_CATCH_ALL { return nullptr; }
}

template <class Memory>
void deallocate(void* user, void* memory, std::size_t size, std::size_t alignment) noexcept {
    SVDQ_CPP_TRY { static_cast<Memory*>(user)->deallocate(memory, size, alignment); }
    SVDQ_CPP_CATCH_ALL {}
}

template <class Reader>
svdq_result read_at(void* user, std::uint64_t offset, void* dst, std::size_t size) noexcept {
    SVDQ_CPP_TRY { return (*static_cast<Reader*>(user))(offset, dst, size) ? SVDQ_OK : SVDQ_ERR_IO; }
    SVDQ_CPP_CATCH_ALL { return SVDQ_ERR_IO; }
}

}  // namespace detail

// ---- the library ----

/** The version that is running; SVDQ_VERSION_NUMBER is the header's. */
inline std::uint32_t version_number() noexcept { return svdq_version_number(); }

/** The version that is running, as "0.1.0". */
inline const char* version_string() noexcept { return svdq_version_string(); }

/** One line for bug reports about how the library was built. */
inline std::string build_info() {
    return detail::read_text(svdq_build_info);
}

/** "SVDQ_ERR_IO", say. Static. */
inline const char* result_name(svdq_result result) noexcept { return svdq_result_name(result); }

// ---- devices ----

/** The GPUs of the NVIDIA driver, in its order. */
inline Result<std::vector<svdq_device_info>> devices() {
    std::uint32_t count = 0;
    svdq_result result = svdq_device_count(&count);
    std::vector<svdq_device_info> devices;
    for (std::uint32_t index = 0; result == SVDQ_OK && index < count; ++index) {
        devices.push_back(detail::sized<svdq_device_info>());
        result = svdq_device_get_info(index, &devices.back());
    }
    return detail::result(result, std::move(devices));
}

// ---- contexts ----

/** svdq_context_params with its size and version set; all its fields are here: threads, memory_budget ... */
struct ContextParams : svdq_context_params {
    ContextParams() : svdq_context_params(detail::sized<svdq_context_params>()) {
        header_version = SVDQ_VERSION_NUMBER;
    }

    /** Computes on the CPU. */
    ContextParams& use_cpu() {
        device_select = SVDQ_DEVICE_CPU;
        return *this;
    }

    /** Computes on a GPU of devices(): found again by its UUID, whatever happens to the order. */
    ContextParams& use(const svdq_device_info& device) {
        device_select = SVDQ_DEVICE_UUID;
        std::memcpy(device_id, device.uuid, sizeof device_id);
        return *this;
    }

    /** Computes on the GPU of a Windows adapter: luid is its 8 bytes (DXGI_ADAPTER_DESC.AdapterLuid). */
    ContextParams& use_luid(const void* luid) {
        device_select = SVDQ_DEVICE_LUID;
        std::memset(device_id, 0, sizeof device_id);
        std::memcpy(device_id, luid, 8);
        return *this;
    }

    /**
     * Calls sink(int32_t level, const char* message) for every line of the log, from any thread that is inside
     * the library. sink is borrowed until Context::shutdown has returned true, or else as allocate_with has it.
     */
    template <class Sink>
    ContextParams& log_to(Sink& sink) {
        log = &detail::log<Sink>;
        log_user = detail::borrow(sink);
        return *this;
    }

    /**
     * Takes large memory from memory.allocate(size, alignment), which returns nullptr or throws when there is
     * none, and gives it back by memory.deallocate(pointer, size, alignment), as std::pmr::memory_resource has
     * them. Called from any thread. memory is borrowed until all that was made from the context has been
     * released, and its jobs have ended.
     */
    template <class Memory>
    ContextParams& allocate_with(Memory& memory) {
        alloc = &detail::allocate<Memory>;
        free = &detail::deallocate<Memory>;
        alloc_user = detail::borrow(memory);
        return *this;
    }
};

/** A line of the log. */
struct LogLine {
    /** SVDQ_LOG_*; 0: there is no line. */
    std::int32_t level;
    std::string message;
};

// ---- models: what to load ----

/** A file, a folder, memory, or a callable that reads. Owns its path or name and nothing else. */
class Source {
public:
    /** A file or folder, UTF-8 on every platform. */
    Source(const char* path) : Source(SVDQ_SOURCE_PATH, path) {}
    Source(std::string path) : Source(SVDQ_SOURCE_PATH, std::move(path)) {}

    /** The same from std::filesystem::path, or what else has a u8string(). */
    template <class Path, class = decltype(std::declval<const Path&>().u8string())>
    Source(const Path& path) : Source(SVDQ_SOURCE_PATH, std::string()) {
        const auto text = path.u8string();
        path_.assign(text.begin(), text.end());
    }

    /**
     * A file's bytes. They are borrowed until the call that loads returns, or the load job has ended.
     *
     * name: such as "text_encoder/config.json", where it is one of a pipeline folder's files. "": a
     * .safetensors file.
     */
    static Source memory(const void* data, std::uint64_t size, std::string name = std::string()) {
        Source source(SVDQ_SOURCE_MEMORY, std::move(name));
        source.data_ = data;
        source.size_ = size;
        return source;
    }

    /** The same for a vector, an array, a span: what has data() and size(). */
    template <class Bytes, class = decltype(std::declval<const Bytes&>().data())>
    static Source memory(const Bytes& bytes, std::string name = std::string()) {
        return memory(bytes.data(), bytes.size() * sizeof(*bytes.data()), std::move(name));
    }
    template <class Bytes, class = decltype(std::declval<const Bytes&>().data())>
    static Source memory(const Bytes&& bytes, std::string name = std::string()) = delete;

    /**
     * A file of size bytes in a pak: reader(uint64_t offset, void* dst, size_t size) puts size bytes to dst and
     * returns whether it could. One call at a time, in the thread that loads. reader is borrowed until the call
     * that loads returns, or the load job has ended. name: as for memory.
     */
    template <class Reader>
    static Source reader(Reader& reader, std::uint64_t size, std::string name = std::string()) {
        return Source::reader(&detail::read_at<Reader>, detail::borrow(reader), size, std::move(name));
    }

    /** The same with a C function, which must not throw. */
    static Source reader(svdq_read_at_fn read_at, void* user, std::uint64_t size, std::string name = std::string()) {
        Source source(SVDQ_SOURCE_CALLBACKS, std::move(name));
        source.read_at_ = read_at;
        source.user_ = user;
        source.size_ = size;
        return source;
    }

    /** As C takes it; points into this object. */
    svdq_source raw() const {
        svdq_source source = detail::sized<svdq_source>();
        source.kind = kind_;
        source.path = kind_ != SVDQ_SOURCE_PATH && path_.empty() ? nullptr : path_.c_str();
        source.data = data_;
        source.size = size_;
        source.read_at = read_at_;
        source.user = user_;
        return source;
    }

    /** The path or name. */
    const std::string& path() const noexcept { return path_; }

private:
    Source(std::uint32_t kind, std::string path)
        : kind_(kind), path_(std::move(path)), data_(nullptr), size_(0), read_at_(nullptr), user_(nullptr) {}

    std::uint32_t kind_;
    std::string path_;
    const void* data_;
    std::uint64_t size_;
    svdq_read_at_fn read_at_;
    void* user_;
};

/** What to load, and how. */
struct ModelParams {
    ModelParams() : profile(0), flags(0) {}
    ModelParams(Source source) : sources(1, std::move(source)), profile(0), flags(0) {}
    ModelParams(const char* path) : ModelParams(Source(path)) {}
    ModelParams(std::string path) : ModelParams(Source(std::move(path))) {}

    std::vector<Source> sources;
    /** SVDQ_PROFILE_*; 0: what suits. */
    std::uint32_t profile;
    /** SVDQ_MODEL_*, added up. */
    std::uint32_t flags;

    /** Calls function(svdq_model_params*) with what C takes. */
    template <class Function>
    svdq_result call(Function function) const {
        std::vector<svdq_source> raw;
        for (const Source& source : sources) raw.push_back(source.raw());
        svdq_model_params params = detail::sized<svdq_model_params>();
        params.source_count = static_cast<std::uint32_t>(raw.size());
        params.sources = raw.data();
        params.profile = profile;
        params.flags = flags;
        return function(&params);
    }

    /** Whether every path can be passed to C whole. */
    bool passes() const {
        for (const Source& source : sources)
            if (!detail::passes(source.path())) return false;
        return true;
    }
};

// ---- images ----

/**
 * svdq_image with its size set: pixels of the caller, which are borrowed for the call that takes the image. Its
 * fields row_stride and flags may be set before.
 */
struct Image : svdq_image {
    Image() : svdq_image(detail::sized<svdq_image>()) {}
    Image(void* at, std::uint64_t bytes, std::uint32_t width_, std::uint32_t height_,
          std::uint32_t format_ = SVDQ_FORMAT_RGBA8)
        : Image() {
        pixels = at;
        capacity = bytes;
        width = width_;
        height = height_;
        format = format_;
    }

    /** The pixels of a vector, an array, a span: what has data() and size(). */
    template <class Pixels>
    static Image of(Pixels& pixels, std::uint32_t width, std::uint32_t height,
                    std::uint32_t format = SVDQ_FORMAT_RGBA8) {
        return Image(pixels.data(), pixels.size() * sizeof(*pixels.data()), width, height, format);
    }

    /** Pixels to be read only, for GenerateParams::start_from. Not to be generated into. */
    static Image readable(const void* at, std::uint64_t bytes, std::uint32_t width, std::uint32_t height,
                          std::uint32_t format = SVDQ_FORMAT_RGBA8) {
        return Image(const_cast<void*>(at), bytes, width, height, format);
    }

    /** The smallest capacity that holds the image. */
    Result<std::uint64_t> bytes() const {
        std::uint64_t bytes = 0;
        const svdq_result result = svdq_image_bytes(this, &bytes);
        return detail::result(result, bytes);
    }
};

// ---- LoRAs and prompts ----

/** A LoRA that is loaded for one model. */
class Lora : public detail::Handle<detail::LoraObject> {
public:
    using Handle::Handle;

    /** What it brings to its model. */
    Result<svdq_lora_info> info() const {
        svdq_lora_info info = detail::sized<svdq_lora_info>();
        const svdq_result result = svdq_lora_get_info(get(), &info);
        return detail::result(result, info);
    }
};

/** A prompt that went through the text encoders, to make several pictures from. */
class Prompt : public detail::Handle<detail::PromptObject> {
public:
    using Handle::Handle;
};

/** LoRAs with their strengths. Names the LoRAs and does not own them: they have to be there for the call. */
class LoraList {
public:
    /** strength: 1 is what the LoRA was trained for. */
    void add(const Lora& lora, float strength = 1.0F) {
        svdq_lora_ref ref = detail::sized<svdq_lora_ref>();
        ref.strength = strength;
        ref.lora = lora.get();
        refs_.push_back(ref);
    }
    void clear() noexcept { refs_.clear(); }

    const svdq_lora_ref* data() const noexcept { return refs_.empty() ? nullptr : refs_.data(); }
    std::uint32_t size() const noexcept { return static_cast<std::uint32_t>(refs_.size()); }

private:
    std::vector<svdq_lora_ref> refs_;
};

/** What to encode. */
struct PromptParams {
    PromptParams() {}
    PromptParams(std::string text_) : text(std::move(text_)) {}
    PromptParams(const char* text_) : text(text_) {}

    std::string text;
    /** Those that change text encoders take part. */
    LoraList loras;
};

// ---- generation ----

/** What to generate. Zero is the model's default everywhere. */
struct GenerateParams {
    GenerateParams()
        : width(0), height(0), steps(0), guidance(0), seed(0), encoded(nullptr), init_strength(0), preview_every(0) {}
    explicit GenerateParams(std::string prompt_) : GenerateParams() { prompt = std::move(prompt_); }

    std::uint32_t width;
    std::uint32_t height;
    std::uint32_t steps;
    float guidance;
    std::uint64_t seed;
    /** What the picture shows, UTF-8. */
    std::string prompt;
    /** Instead of prompt, Prompt::get() of one that is there for the call. Then prompt is to be "". */
    const svdq_prompt* encoded;
    LoraList loras;
    /** An image to start from, see start_from. */
    Image init;
    /** 0 is the default; up to 1, where all of init is replaced. */
    float init_strength;
    /** Steps between previews of a job; 0: none. */
    std::uint32_t preview_every;

    /** Starts from an image of the picture's size, whose pixels have to be there for the call. */
    void start_from(const Image& image, float strength = 0.0F) {
        init = image;
        init_strength = strength;
    }

    /** As C takes it; points into this object. */
    svdq_generate_params raw() const {
        svdq_generate_params params = detail::sized<svdq_generate_params>();
        params.width = width;
        params.height = height;
        params.steps = steps;
        params.guidance = guidance;
        params.lora_count = loras.size();
        params.seed = seed;
        params.prompt = encoded && prompt.empty() ? nullptr : prompt.c_str();
        params.encoded = encoded;
        params.loras = loras.data();
        params.init = init.pixels ? &init : nullptr;
        params.init_strength = init_strength;
        params.preview_every = preview_every;
        return params;
    }
};

/** A generation or a load that runs in the background. Going cancels what still runs, and does not block. */
class Job : public detail::Handle<detail::JobObject> {
public:
    using Handle::Handle;

    /** How far it is. Never blocks. */
    Result<svdq_job_status> poll() const {
        svdq_job_status status = detail::sized<svdq_job_status>();
        const svdq_result result = svdq_job_poll(get(), &status);
        return detail::result(result, status);
    }

    /** Waits for its end. Fails as the job did. */
    Result<void> wait() const {
        const svdq_result result = svdq_job_wait(get(), UINT32_MAX);
        if (result != SVDQ_OK) return failed(result);
        return Result<void>();
    }

    /** Waits for its end, but no longer than a time: true when it is done, false when the time is over. Fails as
        the job did. */
    template <class Rep, class Period>
    Result<bool> wait(const std::chrono::duration<Rep, Period>& time) const {
        const svdq_result result = svdq_job_wait(get(), detail::milliseconds(time));
        if (result != SVDQ_OK && result != SVDQ_PENDING) return failed(result);
        return Result<bool>(result == SVDQ_OK);
    }

    /** Any thread, any time, also when it has ended. An empty handle has nothing to cancel. */
    void cancel() const noexcept {
        if (get()) svdq_job_cancel(get());
    }

    /** Why it failed; "" unless it did, or was cancelled. */
    std::string error() const {
        svdq_job* job = get();
        return detail::read_text(
            [job](char* buf, std::size_t cap, std::size_t* needed) { return svdq_job_error(job, buf, cap, needed); });
    }

    /** Copies the picture. SVDQ_ERR_BUSY until the job is done. */
    Result<void> read_image(const Image& out) const { return read(SVDQ_JOB_IMAGE, out); }

    /** Copies the newest preview, whose size poll() says. SVDQ_ERR_BUSY while there is none. */
    Result<void> read_preview(const Image& out) const { return read(SVDQ_JOB_PREVIEW, out); }

    /** The model of a load job that is done; once. */
    Result<Model> take_model() const;

private:
    Result<void> read(std::uint32_t which, const Image& out) const {
        const svdq_result result = svdq_job_read_image(get(), which, &out);
        if (result != SVDQ_OK) return failed(result);
        return Result<void>();
    }

    /** The job's own words where it has some: it failed in another thread. */
    Failure failed(svdq_result result) const {
        std::string text = get() ? error() : std::string();
        if (text.empty()) return detail::failure(result);
        return Failure{result, std::move(text)};
    }
};

// ---- models ----

/** A loaded model. */
class Model : public detail::Handle<detail::ModelObject> {
public:
    using Handle::Handle;

    /** What a model is, from the headers of its files; needs no device and no context. */
    static Result<svdq_model_info> inspect(const ModelParams& params) {
        if (!params.passes()) return detail::cut("path");
        svdq_model_info info = detail::sized<svdq_model_info>();
        const svdq_result result =
            params.call([&](const svdq_model_params* raw) { return svdq_model_inspect(raw, &info); });
        return detail::result(result, info);
    }

    Result<svdq_model_info> info() const {
        svdq_model_info info = detail::sized<svdq_model_info>();
        const svdq_result result = svdq_model_get_info(get(), &info);
        return detail::result(result, info);
    }

    /** Loads a LoRA for this model. Blocks. */
    Result<Lora> load_lora(const Source& source) const {
        if (!detail::passes(source.path())) return detail::cut("path");
        const svdq_source raw = source.raw();
        svdq_lora* lora = nullptr;
        const svdq_result result = svdq_lora_load(get(), &raw, &lora);
        return detail::result(result, Lora(lora));
    }

    /** Runs the text encoders once for several pictures. Blocks. */
    Result<Prompt> encode(const PromptParams& params) const {
        if (!detail::passes(params.text)) return detail::cut("text");
        svdq_prompt_params raw = detail::sized<svdq_prompt_params>();
        raw.text = params.text.c_str();
        raw.lora_count = params.loras.size();
        raw.loras = params.loras.data();
        svdq_prompt* prompt = nullptr;
        const svdq_result result = svdq_prompt_encode(get(), &raw, &prompt);
        return detail::result(result, Prompt(prompt));
    }

    /** The model's own size, steps and guidance. */
    Result<GenerateParams> defaults() const {
        svdq_generate_params raw = detail::sized<svdq_generate_params>();
        const svdq_result result = svdq_generate_params_init(get(), &raw);
        GenerateParams params;
        params.width = raw.width;
        params.height = raw.height;
        params.steps = raw.steps;
        params.guidance = raw.guidance;
        return detail::result(result, std::move(params));
    }

    /** What a picture would cost, and whether it fits now: svdq_generate_check. Runs nothing. ("check" is a macro
        in some engines.) */
    Result<svdq_generate_cost> cost(const GenerateParams& params) const {
        if (!detail::passes(params.prompt)) return detail::cut("prompt");
        const svdq_generate_params raw = params.raw();
        svdq_generate_cost cost = detail::sized<svdq_generate_cost>();
        const svdq_result result = svdq_generate_check(get(), &raw, &cost);
        return detail::result(result, cost);
    }

    /** Makes a picture in the caller's pixels. Blocks until it is done. */
    Result<void> generate(const GenerateParams& params, const Image& out) const {
        if (!detail::passes(params.prompt)) return detail::cut("prompt");
        const svdq_generate_params raw = params.raw();
        return detail::result(svdq_generate(get(), &raw, &out));
    }

    /** Makes a picture in the background. params and the pixels of its init are copied. */
    Result<Job> submit(const GenerateParams& params) const {
        if (!detail::passes(params.prompt)) return detail::cut("prompt");
        const svdq_generate_params raw = params.raw();
        svdq_job* job = nullptr;
        const svdq_result result = svdq_job_submit(get(), &raw, &job);
        return detail::result(result, Job(job));
    }
};

inline Result<Model> Job::take_model() const {
    svdq_model* model = nullptr;
    const svdq_result result = svdq_job_take_model(get(), &model);
    if (result != SVDQ_OK) return failed(result);
    return Result<Model>(Model(model));
}

/** What models are loaded into: a device, its memory budget and its threads. */
class Context : public detail::Handle<detail::ContextObject> {
public:
    using Handle::Handle;

    static Result<Context> create(const ContextParams& params = ContextParams()) {
        svdq_context* context = nullptr;
        const svdq_result result = svdq_context_create(&params, &context);
        return detail::result(result, Context(context));
    }

    /** Loads a model. Blocks until it can generate. */
    Result<Model> load(const ModelParams& params) const {
        if (!params.passes()) return detail::cut("path");
        svdq_model* model = nullptr;
        svdq_context* context = get();
        const svdq_result result =
            params.call([&](const svdq_model_params* raw) { return svdq_model_load(context, raw, &model); });
        return detail::result(result, Model(model));
    }

    /** Loads a model in the background: Job::take_model has it in the end. What the sources borrow has to be
        there until the job has ended. */
    Result<Job> submit_load(const ModelParams& params) const {
        if (!params.passes()) return detail::cut("path");
        svdq_job* job = nullptr;
        svdq_context* context = get();
        const svdq_result result =
            params.call([&](const svdq_model_params* raw) { return svdq_job_submit_load(context, raw, &job); });
        return detail::result(result, Job(job));
    }

    /** Bytes of GPU memory; 0: what is free. */
    Result<void> set_memory_budget(std::uint64_t bytes) const {
        return detail::result(svdq_context_set_memory_budget(get(), bytes));
    }

    Result<svdq_memory_info> memory() const {
        svdq_memory_info info = detail::sized<svdq_memory_info>();
        const svdq_result result = svdq_context_get_memory(get(), &info);
        return detail::result(result, info);
    }

    /** Takes the oldest line of the log, for programs without log_to; its level is 0 when there is none. */
    Result<LogLine> read_log() const {
        LogLine line = {0, std::string(256, '\0')};
        std::size_t needed = 0;
        svdq_result result;
        while ((result = svdq_context_read_log(get(), &line.level, &line.message[0], line.message.size(), &needed)) ==
               SVDQ_ERR_BUFFER_TOO_SMALL)
            line.message.resize(needed);
        line.message.resize(std::strlen(line.message.c_str()));
        return detail::result(result, std::move(line));
    }

    /**
     * Cancels everything that runs in this context, refuses what is new, and waits until nothing runs: true, and
     * no thread and no log callable of this context runs any more; or false when the time is over first.
     */
    template <class Rep, class Period>
    Result<bool> shutdown(const std::chrono::duration<Rep, Period>& time) const {
        return detail::ended(svdq_context_shutdown(get(), detail::milliseconds(time)));
    }
};

}  // namespace SVDQ_CPP_MODE
}  // namespace svdq

#undef SVDQ_CPP_CATCH_ALL
#undef SVDQ_CPP_TRY
#undef SVDQ_CPP_MODE
#undef SVDQ_CPP_NODISCARD

#endif  // SVDQ_HPP
