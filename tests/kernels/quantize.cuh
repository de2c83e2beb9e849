// quantize_* against the formula, and its speed.
#pragma once

#include "../../kernels/quantize.cu"
#include "harness.cuh"
#include "nvfp4.cuh"
#include "parts.cuh"

namespace test_quantize {

// With `rows` a CTA where it also projects down, 4 where not.
inline void launch(const QuantizeParams& p, QuantizeTo to = TO_W4A8, int rows = 16) {
    if (!quantize::projects(to)) rows = 4;
    auto kernel = to == TO_W4A8        ? quantize_w4a8
                  : to == TO_W4A4      ? quantize_w4a4
                  : to == TO_W4A4_SM90 ? quantize_w4a4_sm90
                                       : quantize_nvfp4;
    int smem = quantize::smem_bytes(to, p.k, rows);
    allow_smem(kernel, smem);
    kernel<<<(p.m + rows - 1) / rows, 32 * rows, smem>>>(p);
    CUDA(cudaGetLastError());
}

struct Data {
    int rank;
    Buffer<bf16> x, down, lora, h, scale, shift;
    Buffer<float> reciprocal, xs;
    Buffer<signed char> xq;
    QuantizeParams p;

    Data(int m, int k, const Parts& parts, bool norm)
        : rank(rank_of(parts)),
          x(size_t(m) * k),
          down(size_t(rank) * k + 1),
          lora(size_t(m) * rank + 1),
          h(size_t(m) * k),
          scale(k),
          shift(k),
          reciprocal(k),
          xs(size_t(m + 15) * k / 64),
          xq(size_t(m + 15) * k) {
        fill(x, 31, 0.3f, 1.0f, 97, k);
        fill(reciprocal, 32, 1.0f, 0.2f);
        fill(down, 33, 0, 0.05f);
        fill(scale, 34, 1.0f, 0.3f);
        fill(shift, 35, 0, 0.3f);
        p = {x, norm ? scale.data : nullptr, shift, reciprocal, xq, xs, lora, h, m, k, rank, {}};
        set_down(p.parts, parts, down.data, k);
    }
};

// The code of channel `j` in row `i`; of NVFP4 the place of its number.
inline int code(const std::vector<signed char>& xq, QuantizeTo to, int i, int j, int k) {
    if (to == TO_W4A8) return xq[size_t(i) * k + j];
    size_t word =
        ((size_t(i / 16) * (k / 64) + j / 64) * 32 + i % 8 * 4 + j % 32 / 8) * 4 + j % 64 / 32 * 2 + i % 16 / 8;
    int nibble = xq[word * 4 + j % 8 / 2] >> (j % 2 * 4) & 15;
    if (to == TO_NVFP4) return test_nvfp4::place_of(nibble);
    return nibble < 8 ? nibble : nibble - 16;
}

inline void check(int m, int k, const Parts& parts, bool norm, QuantizeTo to, int rows_a_block) {
    Data d(m, k, parts, norm);
    const int rank = d.rank;
    const std::vector<float> strengths = strengths_of(parts);
    launch(d.p, to, rows_a_block);
    CUDA(cudaDeviceSynchronize());
    auto x = d.x.host(), down = d.down.host(), lora = d.lora.host(), left = d.h.host(), scale = d.scale.host(), shift = d.shift.host();
    auto xs = d.xs.host(), reciprocal = d.reciprocal.host();
    auto xq = d.xq.host();
    const int block = to == TO_W4A8 ? k : to == TO_W4A4 ? 64 : 16;
    const int top_code = to == TO_W4A8 ? 127 : to == TO_W4A4 ? 7 : 6;
    size_t one = 0;
    int more = 0;
    double worst_scale = 0;
    std::vector<float> got, expected;
    int step = m > 400 ? 53 : 1, rows = 0;
    for (int i = 0; i < m; i += step, ++rows) {
        std::vector<double> h(k);
        double mean = 0, var = 0;
        for (int j = 0; j < k; ++j) h[j] = to_float(x[size_t(i) * k + j]), mean += h[j] / k;
        for (int j = 0; j < k; ++j) var += (h[j] - mean) * (h[j] - mean) / k;
        for (int j = 0; norm && j < k; ++j)
            h[j] = (h[j] - mean) / std::sqrt(var + 1e-6) * to_float(scale[j]) + to_float(shift[j]);
        for (int b = 0; b < k; b += block) {
            double top = 0;
            for (int j = b; j < b + block; ++j) top = std::max(top, std::abs(h[j] * reciprocal[j]));
            const float* stored = &xs[to == TO_W4A8 ? i : size_t(b / 64) * ((m + 15) / 16 * 16) + i];
            double found = *stored;
            if (to == TO_NVFP4) found = test_nvfp4::e4m3(reinterpret_cast<const u8*>(stored)[b / 16 % 4]);
            worst_scale = std::max(worst_scale, std::abs(found / (top / top_code) - 1));
            for (int j = b; j < b + block; ++j) {
                double v = h[j] * reciprocal[j] / (top / top_code);
                int delta =
                    std::abs(code(xq, to, i, j, k) - (to == TO_NVFP4 ? test_nvfp4::place(v) : int(std::lrint(v))));
                one += delta == 1;
                more += delta > 1;
            }
        }
        if (!quantize::projects(to)) {
            // Instead of a projection, h; without a norm nothing.
            for (int j = 0; j < k; ++j) {
                const float found = to_float(left[size_t(i) * k + j]);
                expected.push_back(norm ? h[j] : 0), got.push_back(!norm && found != found ? 0 : found);
            }
            continue;
        }
        for (int r = 0; r < rank; ++r) {
            double sum = 0;
            for (int j = 0; j < k; ++j) sum += h[j] * to_float(down[size_t(r) * k + j]);
            expected.push_back(strengths[r] * sum), got.push_back(to_float(lora[size_t(i) * rank + r]));
        }
    }
    Difference diff = compare(got, expected);
    double share = double(one) / (double(rows) * k);
    char text[200];
    std::snprintf(
        text, sizeof text,
        "quantise %s m%d k%d %s%s: scales off by %.1e, codes off by one %.2f%%, by more %d, low-rank or h error %.1e",
        to == TO_W4A8   ? "w4a8"
        : to == TO_W4A4 ? "w4a4"
                        : "nvfp4",
        m, k, text_of(parts).c_str(), norm ? " norm" : "", worst_scale, 100 * share, more, diff.relative);
    // h is rounded to bf16 first; in w4a4 so are the smoothed values and the scales. nvfp4's scales are of 4 bits.
    report(worst_scale < (to == TO_NVFP4 ? 0.075 : 1.2e-2) && share < 0.02 && more == 0 && diff.relative < 5e-3, text);
    Bits first, second;
    first.add(d.xq), first.add(d.xs), first.add(d.lora), first.add(d.h);
    d.xq.poison(), d.xs.poison(), d.lora.poison(), d.h.poison();
    launch(d.p, to, rows_a_block);
    second.add(d.xq), second.add(d.xs), second.add(d.lora), second.add(d.h);
    same_bits(first, second);
}

// quantize_w4a4_sm90 gives the codes and scales of quantize_w4a4, and the h of quantize_w4a8.
inline void check_sm90(int m, int k, bool norm) {
    Data plain(m, k, {{32}}, norm), eight(m, k, {{32}}, norm), d(m, k, {{32}}, norm);
    launch(plain.p, TO_W4A4, 8), launch(eight.p, TO_W4A8), launch(d.p, TO_W4A4_SM90);
    CUDA(cudaDeviceSynchronize());
    const u8 numbers[16] = {0,    0x38, 0x40, 0x44, 0x48, 0x4a, 0x4c, 0x4e,
                            0xd0, 0xce, 0xcc, 0xca, 0xc8, 0xc4, 0xc0, 0xb8};
    auto want = plain.xq.host(), got = d.xq.host();
    auto want_xs = plain.xs.host(), got_xs = d.xs.host();
    size_t wrong = 0;
    for (int i = 0; i < m; ++i) {
        for (int j = 0; j < k; ++j)
            wrong += u8(got[size_t(i) * k + j]) != numbers[code(want, TO_W4A4, i, j, k) & 15];
        for (int g = 0; g < k / 64; ++g)
            wrong += got_xs[size_t(g) * m + i] != want_xs[size_t(g) * ((m + 15) / 16 * 16) + i];
    }
    Bits want_h, got_h;
    want_h.add(eight.h), got_h.add(d.h);
    char text[96];
    std::snprintf(text, sizeof text, "quantise w4a4 sm90 m%d k%d%s: %zu differ from w4a4's", m, k, norm ? " norm" : "",
                  wrong);
    report(wrong == 0 && want_h.bytes == got_h.bytes, text);
}

inline void run() {
    // What a block of sm_75 has shared memory for.
    const int rows = ARCH >= 800 ? 16 : 8, largest = ARCH >= 800 ? 4096 : 3584;
    for (int m : {1, 37, 300}) {
        check_sm90(m, 320, true);
        check_sm90(m, 3072, false);
        for (QuantizeTo to : {TO_W4A8, TO_W4A4, TO_NVFP4}) {
            check(m, 256, {{32}}, true, to, 16);
            check(m, 1024, {{16}}, false, to, 8);
            check(m, 3072, {{32}, {16, -0.7f}, {128, 2.0f}}, true, to, rows);
            check(m, 2112, {{128}}, true, to, 8);
            check(m, largest, {{0}, {48, 0.3f}}, false, to, rows);
            check(m, 320, {{16}, {16}, {32, 0.5f}, {16, -1}, {64, 3}, {16, 0.1f}, {16, 1}, {48, -2}}, true, to, 8);
            check(m, 320, Parts(MAX_PARTS, {16, 0.5f}), false, to, 16);
        }
    }
    if (checks_only) return;
    check(4608, 3072, {{32}}, true, TO_W4A8, 16);
    for (int m : {4608, 4096, 512}) {
        for (bool norm : {true, false}) {
            Data a(m, 3072, {{0}}, norm), b(m, 3072, {{0}}, norm), c(m, 3072, {{0}}, norm);
            const QuantizeParams* sets[] = {&a.p, &b.p, &c.p};
            double ms = time_ms([&](int i) { launch(*sets[i % 3]); });
            std::printf("time   quantise%s m%d k3072 %8.4f ms %7.1f GB/s\n", norm ? " norm" : "", m, ms,
                        m * 3072.0 * (norm ? 5 : 3) / ms / 1e6);
        }
    }
}

}  // namespace test_quantize
