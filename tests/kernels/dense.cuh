// Dense linears and 3x3 convolutions against the formula, and their speed at the shapes of FLUX.1's T5, CLIP and VAE.
#pragma once

#include "../../kernels/conv3x3_bf16.cu"
#include "../../kernels/gemm_bf16.cu"
#include "harness.cuh"

namespace test_dense {

// Output elements past the end, which have to stay poisoned.
constexpr size_t GUARD = 4096;

template <class T>
bool guard_is_intact(const std::vector<T>& all) {
    const u8* bytes = reinterpret_cast<const u8*>(all.data() + (all.size() - GUARD));
    return std::all_of(bytes, bytes + GUARD * sizeof(T), [](u8 b) { return b == 0xff; });
}

__device__ inline float plain_activation(float v, int activation) {
    switch (activation) {
        case ACT_SILU:
            return v / (1 + exp(-v));
        case ACT_GELU_TANH:
            return 0.5 * v * (1 + tanh(0.7978845608028654 * (v + 0.044715 * v * v * v)));
        case ACT_QUICK_GELU:
            return v / (1 + exp(-1.702 * v));
        default:
            return v;
    }
}

__device__ inline float plain_output(float v, const product::Output& o, const float* add, int row, int column) {
    const long long at = static_cast<long long>(row) * o.pitch + column;
    v *= o.scale;
    if (o.bias) v += o.bias[column];
    if (o.before.data) v += o.before.load(static_cast<long long>(row) * o.before_pitch + column);
    v = plain_activation(v, o.activation);
    if (o.by) v *= __bfloat162float(o.by[at]);
    if (o.gate) v *= __bfloat162float(o.gate[column]);
    return add ? v + add[at] : v;
}

__global__ void plain_linear(LinearParams p, const float* add, float* out) {
    long long at = blockIdx.x * 256ll + threadIdx.x;
    if (at >= static_cast<long long>(p.m) * p.n) return;
    int row = at / p.n, column = at % p.n;
    double sum = 0;
    for (int i = 0; i < p.k; ++i)
        sum += __bfloat162float(p.x[static_cast<long long>(row) * p.k + i]) *
               __bfloat162float(p.w[static_cast<long long>(column) * p.k + i]);
    out[static_cast<long long>(row) * p.output.pitch + column] = plain_output(sum, p.output, add, row, column);
}

__global__ void plain_conv(ConvParams p, int m, const float* add, float* out) {
    long long at = blockIdx.x * 256ll + threadIdx.x;
    if (at >= static_cast<long long>(m) * p.n) return;
    int pixel = at / p.n, column = at % p.n, height = p.height << p.upsample, width = p.width << p.upsample;
    int out_width = width / p.stride;
    double sum = 0;
    for (int dy = 0; dy < 3; ++dy)
        for (int dx = 0; dx < 3; ++dx) {
            int y = pixel / out_width * p.stride + dy - (p.stride == 1),
                x = pixel % out_width * p.stride + dx - (p.stride == 1);
            if (y < 0 || x < 0 || y >= height || x >= width) continue;
            const bf16* from = p.x + (static_cast<long long>(y >> p.upsample) * p.width + (x >> p.upsample)) * p.c;
            const bf16* w = p.w + (static_cast<long long>(column) * 9 + 3 * dy + dx) * p.c;
            for (int c = 0; c < p.c; ++c) sum += __bfloat162float(from[c]) * __bfloat162float(w[c]);
        }
    out[static_cast<long long>(pixel) * p.output.pitch + column] = plain_output(sum, p.output, add, pixel, column);
}

__global__ void widen(Elements from, float* to, long long count) {
    long long i = blockIdx.x * 256ll + threadIdx.x;
    if (i < count) to[i] = from.load(i);
}

inline int blocks(long long count) {
    return (count + 255) / 256;
}
inline int tiles(int m, int n) {
    return (m + 127) / 128 * ((n + 127) / 128);
}

// The epilogues that the models use.
struct Use {
    const char* name;
    bool bias, by, gate, add, f32;
    int activation;
    bool before = false;
    int margin = 0;  // elements between rows
};
const Use USES[] = {
    {"store", false, false, false, false, false, ACT_NONE},
    {"silu", true, false, false, false, false, ACT_SILU},
    {"gelu f32", true, false, false, false, true, ACT_GELU_TANH},
    {"quick gelu", true, false, false, false, false, ACT_QUICK_GELU},
    {"gelu mul", false, true, false, false, false, ACT_GELU_TANH},
    {"gate add", true, false, true, true, false, ACT_NONE},
    {"add f32", true, false, false, true, true, ACT_NONE},
    {"before, pitch", true, false, false, true, false, ACT_SILU, true, 24},
};

// Runs `launch` with each epilogue on an [m, n] output and compares with what `plain` gives.
template <class Params, class Launch, class Plain>
void check_uses(const char* name, Params p, int m, int n, Launch launch, Plain plain) {
    for (const Use& use : USES) {
        const int pitch = n + use.margin;
        const size_t count = size_t(m) * pitch;
        Buffer<float> bias(n), expected(count), addend(count), before(count), out_f32(count + GUARD);
        Buffer<bf16> by(count), gate(n), out_bf16(count + GUARD);
        fill(bias, 3, 0, 1);
        fill(by, 4, 0, 1);
        fill(gate, 5, 0, 1);
        fill(before, 9, 0, 1);
        p.output = {};
        p.output.pitch = pitch;
        if (use.before) p.output.before = {before.data, 1}, p.output.before_pitch = n, p.output.scale = 0.7f;
        if (use.bias) p.output.bias = bias;
        if (use.by) p.output.by = by;
        if (use.gate) p.output.gate = gate;
        p.output.activation = use.activation;
        p.output.out = use.f32 ? Elements{out_f32.data, 1} : Elements{out_bf16.data, 0};
        if (use.add) p.output.add = p.output.out;
        auto run = [&] {
            out_f32.poison();
            out_bf16.poison();
            if (use.add) {
                fill_kernel<<<1024, 256>>>(out_f32.data, count, 6, 0.0f, 1.0f, 0, 1);
                fill_kernel<<<1024, 256>>>(out_bf16.data, count, 6, 0.0f, 1.0f, 0, 1);
            }
            widen<<<blocks(count), 256>>>(p.output.out, addend, count);
            launch(p);
            CUDA(cudaGetLastError());
            CUDA(cudaDeviceSynchronize());
        };
        run();
        // What lies between the rows stays as it was.
        widen<<<blocks(count), 256>>>(p.output.out, expected, count);
        plain(p, use.add ? addend.data : nullptr, expected.data);
        auto f32 = out_f32.host();
        auto narrow = out_bf16.host();
        bool intact = guard_is_intact(f32) && guard_is_intact(narrow);
        run();
        auto again_f32 = out_f32.host();
        auto again = out_bf16.host();
        bool same = !std::memcmp(again_f32.data(), f32.data(), f32.size() * 4) &&
                    !std::memcmp(again.data(), narrow.data(), narrow.size() * 2);
        f32.resize(count);
        narrow.resize(count);
        auto want = expected.host();
        Difference d = use.f32 ? compare(f32, want) : compare(narrow, want);
        // Sums in f32 in another order, then the rounding to bf16, 2^-8 at most.
        bool ok = use.f32 ? d.relative < 2e-5 : d.relative < 4e-3 && d.worst < 6e-3;
        char text[200];
        std::snprintf(text, sizeof text, "%s %s: relative %.1e worst %.1e%s%s", name, use.name, d.relative, d.worst,
                      intact ? "" : ", wrote past the end", same ? "" : ", the second run differs");
        report(ok && intact && same, text);
    }
}

struct LinearEntry {
    void (*kernel)(LinearParams);
    const char* name;
    bool any;
};
const LinearEntry LINEARS[] = {
    {gemm_bf16_k8, "mma", false},
#if SVDQ_HOST_ARCH >= 900
    {gemm_bf16_sm90, "wgmma", false},
#endif
    {gemm_bf16_any_k, "any k", true}};

inline void launch(const LinearEntry& e, const LinearParams& p) {
    allow_smem(e.kernel, product::SMEM_BYTES);
    e.kernel<<<tiles(p.m, p.n), 128, product::SMEM_BYTES>>>(p);
}

inline void check_linear(int m, int n, int k) {
    Buffer<bf16> x(size_t(m) * k), w(size_t(n) * k);
    fill(x, 1, 0, 1, 61, k);
    fill(w, 2, 0, 1 / std::sqrt(float(k)));
    for (const LinearEntry& e : LINEARS) {
        if (k % 8 && !e.any) continue;
        char name[100];
        std::snprintf(name, sizeof name, "linear %s %d x %d x %d", e.name, m, n, k);
        check_uses(
            name, LinearParams{x, w, m, n, k, {}}, m, n, [&](const LinearParams& p) { launch(e, p); },
            [&](const LinearParams& p, const float* add, float* out) {
                plain_linear<<<blocks(size_t(m) * n), 256>>>(p, add, out);
            });
    }
}

// Activations from what fp16 rounds off to what it does not hold.
inline void check_range(float magnitude, double limit) {
    const int m = 130, n = 72, k = 264;
    Buffer<bf16> x(m * k), w(n * k);
    Buffer<float> out(m * n), expected(m * n);
    fill(x, 10, 0, magnitude, 61, k);
    fill(w, 2, 0, 1 / std::sqrt(float(k)));
    for (const LinearEntry& e : LINEARS) {
        LinearParams p{x, w, m, n, k, {}};
        p.output.out = {out.data, 1};
        p.output.pitch = n;
        launch(e, p);
        CUDA(cudaGetLastError());
        plain_linear<<<blocks(m * n), 256>>>(p, nullptr, expected);
        const Difference d = compare(out.host(), expected.host());
        char text[100];
        std::snprintf(text, sizeof text, "linear %s of %.0e: relative %.1e", e.name, magnitude, d.relative);
        report(d.relative < limit, text);
    }
}

struct ConvEntry {
    void (*kernel)(ConvParams);
    const char* name;
    bool any;
};
const ConvEntry CONVS[] = {
    {conv3x3_bf16_c8, "mma", false},
#if SVDQ_HOST_ARCH >= 900
    {conv3x3_bf16_sm90, "wgmma", false},
#endif
    {conv3x3_bf16_any_c, "any c", true}};

inline int pixels(const ConvParams& p) {
    return ((p.height << p.upsample) / p.stride) * ((p.width << p.upsample) / p.stride);
}

inline void launch(const ConvEntry& e, const ConvParams& p) {
    allow_smem(e.kernel, product::SMEM_BYTES);
    e.kernel<<<tiles(pixels(p), p.n), 128, product::SMEM_BYTES>>>(p);
}

inline void check_conv(int height, int width, int c, int n, int stride, int upsample) {
    Buffer<bf16> x(size_t(height) * width * c), w(size_t(n) * 9 * c);
    fill(x, 7, 0, 1);
    fill(w, 8, 0, 1 / std::sqrt(9.0f * c));
    ConvParams p{x, w, height, width, c, n, stride, upsample, {}};
    const int m = pixels(p);
    for (const ConvEntry& e : CONVS) {
        if (c % 8 && !e.any) continue;
        char name[100];
        std::snprintf(name, sizeof name, "conv %s %d x %d, %d -> %d, stride %d%s", e.name, height, width, c, n, stride,
                      upsample ? ", upsampled" : "");
        check_uses(
            name, p, m, n, [&](const ConvParams& p) { launch(e, p); },
            [&](const ConvParams& p, const float* add, float* out) {
                plain_conv<<<blocks(size_t(m) * n), 256>>>(p, m, add, out);
            });
    }
}

inline void time_linear(int m, int n, int k, double ceiling) {
    Buffer<bf16> x(size_t(m) * k), w(size_t(n) * k), out(size_t(m) * n);
    fill(x, 1, 0, 1);
    fill(w, 2, 0, 1 / std::sqrt(float(k)));
    LinearParams p{x, w, m, n, k, {}};
    p.output.out = {out.data, 0};
    p.output.pitch = n;
    for (const LinearEntry& e : LINEARS) {
        if (e.any) continue;
        double ms = time_ms([&](int) { launch(e, p); }), rate = 2.0 * m * n * k / ms / 1e9;
        std::printf("time   linear %s %d x %d x %d %8.4f ms %7.1f TF/s %5.1f%%\n", e.name, m, n, k, ms, rate,
                    100 * rate / ceiling);
    }
}

inline void time_conv(int side, int c, int n, double ceiling) {
    Buffer<bf16> x(size_t(side) * side * c), w(size_t(n) * 9 * c), out(size_t(side) * side * n);
    fill(x, 7, 0, 1);
    fill(w, 8, 0, 1 / std::sqrt(9.0f * c));
    ConvParams p{x, w, side, side, c, n, 1, 0, {}};
    p.output.out = {out.data, 0};
    p.output.pitch = n;
    for (const ConvEntry& e : CONVS) {
        if (e.any) continue;
        double ms = time_ms([&](int) { launch(e, p); }, 4, 8), rate = 18.0 * side * side * c * n / ms / 1e9;
        std::printf("time   conv %s %d x %d, %d -> %d %8.4f ms %7.1f TF/s %5.1f%%\n", e.name, side, side, c, n, ms,
                    rate, 100 * rate / ceiling);
    }
}

inline void run(double ceiling) {
    const int linears[][3] = {{333, 200, 264}, {130, 3, 40},   {65, 130, 33},   {300, 257, 7},
                              {1, 8, 8},       {77, 768, 768}, {129, 64, 3072}, {1300, 136, 72}};
    for (auto& s : linears)
        if (!checks_only || s[2] < 300) check_linear(s[0], s[1], s[2]);
    check_range(1e-4f, ARCH >= 800 ? 2e-5 : 2e-3);  // mma::ACTIVATION
    check_range(1e4f, 2e-5);                        // 20 times that in some channels

    const int convs[][6] = {{13, 17, 16, 24, 1, 0},   {13, 17, 16, 24, 1, 1}, {14, 18, 64, 40, 2, 0},
                            {15, 19, 64, 40, 2, 0},   {9, 11, 4, 8, 1, 0},    {9, 11, 3, 5, 2, 0},
                            {20, 20, 128, 130, 1, 0}, {7, 5, 72, 3, 1, 1},    {1, 1, 8, 8, 1, 0},
                            {40, 33, 512, 256, 1, 0}};
    for (auto& s : convs)
        if (!checks_only || s[2] < 100) check_conv(s[0], s[1], s[2], s[3], s[4], s[5]);

    if (checks_only) return;
    const int shapes[][3] = {{512, 12288, 4096}, {512, 4096, 4096}, {512, 10240, 4096}, {512, 4096, 10240},
                             {77, 3072, 768},    {77, 768, 3072},   {4096, 3072, 64},   {4096, 64, 3072},
                             {16384, 512, 512},  {4608, 9216, 3072}};
    for (auto& s : shapes) time_linear(s[0], s[1], s[2], ceiling);
    const int images[][3] = {{128, 512, 512},  {256, 512, 512},  {512, 512, 256}, {512, 256, 256},
                             {1024, 256, 128}, {1024, 128, 128}, {1024, 128, 3}};
    for (auto& s : images) time_conv(s[0], s[1], s[2], ceiling);
}

}  // namespace test_dense
