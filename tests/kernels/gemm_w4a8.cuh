// gemm_w4a8_*_sm90 against the formula in plain code, and its speed at FLUX.1-dev's shapes.
#pragma once

#include "../../kernels/gemm_w4a8_sm90.cu"
#include "harness.cuh"
#include "parts.cuh"

namespace test_gemm {

// Every `step`-th row of y by the formula, in double precision beyond the integer sums; `up` is [n, rank].
__global__ void reference(const void* xq, bool blocked, const signed char* wq, const float* xs, const float* ws,
                          const bf16* lora, const bf16* up, const bf16* bias, float* y, int m, int n, int k, int rank,
                          int step) {
    int column = blockIdx.x * 128 + threadIdx.x, row = blockIdx.y * step;
    if (column >= n) return;
    double sum = 0;
    int block = blocked ? 256 : k;
    for (int b = 0; b < k; b += block) {
        int dot = 0;
        for (int i = b; i < min(b + block, k); ++i) {
            size_t at = static_cast<size_t>(row) * k + i;
            int x = blocked ? static_cast<const u8*>(xq)[at] : static_cast<const signed char*>(xq)[at];
            dot += x * wq[static_cast<size_t>(column) * k + i];
        }
        sum += double(dot) * xs[static_cast<size_t>(b / block) * m + row];
    }
    double out = sum * ws[column] + double(__bfloat162float(bias[column]));
    for (int r = 0; r < rank; ++r) {
        out += double(__bfloat162float(lora[static_cast<size_t>(row) * rank + r])) *
               __bfloat162float(up[static_cast<size_t>(column) * rank + r]);
    }
    y[static_cast<size_t>(blockIdx.y) * n + column] = out;
}

struct Case {
    int m, n, k;
    Parts parts;
    Epilogue epilogue;
    bool blocked;
    Parts next_parts;
    int clusters = 0;  // GELU: how many, 0 for as many as the library launches

    int rank() const { return rank_of(parts); }
    int next_rank() const { return rank_of(next_parts); }
    GeluGrid grid() const {
        return clusters ? GeluGrid{clusters, GeluGrid::slots_of(clusters, m, n)} : GeluGrid::of(m, n);
    }
};

using Kernel = void (*)(GemmParams);

struct Entry {
    Kernel kernel;
    int columns, smem;
};

inline Entry entry(const Case& c) {
    switch (c.epilogue) {
        case STORE:
            return {gemm_w4a8_store_sm90, 256, linear_sm90::Shape<w4a8::Wide>::SMEM_BYTES};
        case QKV:
            return {gemm_w4a8_qkv_sm90, 256, linear_sm90::Shape<w4a8::Wide>::SMEM_BYTES};
        case GELU:
            return {gemm_w4a8_gelu_sm90, 256, linear_sm90::Shape<w4a8::Wide>::SMEM_BYTES};
        default:
            return {c.blocked ? gemm_w4a8_add_u8_sm90 : gemm_w4a8_add_sm90, 192,
                    linear_sm90::Shape<w4a8::Narrow>::SMEM_BYTES};
    }
}

// Everything of one linear on the device.
struct Data {
    Case c;
    int blocks, tiles;
    Buffer<u8> xq;
    Buffer<signed char> wq;
    Buffer<float> xs, ws;
    Buffer<bf16> lora, up, bias, columns, down, out, before;
    Buffer<__half> rope;
    Buffer<float> reciprocal, next_scales, next_lora;
    Buffer<u8> codes;

