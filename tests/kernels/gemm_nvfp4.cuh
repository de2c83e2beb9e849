// gemm_nvfp4_* against the formula in plain code. On anything but sm_120 the product is emulated: this checks all but
// the instruction, of which it takes what the PTX ISA says.
#pragma once

#include "../../kernels/gemm_nvfp4_sm120.cu"
#include "gemm_w4a4.cuh"
#include "nvfp4.cuh"

namespace test_gemm_nvfp4 {

using namespace test_gemm_w4a4;
using test_nvfp4::e2m1;
using test_nvfp4::e4m3;

// Scales [n, k/16], in Nunchaku's order.
inline std::vector<u8> pack_weight_scales(const std::vector<u8>& s, int n, int k) {
    std::vector<u8> out(s.size());
    for (int i = 0; i < n; ++i)
        for (int g = 0; g < k / 16; ++g) {
            int a = i % 128 / 32, b = i % 32 / 8, c = i % 8;
            out[((size_t(i / 128) * (k / 64) + g / 4) * 128 + c * 16 + b * 4 + a) * 4 + g % 4] =
                s[size_t(i) * (k / 16) + g];
        }
    return out;
}

// Byte of an activation's scale, as the kernels exchange it.
inline size_t scale_of(int row, int group, int rows) {
    return (size_t(group / 4) * rows + row) * 4 + group % 4;
}

inline void check(const Case& c) {
    const int groups = c.k / 16, rows = (c.m + 15) / 16 * 16;
    std::vector<int> xq(size_t(rows) * c.k), wq(size_t(c.n) * c.k);
    std::vector<u8> xs(size_t(rows) * groups), ws(size_t(c.n) * groups);
    for (size_t i = 0; i < xq.size(); ++i) xq[i] = hash(i) % 16;
    for (size_t i = 0; i < wq.size(); ++i) wq[i] = hash(i + 99991) % 16;
    for (size_t i = 0; i < xs.size(); ++i) xs[i] = hash(i + 7) % 41;  // 0 to 0.28, subnormal ones too
    for (size_t i = 0; i < ws.size(); ++i) ws[i] = hash(i + 777) % 41;
    auto channels = values(c.n, 2, 0.5f, 0.1f);
    Inputs in(c);

    std::vector<u32> packed(size_t(rows) * c.k / 8);
    std::vector<u8> packed_scales(xs.size());
    for (int i = 0; i < rows; ++i) {
        for (int j = 0; j < c.k; ++j) packed[word_of(i, j, c.k)] |= u32(xq[size_t(i) * c.k + j]) << (4 * (j % 8));
        for (int g = 0; g < groups; ++g) packed_scales[scale_of(i, g, rows)] = xs[size_t(i) * groups + g];
    }
    Buffer<u32> d_x(packed.size()), d_w(wq.size() / 8), d_next(size_t(rows) * c.n / 8);
    Buffer<u8> d_xs(xs.size()), d_ws(ws.size()), d_next_scales(size_t(c.n / 16) * rows);
    Buffer<float> d_channels(c.n);
    upload(d_x, packed.data(), packed.size() * 4);
    upload(d_w, pack_weights(wq, c.n, c.k).data(), wq.size() / 2);
    upload(d_xs, packed_scales.data(), xs.size());
    upload(d_ws, pack_weight_scales(ws, c.n, c.k).data(), ws.size());
    upload(d_channels, channels.data(), c.n * 4);

    GemmNvfp4Params p{};
    p.x = reinterpret_cast<const uint4*>(d_x.data), p.w = reinterpret_cast<const uint4*>(d_w.data);
    p.xs = reinterpret_cast<const u32*>(d_xs.data), p.ws = reinterpret_cast<const uint4*>(d_ws.data);
    p.next_x = reinterpret_cast<uint4*>(d_next.data), p.next_scales = reinterpret_cast<u32*>(d_next_scales.data);
    p.channels = d_channels;
    in.set(p);
    auto kernel = c.epilogue == STORE4  ? gemm_nvfp4_store
                  : c.epilogue == QKV4  ? gemm_nvfp4_qkv
                  : c.epilogue == GELU4 ? gemm_nvfp4_gelu
                                        : gemm_nvfp4_add;
    kernel<<<dim3((c.m + 127) / 128, c.n / 128), 256, nvfp4::SMEM_BYTES>>>(p);
    CUDA(cudaGetLastError());
    CUDA(cudaDeviceSynchronize());

    std::vector<float> y(size_t(c.m) * c.n);
    for (int i = 0; i < c.m; ++i)
        for (int n = 0; n < c.n; ++n) {
            double sum = 0;
            for (int g = 0; g < groups; ++g) {
                double dot = 0;
                for (int j = 16 * g; j < 16 * g + 16; ++j)
                    dot += e2m1(xq[size_t(i) * c.k + j]) * e2m1(wq[size_t(n) * c.k + j]);
                sum += dot * e4m3(xs[size_t(i) * groups + g]) * e4m3(ws[size_t(n) * groups + g]);
            }
            y[size_t(i) * c.n + n] = sum * channels[n];
        }
    in.finish(y);

    char name[96], text[256];
    std::snprintf(name, sizeof name, "nvfp4 %s m%d n%d k%d %s", NAMES[c.epilogue], c.m, c.n, c.k,
                  text_of(c.parts).c_str());
    if (c.epilogue != GELU4) {
        Difference d = compare(in.d_out.host(), y);
        std::snprintf(text, sizeof text, "%s: relative %.1e", name, d.relative);
        return report(d.relative < 4e-3, text);  // bf16 results
    }
    auto codes = d_next.host();
    auto scales = d_next_scales.host();
    size_t one = 0;
    int more = 0;
    double worst_scale = 0;
    for (int i = 0; i < c.m; ++i)
        for (int g = 0; g < c.n / 16; ++g) {
            double top = 0;
            auto x = [&](int n) { return round_bf16(y[size_t(i) * c.n + n] * in.reciprocal[n]); };
            for (int n = 16 * g; n < 16 * g + 16; ++n) top = std::max(top, double(std::abs(x(n))));
            // Off by half a step of e4m3, which is 1/16 or, of small numbers, 2^-10.
            const double found = e4m3(scales[scale_of(i, g, rows)]);
            worst_scale = std::max(worst_scale, std::abs(found - top / 6) / std::max(top / 6, 1.0 / 64));
            for (int n = 16 * g; n < 16 * g + 16; ++n) {
                const unsigned code = codes[word_of(i, n, c.n)] >> (4 * (n % 8)) & 15;
                const int delta = std::abs(test_nvfp4::place_of(code) - test_nvfp4::place(x(n) / (top / 6)));
                one += delta == 1, more += delta > 1;
            }
        }
    const double share = double(one) / (double(c.m) * c.n), low_rank = in.low_rank_error(y);
    std::snprintf(text, sizeof text, "%s: scales off by %.1e, codes off by one %.2f%%, by more %d, low-rank error %.1e",
                  name, worst_scale, 100 * share, more, low_rank);
    report(worst_scale < 0.067 && share < 0.02 && more == 0 && low_rank < 4e-3, text);
}

inline void run() {
    for (int m : {1, 77, 300}) {
        check({m, 384, 256, {{32}}, STORE4, false, {}});
        check({m, 128, 64, {{0}}, STORE4, false, {}});
        check({m, 768, 320, {{48}}, QKV4, false, {}});
        check({m, 384, 448, {{16}}, ADD4, false, {}});
        check({m, 512, 256, {{32}}, GELU4, false, {{48}}});
    }
}

}  // namespace test_gemm_nvfp4
