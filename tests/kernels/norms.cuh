// Norms, GroupNorm and element-wise kernels against their formulas, and the time of what is large.
#pragma once

#include "../../kernels/elementwise.cu"
#include "../../kernels/group_norm.cu"
#include "../../kernels/norm.cu"
#include "harness.cuh"

namespace test_norms {

inline Elements elements(const Buffer<float>& b) {
    return {b.data, 1};
}
inline Elements elements(const Buffer<bf16>& b) {
    return {b.data, 0};
}

inline void check(const char* what, int rows, int cols, const Difference& d, double limit) {
    char text[160];
    std::snprintf(text, sizeof text, "%s %d x %d: relative %.1e", what, rows, cols, d.relative);
    report(d.relative < limit, text);
}

template <class X, class Out>
void check_rows(int rows, int cols, double limit) {
    Buffer<X> x(size_t(rows) * cols);
    Buffer<float> weight(cols);
    Buffer<bf16> bias(cols);
    Buffer<Out> out(size_t(rows) * cols);
    fill(x, 51, 3, 1, 61, cols);
    fill(weight, 52, 1, 0.2f);
    fill(bias, 53, 0, 0.2f);
    NormParams p{elements(x), elements(out), elements(weight), elements(bias), cols, 1e-6f};
    auto values = x.host();
    auto weights = weight.host();
    auto biases = bias.host();
    std::vector<float> layer(values.size()), rms(values.size());
    for (int r = 0; r < rows; ++r) {
        double mean = 0, variance = 0, square = 0;
        auto v = [&](int i) { return double(to_float(values[size_t(r) * cols + i])); };
        for (int i = 0; i < cols; ++i) mean += v(i) / cols, square += v(i) * v(i) / cols;
        for (int i = 0; i < cols; ++i) variance += (v(i) - mean) * (v(i) - mean) / cols;
        for (int i = 0; i < cols; ++i) {
            layer[size_t(r) * cols + i] = (v(i) - mean) / std::sqrt(variance + 1e-6) * weights[i] + to_float(biases[i]);
            rms[size_t(r) * cols + i] = v(i) / std::sqrt(square + 1e-6) * weights[i];
        }
    }
    layer_norm<<<rows, 256>>>(p);
    check("layer norm", rows, cols, compare(out.host(), layer), limit);
    out.poison();
    rms_norm<<<rows, 256>>>(p);
    check("rms norm", rows, cols, compare(out.host(), rms), limit);
}

inline void check_heads(int rows, int heads, int dim) {
    Buffer<bf16> qkv(size_t(rows) * 3 * heads * dim), q(dim), k(dim);
    Buffer<float> rope(size_t(rows) * dim);
    fill(qkv, 54, 0, 1, 61, dim);
    fill(q, 55, 1, 0.2f);
    fill(k, 56, 1, 0.2f);
    fill(rope, 57, 0, 1);
    auto before = qkv.host();
    auto turns = rope.host();
    std::vector<bf16> weights[2] = {q.host(), k.host()};
    std::vector<float> want;
    for (const bf16& v : before) want.push_back(to_float(v));
    for (int r = 0; r < rows; ++r)
        for (int h = 0; h < 2 * heads; ++h) {
            float* u = &want[size_t(r) * 3 * heads * dim + h * dim];
            double square = 0;
            for (int i = 0; i < dim; ++i) square += double(u[i]) * u[i] / dim;
            for (int i = 0; i < dim; i += 2) {
                double s = 1 / std::sqrt(square + 1e-6), a = u[i] * s * to_float(weights[h / heads][i]),
                       b = u[i + 1] * s * to_float(weights[h / heads][i + 1]);
                double cos = turns[size_t(r) * dim + i], sin = turns[size_t(r) * dim + i + 1];
                u[i] = a * cos - b * sin;
                u[i + 1] = a * sin + b * cos;
            }
        }
    qk_norm_rope<<<(rows * 2 * heads + 7) / 8, 256>>>(
        QkNormRopeParams{qkv, elements(q), elements(k), rope, rows, heads, dim});
    check("q and k of heads", rows * heads, dim, compare(qkv.host(), want), 2.5e-3);
}

struct GroupNormTest {
    Buffer<bf16> x, out;
    Buffer<float> weight, bias, sums, affine;
    GroupNormParams p;