    explicit Data(const Case& c)
        : c(c),
          blocks(c.blocked ? (c.k + 255) / 256 : 1),
          tiles((c.n + 255) / 256),
          xq(size_t(c.m) * c.k),
          wq(size_t(c.n) * c.k),
          xs(size_t(blocks) * c.m),
          ws(c.n),
          lora(size_t(c.m) * c.rank() + 1),
          up(size_t(c.n) * c.rank() + 1),
          bias(c.n),
          columns(std::max(c.n, 256)),
          down(size_t(c.next_rank()) * c.n + 1),
          out(size_t(c.m) * c.n),
          before(size_t(c.m) * c.n),
          rope(size_t(c.m) * 128),
          reciprocal(c.n),
          next_scales(size_t(tiles) * c.m),
          next_lora(c.grid().slots * slot_sm90(c.m, c.next_rank()) + 1),
          codes(size_t(c.m) * c.n) {
        if (c.blocked) {
            fill(xq, 1, 60, 40, 37, c.k);
        } else {
            fill(*reinterpret_cast<Buffer<signed char>*>(&xq), 1, 0, 25, 37, c.k);
        }
        fill(wq, 2, 0, 30);
        fill(xs, 3, 0.02f, 0.004f);
        fill(ws, 4, 0.02f * std::sqrt(1.0f / c.k), 0.002f * std::sqrt(1.0f / c.k));
        fill(lora, 5, 0, 0.4f);
        fill(up, 6, 0, 0.3f);
        fill(bias, 7, 0, 0.5f);
        fill(columns, 8, 1.0f, 0.2f);
        fill(reciprocal, 12, 1.0f, 0.2f);
        fill(down, 9, 0, 0.05f);
        fill(before, 10, 0, 1.0f);
        fill(rope, 11, 0, 0.7f);
    }

