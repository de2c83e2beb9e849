// gemm_w4a16_* and unpack_awq_bf16 against the formula of the AWQ packing, and their speed on the modulation of FLUX.1 and
// on T5-XXL.
#pragma once

#include <memory>

#include "../../kernels/gemm_w4a16.cu"
#include "../../kernels/unpack_bf16.cu"
#include "harness.cuh"

namespace test_w4a16 {

// Code (n, k) as the packing defines it.
__device__ inline int code(const u16* codes, int n, int k, int columns) {
    size_t word = static_cast<size_t>(n / 4) * columns + k / 64 * 64 + n % 4 * 16 + k % 64 / 32 * 8 + k % 8;
    return codes[word] >> (4 * (k % 32 / 8)) & 15;
}

__device__ inline float weight(const W4A16Params& p, int n, int k) {
    size_t vector = static_cast<size_t>(k / p.group) * p.n + n;
    return code(p.codes, n, k, p.k) * __bfloat162float(p.scales[vector]) + __bfloat162float(p.zeros[vector]);
}

__device__ inline int column_of(const W4A16Params& p, int stored) {
    return stored % p.chunks * (p.n / p.chunks) + stored / p.chunks;
}

__global__ void reference_weights(W4A16Params p, bf16* w) {
    size_t i = blockIdx.x * 256ull + threadIdx.x;
    if (i >= static_cast<size_t>(p.n) * p.k) return;
    int stored = i / p.k, k = i % p.k;
    w[static_cast<size_t>(column_of(p, stored)) * p.k + k] = __float2bfloat16(weight(p, stored, k));
}

__global__ void reference(W4A16Params p, float* out) {
    size_t i = blockIdx.x * 256ull + threadIdx.x;
    if (i >= static_cast<size_t>(p.m) * p.n) return;
    int m = i / p.n, stored = i % p.n, column = column_of(p, stored);
    double sum = 0;
    for (int k = 0; k < p.k; ++k)
        sum += static_cast<double>(weight(p, stored, k)) * __bfloat162float(p.x[static_cast<size_t>(m) * p.k + k]);
    out[static_cast<size_t>(m) * p.n + column] = sum + p.output.bias[column];
}

__global__ void fill_codes(u16* codes, size_t n) {
    for (size_t i = blockIdx.x * 256ull + threadIdx.x; i < n; i += gridDim.x * 256ull) codes[i] = hash(i * 31 + 7);
}

struct Entry {
    void (*kernel)(W4A16Params);
    const char* name;
    int rows;
};
const Entry ENTRIES[] = {{gemm_w4a16_m8, "m8", 8}, {gemm_w4a16_m16, "m16", 16}};

inline void launch(const Entry& e, const W4A16Params& p) {
    e.kernel<<<dim3((p.m + e.rows - 1) / e.rows, (p.n + 63) / 64), 256>>>(p);
    CUDA(cudaGetLastError());
}

inline void unpack(const W4A16Params& p, bf16* w) {
    unpack_awq_bf16<<<(size_t(p.n) * p.k + 8191) / 8192, 256>>>(reinterpret_cast<const uint4*>(p.codes), p.scales, p.zeros,
                                                              w, p.n, p.k, p.group == 64 ? 6 : 7, p.chunks);
    CUDA(cudaGetLastError());
}

struct Weights {
    Buffer<u16> codes;
    Buffer<bf16> scales, zeros;
    Buffer<float> bias;