    GroupNormTest(int pixels, int channels, int groups, int silu)
        : x(size_t(pixels) * channels),
          out(size_t(pixels) * channels),
          weight(channels),
          bias(channels),
          sums(size_t((pixels + 127) / 128) * groups * 2),
          affine(2 * channels),
          p{x, out, elements(weight), elements(bias), sums, affine, pixels, channels, groups, silu} {
        fill(x, 58, 5, 1, 61, channels);
        fill(weight, 59, 1, 0.2f);
        fill(bias, 60, 0, 0.2f);
    }
    void launch() const {
        const bool any = p.channels % 8;
        (any ? group_norm_sums_any : group_norm_sums)<<<(p.pixels + 127) / 128, 256>>>(p);
        group_norm_affine<<<p.groups, 256>>>(p);
        (any ? group_norm_apply_any : group_norm_apply)<<<132 * 8, 256>>>(p);
        CUDA(cudaGetLastError());
    }
};

inline void check_group_norm(int pixels, int channels, int groups, int silu) {
    GroupNormTest t(pixels, channels, groups, silu);
    t.launch();
    auto values = t.x.host();
    auto weights = t.weight.host(), biases = t.bias.host();
    std::vector<float> want(values.size());
    const int width = channels / groups;
    for (int g = 0; g < groups; ++g) {
        double count = double(pixels) * width, mean = 0, variance = 0;
        auto each = [&](auto f) {
            for (int i = 0; i < pixels; ++i)
                for (int c = g * width; c < (g + 1) * width; ++c) f(size_t(i) * channels + c, c);
        };
        each([&](size_t i, int) { mean += to_float(values[i]) / count; });
        each([&](size_t i, int) { variance += (to_float(values[i]) - mean) * (to_float(values[i]) - mean) / count; });
        each([&](size_t i, int c) {
            double v = (to_float(values[i]) - mean) / std::sqrt(variance + 1e-6) * weights[c] + biases[c];
            want[i] = silu ? v / (1 + std::exp(-v)) : v;
        });
    }
    auto got = t.out.host();
    check(silu ? "group norm and silu" : "group norm", pixels, channels, compare(got, want), 2.5e-3);
    t.out.poison();
    t.launch();
    if (std::memcmp(t.out.host().data(), got.data(), got.size() * 2))
        report(false, "the second run of group norm differs");
}

inline void check_elementwise() {
    const int count = 1001, grid = (count + 255) / 256;
    Buffer<float> a(count), b(count);
    Buffer<bf16> v(count);
    Buffer<u8> bytes(count + 1);
    fill(a, 61, 0, 1);
    fill(v, 62, 0, 1);
    auto before = a.host();
    auto velocity = v.host();
    euler_step<<<grid, 256>>>(elements(a), elements(v), count, -0.25f);
    auto after = a.host();
    bool ok = true;
    for (int i = 0; i < count; ++i) ok &= after[i] == std::fma(-0.25f, to_float(velocity[i]), before[i]);
    report(ok, "euler step");

    convert<<<grid, 256>>>(elements(v), elements(b), count, ACT_SILU);
    std::vector<float> silu;
    for (const bf16& x : velocity) silu.push_back(to_float(x) / (1 + std::exp(-to_float(x))));
    check("silu", 1, count, compare(b.host(), silu), 1e-6);

    std::vector<float> pixels(count);
    for (int i = 0; i < count; ++i) pixels[i] = (i - 300) / 255.0f;  // halfway between codes, and outside on both sides
    pixels[7] = NAN;
    CUDA(cudaMemcpy(b.data, pixels.data(), count * 4, cudaMemcpyHostToDevice));
    to_rgb8<<<grid, 256>>>(elements(b), bytes, count);
    auto rgb = bytes.host();
    ok = rgb[count] == 0xff && rgb[7] == 0;
    for (int i = 0; i < count; ++i)
        if (i != 7)
            ok &= rgb[i] == static_cast<u8>(std::nearbyint(
                                255.0f * std::min(std::max(std::fma(pixels[i], 0.5f, 0.5f), 0.0f), 1.0f)));
    report(ok, "rgb8");
}

inline void run() {
    check_rows<bf16, bf16>(5, 3072, 2.5e-3);
    check_rows<float, bf16>(7, 4096, 2.5e-3);
    check_rows<float, float>(3, 77, 1e-5);
    check_rows<bf16, float>(300, 768, 1e-5);
    check_heads(5, 3, 128);
    check_heads(33, 2, 96);
    check_heads(2, 1, 512);
    check_group_norm(1, 32, 32, 0);
    check_group_norm(300, 128, 32, 1);
    check_group_norm(129, 512, 32, 0);
    check_group_norm(1000, 96, 8, 1);
    check_group_norm(77, 12, 3, 1);
    check_group_norm(200, 2560, 32, 1);
    check_group_norm(130, 300, 4, 0);
    check_elementwise();

    if (checks_only) return;
    const int images[][2] = {{1024, 256}, {1024, 128}, {512, 256}, {128, 512}};
    for (auto& image : images) {
        const int side = image[0], channels = image[1];
        GroupNormTest t(side * side, channels, 32, 1);
        double ms = time_ms([&](int) { t.launch(); });
        std::printf("time   group norm %d x %d x %d %8.4f ms %6.2f TB/s\n", side, side, channels, ms,
                    6.0 * side * side * channels / ms / 1e9);
    }
    Buffer<float> x(512 * 4096), weight(4096);
    Buffer<bf16> out(512 * 4096);
    fill(x, 51, 0, 1);
    fill(weight, 52, 1, 0.2f);
    NormParams p{elements(x), elements(out), elements(weight), {}, 4096, 1e-6f};
    std::printf("time   rms norm 512 x 4096 %8.4f ms\n", time_ms([&](int) { rms_norm<<<512, 256>>>(p); }));
}

}  // namespace test_norms