    GemmParams params() const {
        Entry e = entry(c);
        GemmParams p{};
        p.x = map_bytes(xq, c.m, c.k, 128);
        p.w = map_bytes(wq, c.n, c.k, e.columns / 2);
        p.lora = c.rank() ? map_bf16(lora, c.m, c.rank(), 128) : p.x;
        set_up(p.parts, c.parts, up.data, c.n, e.columns / 2), set_down(p.next_parts, c.next_parts, down.data, c.n);
        p.rank = c.rank(), p.next_rank = c.next_rank();
        p.out = c.epilogue == GELU ? map_bytes(codes, c.m, c.n, 64) : map_bf16(out, c.m, c.n, 64);
        p.xs = xs, p.ws = ws, p.bias = bias, p.columns = columns, p.reciprocal = reciprocal,
        p.rope = reinterpret_cast<const u32*>(rope.data);
        p.next_scales = next_scales, p.next_lora = next_lora, p.next_slots = c.grid().slots;
        p.m = c.m, p.n = c.n, p.k = c.k;
        return p;
    }
};

inline void launch(const Case& c, const GemmParams& p) {
    Entry e = entry(c);
    allow_smem(e.kernel, e.smem);
    int tiles = (c.m + 255) / 256 * ((c.n + e.columns - 1) / e.columns);
    const int clusters = c.epilogue == GELU ? c.grid().clusters : std::min(66, tiles);
    e.kernel<<<2 * clusters, 384, e.smem>>>(p);
    CUDA(cudaGetLastError());
}

inline std::string name(const Case& c) {
    const char* names[] = {"store", "add", "qkv", "gelu"};
    char text[256];
    std::snprintf(text, sizeof text, "w4a8 %s%s m%d n%d k%d %s%s", names[c.epilogue], c.blocked ? " u8" : "", c.m, c.n,
                  c.k, text_of(c.parts).c_str(),
                  c.next_parts.size() > 1 ? (" next " + text_of(c.next_parts)).c_str() : "");
    return text;
}

// The epilogue of reference rows, in place; what the kernel should have left in `out`, or for GELU the unquantised g.
inline void finish_reference(std::vector<float>& y, const Data& d, int step) {
    const Case& c = d.c;
    auto columns = d.columns.host(), before = d.before.host();
    auto rope = d.rope.host();
    int rows = y.size() / c.n;
    for (int i = 0; i < rows; ++i) {
        float* v = &y[size_t(i) * c.n];
        size_t row = size_t(i) * step;
        for (int n = 0; n < c.n; ++n) {
            if (c.epilogue == ADD) v[n] = to_float(before[row * c.n + n]) + v[n] * to_float(columns[n]);
            if (c.epilogue == GELU)
                v[n] = 0.5 * v[n] * (1 + std::tanh(0.7978845608 * (v[n] + 0.044715 * double(v[n]) * v[n] * v[n])));
        }
        for (int h = 0; c.epilogue == QKV && h < c.n / 128 * 2 / 3; ++h) {
            float* u = v + 128 * h;
            double square = 0;
            for (int j = 0; j < 128; ++j) square += double(u[j]) * u[j];
            double scale = 1 / std::sqrt(square / 128 + 1e-6);
            for (int j = 0; j < 128; j += 2) {
                const bf16* w = &columns[h < c.n / 384 ? 0 : 128];
                double a = u[j] * scale * to_float(w[j]), b = u[j + 1] * scale * to_float(w[j + 1]);
                double cos = __half2float(rope[row * 128 + j]), sin = __half2float(rope[row * 128 + j + 1]);
                u[j] = a * cos - b * sin;
                u[j + 1] = a * sin + b * cos;
            }
        }
    }
}

inline void check_gelu(const Data& d, const std::vector<float>& g, int step) {
    const Case& c = d.c;
    auto codes = d.codes.host();
    auto scales = d.next_scales.host(), partial = d.next_lora.host();
    auto reciprocal = d.reciprocal.host();
    auto down = d.down.host();
    int rows = g.size() / c.n, off = 0;
    size_t wrong = 0;
    double worst_scale = 0;
    std::vector<float> lora, expected;
    const int slots = c.grid().slots;
    for (int i = 0; i < rows; ++i) {
        size_t row = size_t(i) * step;
        std::vector<double> sums(size_t(slots) * c.next_rank());
        for (int t = 0; t < d.tiles; ++t) {
            int end = std::min(256 * t + 256, c.n);
            double top = 0;
            auto x = [&](int n) { return (g[size_t(i) * c.n + n] + 0.171875) * reciprocal[n]; };
            for (int n = 256 * t; n < end; ++n) top = std::max(top, x(n));
            double scale = scales[size_t(t) * c.m + row];
            worst_scale = std::max(worst_scale, std::abs(scale / (top / 255) - 1));
            for (int n = 256 * t; n < end; ++n) {
                int delta = std::abs(int(codes[row * c.n + n]) - int(std::lrint(x(n) / (top / 255))));
                off += delta > 1;
                wrong += delta == 1;
            }
            for (int r = 0; r < c.next_rank(); ++r) {
                double sum = 0;
                for (int n = 256 * t; n < end; ++n)
                    sum += double(g[size_t(i) * c.n + n]) * to_float(down[size_t(r) * c.n + n]);
                sums[size_t(t % slots) * c.next_rank() + r] += sum;
            }
        }
        for (int s = 0; s < slots; ++s) {
            for (int r = 0; r < c.next_rank(); ++r) {
                expected.push_back(sums[size_t(s) * c.next_rank() + r]);
                const int rank = c.next_rank();
                lora.push_back(partial[s * slot_sm90(c.m, rank) + place_sm90(row, r, rank)]);
            }
        }
    }
    Difference diff = compare(lora, expected);
    char text[384];
    double share = double(wrong) / (double(rows) * c.n);
    std::snprintf(text, sizeof text, "%s: scales off by %.1e, codes off by one %.2f%%, by more %d, low-rank error %.1e",
                  name(c).c_str(), worst_scale, 100 * share, off, diff.relative);
    // tanh.approx is good to 2^-11, bf16 to 2^-9.
    report(worst_scale < 2e-3 && share < 0.1 && off == 0 && diff.relative < 4e-3, text);
}

inline void check(const Case& c, int step) {
    Data d(c);
    CUDA(cudaMemcpy(d.out, d.before, d.out.count * sizeof(bf16), cudaMemcpyDeviceToDevice));
    if (c.epilogue != ADD) d.out.poison();
    launch(c, d.params());
    int rows = (c.m + step - 1) / step;
    Buffer<float> y(size_t(rows) * c.n);
    const int rank = c.rank();
    const auto stored = d.up.host();
    std::vector<bf16> whole(size_t(c.n) * rank + 1);
    for (int n = 0; n < c.n; ++n)
        for (int r = 0; r < rank; ++r) whole[size_t(n) * rank + r] = __float2bfloat16(up_at(c.parts, stored, c.n, n, r));
    Buffer<bf16> up(whole.size());
    CUDA(cudaMemcpy(up, whole.data(), whole.size() * sizeof(bf16), cudaMemcpyHostToDevice));
    reference<<<dim3((c.n + 127) / 128, rows), 128>>>(d.xq, c.blocked, d.wq, d.xs, d.ws, d.lora, up, d.bias, y, c.m,
                                                      c.n, c.k, rank, step);
    CUDA(cudaDeviceSynchronize());
    auto expected = y.host();
    finish_reference(expected, d, step);
    if (c.epilogue == GELU) {
        check_gelu(d, expected, step);
        Bits first, second;
        first.add(d.codes), first.add(d.next_scales), first.add(d.next_lora);
        d.codes.poison(), d.next_scales.poison(), d.next_lora.poison();
        launch(c, d.params());
        second.add(d.codes), second.add(d.next_scales), second.add(d.next_lora);
        return same_bits(first, second);
    }
    auto out = d.out.host();
    std::vector<float> got;
    for (int i = 0; i < rows; ++i)
        for (int n = 0; n < c.n; ++n) got.push_back(to_float(out[size_t(i) * step * c.n + n]));
    Difference diff = compare(got, expected);
    char text[384];
    std::snprintf(text, sizeof text, "%s: worst %.1e, relative %.1e", name(c).c_str(), diff.worst, diff.relative);
    report(diff.relative < 4e-3 && diff.worst < 0.1, text);  // bf16 results

    Bits first, second;
    first.add(d.out);
    CUDA(cudaMemcpy(d.out, d.before, d.out.count * sizeof(bf16), cudaMemcpyDeviceToDevice));
    launch(c, d.params());
    second.add(d.out);
    same_bits(first, second);
}

// Weights rotate, as in a model: they come from device memory, activations may stay in the cache.
inline double time_case(const Case& c, double ceiling) {
    constexpr int SETS = 4;
    std::vector<Data*> sets;
    std::vector<GemmParams> params;
    for (int i = 0; i < SETS; ++i) {
        sets.push_back(new Data(c));
        params.push_back(sets.back()->params());
        params.back().x = params[0].x;
    }
    double ms = time_ms([&](int i) { launch(c, params[i % SETS]); });
    for (Data* d : sets) delete d;
    double rate = 2.0 * c.m * c.n * c.k / ms / 1e9;
    std::printf("time   %-38s %8.4f ms %7.1f TF/s %5.1f%%\n", name(c).c_str(), ms, rate, 100 * rate / ceiling);
    std::fflush(stdout);
    return ms;
}

inline void run(double ceiling) {
    for (int m : {1, 300, 128 * 3 + 77}) {
        check({m, 768, 832, {{32}}, STORE, false, {}}, 1);
        check({m, 384, 256, {{16}}, STORE, false, {}}, 1);
        check({m, 768, 832, {{48}}, QKV, false, {}}, 1);
        check({m, 768, 320, {{0}}, ADD, false, {}}, 1);
        check({m, 384, 832, {{128}}, ADD, true, {}}, 1);
        check({m, 1024, 256, {{32}}, GELU, false, {{32}}}, 1);
        check({m, 640, 832, {{80}}, GELU, false, {{48}}}, 1);
        // Updates of some columns, which begin and end anywhere.
        check({m, 1152, 320, {{32}, {16, 1, 0, 384}, {64, 1, 384, 768}, {48, 1, 768, 1152}}, QKV, false, {}}, 1);
        check({m, 768, 256, {{0}, {128, 1}, {16, 1, 100, 333}, {32, 1, 700, 768}}, STORE, false, {}}, 1);
        check({m, 576, 320, {{32}, {16}, {16, 1, 576 - 9, 576}, {32, 1, 1, 2}}, ADD, false, {}}, 1);
        check({m, 384, 512, {{16}, {128}, {32}}, ADD, true, {}}, 1);
        check({m, 1024, 256, {{32}, {16}}, GELU, false, {{32}, {16, -0.6f}, {128, 2}, {48, 0.3f}}}, 1);
        check({m, 512, 256, {{16}, {16}, {16}, {32, 1, 5, 300}, {16}, {64}, {16}, {16}}, GELU, false, {{0}, {16, 3}}},
              1);
        check({m, 256, 256, Parts(MAX_PARTS, {16}), GELU, false, Parts(MAX_PARTS, {16, 0.5f})}, 1);
        // Few clusters, which add up several tiles in a slot.
        check({m, 1536, 128, {{16}}, GELU, false, {{32}, {128, 0.5f}}, 1}, 1);
        check({m, 1536, 128, {{16}}, GELU, false, {{48}}, 4}, 1);
    }
    if (checks_only) return;
    check({4608, 9216, 3072, {{32}}, QKV, false, {}}, 97);
    check({4608, 12288, 3072, {{32}}, GELU, false, {{32}}}, 97);
    check({4608, 3072, 12288, {{32}}, ADD, true, {}}, 97);

    struct Shape {
        int m, n, k;
        Epilogue epilogue;
        bool blocked;
        int count;
    };
    // One FLUX.1-dev step at 1024x1024.
    const Shape step[] = {
        {4608, 9216, 3072, QKV, false, 38}, {4608, 12288, 3072, GELU, false, 38},
        {4608, 3072, 3072, ADD, false, 38}, {4608, 3072, 12288, ADD, true, 38},
        {4096, 9216, 3072, QKV, false, 19}, {4096, 12288, 3072, GELU, false, 19},
        {4096, 3072, 3072, ADD, false, 19}, {4096, 3072, 12288, ADD, true, 19},
        {512, 9216, 3072, QKV, false, 19}, {512, 12288, 3072, GELU, false, 19},
        {512, 3072, 3072, ADD, false, 19}, {512, 3072, 12288, ADD, true, 19},
    };
    for (const Parts& parts : {Parts{{32}}, Parts{{32}, {32, 0.7f}}, Parts{{32}, {128, 0.7f}}}) {
        double total_ms = 0, total_flop = 0;
        for (const Shape& s : step) {
            total_ms +=
                s.count * time_case({s.m, s.n, s.k, parts, s.epilogue, s.blocked, s.epilogue == GELU ? parts : Parts{}},
                                    ceiling);
            total_flop += s.count * 2.0 * s.m * s.n * s.k;
        }
        std::printf("time   all quantised GEMMs of a step, %s    %8.2f ms %7.1f TF/s\n", text_of(parts).c_str(), total_ms,
                    total_flop / total_ms / 1e9);
    }
    time_case({4608, 9216, 3072, {{32}}, STORE, false, {}}, ceiling);
    time_case({4608, 9216, 3072, {{0}}, STORE, false, {}}, ceiling);
    time_case({4608, 12288, 3072, {{32}}, STORE, false, {}}, ceiling);
    time_case({4608, 3072, 12288, {{32}}, ADD, false, {}}, ceiling);
    time_case({8192, 8192, 8192, {{32}}, STORE, false, {}}, ceiling);
}

}  // namespace test_gemm