    Weights(int n, int k, int group)
        : codes(size_t(n) * k / 4), scales(size_t(k / group) * n), zeros(size_t(k / group) * n), bias(n) {
        fill_codes<<<1024, 256>>>(codes, codes.count);
        fill(scales, 41, 0.01f, 0.002f);
        fill(zeros, 42, -0.07f, 0.01f);
        fill(bias, 43, 0, 1);
    }
    W4A16Params params(const bf16* x, int m, int n, int k, int group, int chunks, Elements out) const {
        W4A16Params p{x, codes, scales, zeros, m, n, k, group, chunks, {}};
        p.output.bias = bias;
        p.output.out = out;
        p.output.pitch = n;
        return p;
    }
};

inline void check(int m, int n, int k, int group, int chunks, float magnitude = 1) {
    const size_t count = size_t(m) * n, guard = 4096;
    Weights w(n, k, group);
    Buffer<bf16> x(size_t(m) * k), narrow(count + guard);
    Buffer<float> out(count + guard), expected(count);
    fill(x, 44, 0, magnitude, 61, k);
    for (const Entry& e : ENTRIES) {
        out.poison();
        narrow.poison();
        W4A16Params p = w.params(x, m, n, k, group, chunks, {out.data, 1});
        launch(e, p);
        reference<<<(count + 255) / 256, 256>>>(p, expected);
        p.output.out = {narrow.data, 0};
        launch(e, p);
        CUDA(cudaDeviceSynchronize());
        auto got = out.host();
        auto got_narrow = narrow.host();
        bool intact = true;
        for (size_t i = count; i < got.size(); ++i)
            intact &= got[i] != got[i] && to_float(got_narrow[i]) != to_float(got_narrow[i]);
        got.resize(count);
        got_narrow.resize(count);
        auto want = expected.host();
        Difference d = compare(got, want), d_narrow = compare(got_narrow, want);
        char text[160];
        std::snprintf(text, sizeof text,
                      "w4a16 %s %d x %d x %d of %.0e, groups of %d, %d chunks: relative %.1e, as bf16 %.1e%s", e.name, m, n,
                      k, magnitude, group, chunks, d.relative, d_narrow.relative, intact ? "" : ", wrote past the end");
        report(d.relative < 1e-5 && d_narrow.relative < 2.5e-3 && intact,
               text);  // f32 sums in another order; the rounding to bf16
    }
}

inline void check_unpack(int n, int k, int group, int chunks) {
    const size_t count = size_t(n) * k, guard = 4096;
    Weights w(n, k, group);
    Buffer<bf16> out(count + guard), expected(count + guard);
    out.poison(), expected.poison();
    W4A16Params p = w.params(nullptr, 0, n, k, group, chunks, {});
    unpack(p, out);
    reference_weights<<<(count + 255) / 256, 256>>>(p, expected);
    CUDA(cudaDeviceSynchronize());
    auto got = out.host(), want = expected.host();
    char text[96];
    std::snprintf(text, sizeof text, "unpack awq %d x %d, groups of %d, %d chunks", n, k, group, chunks);
    report(!std::memcmp(got.data(), want.data(), got.size() * 2), text);  // to the bit, and nothing past the end
}

inline void time_unpack(int n, int k) {
    Weights a(n, k, 128), b(n, k, 128), c(n, k, 128);
    const Weights* sets[] = {&a, &b, &c};
    Buffer<bf16> out(size_t(n) * k);
    double ms = time_ms([&](int i) { unpack(sets[i % 3]->params(nullptr, 0, n, k, 128, 1, {}), out); });
    std::printf("time   unpack awq %d x %d %8.4f ms %7.1f GB/s\n", n, k, ms, n * 2.5 * k / ms / 1e6);
}

inline void time(const Entry& e, int m, int n, int k, int chunks, int group = 64) {
    constexpr int SETS = 6;  // more than the second-level cache holds
    std::vector<std::unique_ptr<Weights>> sets;
    for (int i = 0; i < SETS; ++i) sets.push_back(std::make_unique<Weights>(n, k, group));
    Buffer<bf16> x(size_t(m) * k), out(size_t(m) * n);
    fill(x, 44, 0, 1);
    double ms =
        time_ms([&](int i) { launch(e, sets[i % SETS]->params(x, m, n, k, group, chunks, {out.data, 0})); }, 2 * SETS);
    double bytes = double(n) * k / 2 + 4.0 * n * k / group;
    std::printf("time   w4a16 %s %d x %d x %d %8.4f ms %7.2f TB/s of weights\n", e.name, m, n, k, ms, bytes / ms / 1e9);
}

inline void run() {
    check(1, 192, 128, 64, 6);
    check(7, 96, 192, 64, 3);
    check(50, 204, 640, 128, 1);
    check(20, 192, 576, 64, 6);
    check(9, 64, 640, 128, 1, 1e4f);
    check_unpack(96, 320, 64, 3);
    check_unpack(204, 640, 128, 1);
    if (checks_only) return;
    check(28, 18432, 3072, 64, 6);
    time(ENTRIES[0], 4, 18432, 3072, 6);
    time(ENTRIES[1], 28, 18432, 3072, 6);
    time(ENTRIES[1], 28, 9216, 3072, 3);
    time(ENTRIES[1], 50, 18432, 3072, 6);
    // A layer of T5-XXL: qkv, out, gate or up, down.
    for (auto [n, k] : {std::pair(12288, 4096), {4096, 4096}, {10240, 4096}, {4096, 10240}}) time_unpack(n, k);
}

}  // namespace test_w4a16
