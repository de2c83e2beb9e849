// Runs the kernel that is named by the first argument. Reads from standard input, in 8-byte little-endian words: grid x,
// grid y, threads, bytes of shared memory, the number of the kernel's arguments (a struct's fields, for one that takes a
// struct), and each argument:
//   0, size in bytes, contents padded to words: a buffer       1: a null pointer       2, value: an int
// Writes the contents of all buffers to standard output.
#include <tuple>

#include "cuda_bf16.h"

#include "../../kernels/attention.cu"
#include "../../kernels/attention_wide.cu"
#include "../../kernels/gemm_bf16.cu"
#include "../../kernels/gemm_w4a16.cu"
#include "../../kernels/gemm_w4a4.cu"
#include "../../kernels/quantize.cu"
#include "../../kernels/unpack_bf16.cu"
#include "../../kernels/unpack_nvfp4_w4a8.cu"
#include "../../kernels/unpack_w4a8.cu"

namespace linear4 {
alignas(1024) unsigned char shared_bytes[emulation::MAX_SHARED];
}
namespace quantize {
alignas(1024) unsigned char shared_bytes[emulation::MAX_SHARED];
}
namespace product {
alignas(1024) unsigned char shared[emulation::MAX_SHARED];
}
namespace attention_any {
alignas(1024) unsigned char shared[emulation::MAX_SHARED];
}

namespace {

uint64_t read_word() {
    uint64_t word;
    if (std::fread(&word, 8, 1, stdin) != 1) emulation::fail("the input ends early");
    return word;
}

struct Buffer {
    size_t size = read_word();
    std::unique_ptr<unsigned char[]> data{new unsigned char[size]};

    Buffer() {
        for (size_t at = 0; at < size; at += 8) {
            const uint64_t word = read_word();
            std::memcpy(&data[at], &word, min<size_t>(size - at, 8));
        }
    }
    std::vector<unsigned char> contents() const { return {data.get(), data.get() + size}; }
};

// The bytes of parameters, which lie as in a struct.
struct Parameters {
    std::vector<unsigned char> bytes;
    size_t at = 0;

    static size_t align(size_t offset, size_t to) { return (offset + to - 1) / to * to; }

    template <class T>
    void put(T v) {
        const size_t offset = align(bytes.size(), sizeof v);
        bytes.resize(offset + sizeof v);
        std::memcpy(&bytes[offset], &v, sizeof v);
    }
    template <class T>
    T take() {
        T v;
        at = align(at, alignof(T));
        bytes.resize(align(bytes.size(), 8));
        if (at + sizeof v > bytes.size()) emulation::fail("too few arguments");
        std::memcpy(&v, &bytes[at], sizeof v);
        at += sizeof v;
        return v;
    }
};

template <class... P>
std::function<void()> bind(void (*kernel)(P...), Parameters from) {
    std::tuple<P...> parameters{from.take<P>()...};
    if (Parameters::align(from.at, 8) != from.bytes.size()) emulation::fail("too many arguments");
    return [=] { std::apply(kernel, parameters); };
}

const std::map<std::string, std::function<std::function<void()>(const Parameters&)>> KERNELS = {
#define KERNEL(NAME) {#NAME, [](const Parameters& p) { return bind(NAME, p); }}
    KERNEL(gemm_w4a4_store), KERNEL(gemm_w4a4_add), KERNEL(gemm_w4a4_add_u4),   KERNEL(gemm_w4a4_qkv),
    KERNEL(gemm_w4a4_gelu),  KERNEL(quantize_w4a4), KERNEL(quantize_w4a8),      KERNEL(sum_low_rank),
    KERNEL(unpack_w4a8),     KERNEL(unpack_w4a8_scales), KERNEL(gemm_bf16_k8),  KERNEL(gemm_bf16_any_k),
    KERNEL(gemm_w4a16_m8),   KERNEL(gemm_w4a16_m16), KERNEL(attention_d64),     KERNEL(attention_d128),
    KERNEL(attention_wide),  KERNEL(unpack_int4_bf16), KERNEL(unpack_nvfp4_bf16), KERNEL(unpack_nvfp4_w4a8),
    KERNEL(unpack_nvfp4_w4a8_scales), KERNEL(unpack_awq_bf16),
#undef KERNEL
};

}  // namespace

int main(int, char** arguments) {
    const std::string name = arguments[1];
    const unsigned grid_x = read_word(), grid_y = read_word(), threads = read_word();
    const size_t shared_bytes = read_word();
    auto begins = [&](const char* with) { return name.rfind(with, 0) == 0; };
    emulation::shared = begins("gemm_w4a4")   ? linear4::shared_bytes
                        : begins("gemm_bf16") ? product::shared
                        : begins("attention") ? attention_any::shared
                                              : quantize::shared_bytes;

    std::vector<Buffer> buffers;
    Parameters parameters;
    for (size_t left = read_word(); left; --left) switch (read_word()) {
            case 0:
                buffers.emplace_back();
                parameters.put(buffers.back().data.get());
                break;
            case 1:
                parameters.put<void*>(nullptr);
                break;
            default:
                parameters.put(static_cast<int>(read_word()));
        }
    const auto kernel = KERNELS.at(name)(parameters);

    // What threads in either order make of the same buffers has to be the same bits.
    std::vector<std::vector<unsigned char>> before, after;
    for (const Buffer& b : buffers) before.push_back(b.contents());
    emulation::launch({grid_x, grid_y}, threads, shared_bytes, true, kernel);
    for (const Buffer& b : buffers) after.push_back(b.contents());
    for (size_t i = 0; i < buffers.size(); ++i) std::copy(before[i].begin(), before[i].end(), buffers[i].data.get());
    emulation::launch({grid_x, grid_y}, threads, shared_bytes, false, kernel);
    for (size_t i = 0; i < buffers.size(); ++i) {
        if (buffers[i].contents() != after[i]) emulation::fail("the result depends on the order of the threads");
        if (buffers[i].size) std::fwrite(after[i].data(), 1, buffers[i].size, stdout);
    }
}
