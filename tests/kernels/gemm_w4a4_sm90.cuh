// gemm_w4a4_*_sm90 and unpack_w4a4_sm90 against the formula in plain code and against gemm_w4a4 with its emulated
// instruction; speed at FLUX.1-dev's shapes.
#pragma once

#include "../../kernels/gemm_w4a4_sm90.cu"
#include "../../kernels/unpack_w4a4_sm90.cu"
#include "gemm_w4a4.cuh"

namespace test_gemm_w4a4_sm90 {

using namespace test_gemm_w4a4;
using Shape = linear_sm90::Shape<w4a4_sm90::Format>;

// The e4m3 numbers 0 .. 15; negative ones have bit 7 set.
constexpr u8 E4M3[16] = {0, 0x38, 0x40, 0x44, 0x48, 0x4a, 0x4c, 0x4e, 0x50, 0x51, 0x52, 0x53, 0x54, 0x55, 0x56, 0x57};

inline u8 e4m3(int code) {
    return code < 0 ? E4M3[-code] | 0x80 : E4M3[code];
}

inline void launch(Epilogue4 epilogue, const GemmParams& p) {
    auto kernel = epilogue == STORE4  ? gemm_w4a4_store_sm90
                  : epilogue == QKV4  ? gemm_w4a4_qkv_sm90
                  : epilogue == GELU4 ? gemm_w4a4_gelu_sm90
                                      : gemm_w4a4_add_sm90;
    allow_smem(kernel, Shape::SMEM_BYTES);
    const int tiles = (p.m + 255) / 256 * ((p.n + 255) / 256);
    kernel<<<2 * std::min(66, tiles), 384, Shape::SMEM_BYTES>>>(p);
    CUDA(cudaGetLastError());
}

// What the kernels take, on the device.
struct Data {
    Case c;
    Buffer<u8> x, w, codes;
    Buffer<float> xs, ws, next_scales, next_lora, reciprocal;
    Buffer<bf16> lora, up, bias, columns, down, out;
    Buffer<__half> rope;

    explicit Data(const Case& c)
        : c(c),
          x(size_t(c.m) * c.k),
          w(size_t(c.n) * c.k),
          codes(size_t(c.m) * c.n),
          xs(size_t(c.k / 64) * c.m),
          ws(size_t(c.n) * c.k / 64),
          next_scales(size_t(c.n / 64) * c.m),
          next_lora((c.n + 255) / 256 * slot_sm90(c.m, c.next_rank()) + 1),
          reciprocal(c.n),
          lora(size_t(c.m) * c.rank() + 1),
          up(size_t(c.n) * c.rank() + 1),
          bias(c.n),
          columns(std::max(c.n, 256)),
          down(size_t(c.next_rank()) * c.n + 1),
          out(size_t(c.m) * c.n),
          rope(size_t(c.m) * 128) {}

    GemmParams params() const {
        GemmParams p{};
        p.x = map_bytes(x, c.m, c.k, 128), p.w = map_bytes(w, c.n, c.k, 128);
        p.lora = c.rank() ? map_bf16(lora, c.m, c.rank(), 128) : p.x;
        set_up(p.parts, c.parts, up.data, c.n, 128), set_down(p.next_parts, c.next_parts, down.data, c.n);
        p.rank = c.rank(), p.next_rank = c.next_rank();
        p.out = c.epilogue == GELU4 ? map_bytes(codes, c.m, c.n, 64) : map_bf16(out, c.m, c.n, 64);
        const u64 groups = c.k / 64, blocks = c.n / 128;
        p.scales = tensor_map(CU_TENSOR_MAP_DATA_TYPE_FLOAT32, ws, {128, groups, blocks}, {512, groups * 512},
                              {128, 2, 2}, CU_TENSOR_MAP_SWIZZLE_NONE);
        p.xs = xs, p.bias = bias, p.columns = columns, p.reciprocal = reciprocal,
        p.rope = reinterpret_cast<const u32*>(rope.data);
        p.next_scales = next_scales, p.next_lora = next_lora, p.next_slots = (c.n + 255) / 256;
        p.m = c.m, p.n = c.n, p.k = c.k;
        return p;
    }
};

inline void unpack(const Buffer<u32>& codes, const Buffer<bf16>& scales, const Buffer<u8>& w, const Buffer<float>& ws,
                   int n, int k) {
    unpack_w4a4_sm90<<<dim3(k / 64, n / 128), 256>>>(reinterpret_cast<const uint4*>(codes.data), scales, w, ws, k);
    CUDA(cudaGetLastError());
}

template <class T>
void copy(const Buffer<T>& to, const std::vector<T>& from) {
    upload(to, from.data(), from.size() * sizeof(T));
}

template <class T>
void copy(const Buffer<T>& to, const Buffer<T>& from, size_t count) {
    CUDA(cudaMemcpy(to, from, count * sizeof(T), cudaMemcpyDeviceToDevice));
}

inline std::vector<bf16> to_bf16(const std::vector<float>& v) {
    std::vector<bf16> out;
    for (float one : v) out.push_back(__float2bfloat16(one));
    return out;
}

// The numbers of a case as these kernels take them, the weights by way of unpack_w4a4_sm90.
inline void fill_in(const Data& d, const Operands& o, const Plain& plain, const Inputs& in) {
    const Case& c = d.c;
    std::vector<u8> x;
    std::vector<float> xs;
    for (size_t i = 0; i < d.x.count; ++i) x.push_back(e4m3(o.xq[i]));
    for (int g = 0; g < o.groups; ++g)
        for (int i = 0; i < c.m; ++i) xs.push_back(o.xs[size_t(g) * o.rows + i]);
    copy(d.x, x), copy(d.xs, xs);
    unpack(plain.w, plain.ws, d.w, d.ws, c.n, c.k);
    copy(d.lora, in.d_lora, d.lora.count - 1), copy(d.up, to_bf16(in.up)), copy(d.down, to_bf16(in.down));
    copy(d.bias, in.d_bias, c.n), copy(d.columns, in.d_columns, d.columns.count);
    copy(d.reciprocal, in.d_reciprocal, c.n), copy(d.rope, in.d_rope, d.rope.count);
    if (c.epilogue == ADD4) copy(d.out, to_bf16(in.before));
}

inline Bits results(const Data& d) {
    Bits bits;
    if (d.c.epilogue == GELU4) {
        bits.add(d.codes), bits.add(d.next_scales), bits.add(d.next_lora);
    } else {
        bits.add(d.out);
    }
    return bits;
}

inline void check(const Case& c) {
    const Operands operands(c);
    Inputs in(c);
    const Plain plain(c, operands);
    Data d(c);
    fill_in(d, operands, plain, in);

    char name[96], text[256];
    std::snprintf(name, sizeof name, "w4a4 sm90 %s%s m%d n%d k%d %s", NAMES[c.epilogue], c.is_unsigned ? " u4" : "",
                  c.m, c.n, c.k, text_of(c.parts).c_str());
    auto w = d.w.host();
    size_t wrong = 0;
    for (size_t i = 0; i < w.size(); ++i) wrong += w[i] != e4m3(operands.wq[i]);
    if (wrong) {
        std::snprintf(text, sizeof text, "%s: %zu weights unpacked wrongly", name, wrong);
        return report(false, text);
    }

    launch(c.epilogue, d.params());
    CUDA(cudaDeviceSynchronize());
    const Bits first = results(d);
    auto y = operands.products(c);
    in.finish(y);
    if (c.epilogue == GELU4) {
        auto codes = d.codes.host();
        auto scales = d.next_scales.host();
        const int rank = c.next_rank();
        const auto found = d.next_lora.host();
        const std::vector<float> strengths = strengths_of(c.next_parts);
        std::vector<float> in_order;
        for (int slot = 0; slot < (c.n + 255) / 256; ++slot)
            for (int i = 0; i < c.m; ++i)
                for (int r = 0; r < rank; ++r)
                    in_order.push_back(strengths[r] * found[slot * slot_sm90(c.m, rank) + place_sm90(i, r, rank)]);
        copy(in.d_next_lora, in_order);
        auto code = [&](int i, int n) {
            const u8* found = std::find(E4M3, E4M3 + 16, codes[size_t(i) * c.n + n]);
            return int(found - E4M3);
        };
        check_gelu(name, in, y, code, [&](int i, int g) { return scales[size_t(g) * c.m + i]; }, 256);
    } else {
        const auto out = d.out.host();
        plain.run(in);  // writes to in.d_out
        const auto emulated = in.d_out.host();
        const Difference formula = compare(out, y), other = compare(out, emulated);
        size_t differ = 0;
        for (size_t i = 0; i < out.size(); ++i) differ += to_float(out[i]) != to_float(emulated[i]);
        std::snprintf(text, sizeof text, "%s: relative %.1e; %zu of %zu differ from gemm_w4a4's, by %.1e", name,
                      formula.relative, differ, out.size(), other.relative);
        // bf16 results, which ADD rounds before the addition too. Without a low-rank branch a stored result has one
        // order of the same roundings.
        const bool same = c.rank() == 0 && c.epilogue == STORE4 ? differ == 0 : other.relative < 4e-3;
        report(formula.relative < 4e-3 && same, text);
    }
    d.codes.poison(), d.next_scales.poison(), d.next_lora.poison();
    if (c.epilogue == ADD4) copy(d.out, to_bf16(in.before));
    launch(c.epilogue, d.params());
    same_bits(first, results(d));
}

// One row of large codes: each column's first group sums to thousands, the next two to nearly the opposite. What is left
// is small, so that bf16 shows it exactly: it is right only if all three sums are.
inline void check_extremes(bool is_unsigned) {
    const Case c{1, 2048, 192, {{0}}, STORE4, is_unsigned, {}};
    Operands o(c);
    std::fill(o.xs.begin(), o.xs.end(), 1.0f), std::fill(o.ws.begin(), o.ws.end(), 1.0f);
    for (int j = 0; j < c.k; ++j) {
        const int magnitude = is_unsigned ? 12 + hash(j) % 4 : 5 + hash(j) % 3;
        o.xq[j] = is_unsigned || hash(j + 1000) % 2 ? magnitude : -magnitude;
    }
    std::vector<float> expected(c.n);
    int largest = 0, left = 0;
    for (int n = 0; n < c.n; ++n) {
        int* w = &o.wq[size_t(n) * c.k];
        int sum = 0;
        // Mostly the largest codes, all of the sign that makes products of column n's sign.
        for (int j = 0; j < 64; ++j) {
            const bool negative = (o.xq[j] < 0) == (n % 2 == 0);
            const int small = hash(j + 64 * n) % (1 + n % 7);
            w[j] = negative ? small - 8 : 7 - small;
            sum += o.xq[j] * w[j];
        }
        largest = std::max(largest, std::abs(sum));
        for (int j = 64; j < c.k; ++j) {
            const double share = -double(sum) / ((c.k - j) * o.xq[j]);
            const int spread = j < c.k - 16 ? int(hash(j + 999 * n) % 3) - 1 : 0;
            w[j] = std::min(std::max(int(std::lrint(share)) + spread, -8), 7);
            sum += o.xq[j] * w[j];
        }
        expected[n] = sum;
        left = std::max(left, std::abs(sum));
    }
    Inputs in(c);
    std::fill(in.bias.begin(), in.bias.end(), 0.0f);
    copy(in.d_bias, to_bf16(in.bias));
    const Plain plain(c, o);
    const Data d(c);
    fill_in(d, o, plain, in);
    launch(STORE4, d.params());
    const auto out = d.out.host();
    size_t wrong = 0;
    for (int n = 0; n < c.n; ++n) wrong += to_float(out[n]) != expected[n];
    char text[160];
    std::snprintf(text, sizeof text, "w4a4 sm90 sums of up to %d%s that leave up to %d: %zu of %d wrong", largest,
                  is_unsigned ? ", unsigned" : "", left, wrong, c.n);
    report(wrong == 0 && left <= 256, text);
}

// ---- speed
// --------------------------------------------------------------------------------------------------------------

// Normally distributed codes, -8 .. 7 or 0 .. 15, as e4m3 numbers.
__global__ void fill_codes(u8* out, size_t count, u32 seed, float mean, float deviation, float low, float high) {
    for (size_t i = blockIdx.x * 256ull + threadIdx.x; i < count; i += gridDim.x * 256ull) {
        const float v = rintf(fminf(fmaxf(mean + deviation * gauss(seed, i), low), high));
        out[i] = static_cast<u8>(sm90::pack_e4m3(v, 0.0f));
    }
}

inline double time_case(const Case& c, double ceiling) {
    constexpr int SETS = 4;
    std::vector<Data*> sets;
    std::vector<GemmParams> params;
    for (int i = 0; i < SETS; ++i) {
        const Data& d = *sets.emplace_back(new Data(c));
        if (c.is_unsigned) {
            fill_codes<<<1024, 256>>>(d.x, d.x.count, 1, 3, 3, 0, 15);
        } else {
            fill_codes<<<1024, 256>>>(d.x, d.x.count, 1, 0, 2.5f, -8, 7);
        }
        fill_codes<<<1024, 256>>>(d.w, d.w.count, 2 + i, 0, 2.5f, -8, 7);
        fill(d.xs, 3, 0.1f, 0.02f), fill(d.ws, 4, 0.01f, 0.002f), fill(d.lora, 5, 0, 0.4f), fill(d.up, 6, 0, 0.3f);
        fill(d.bias, 7, 0, 0.5f), fill(d.columns, 8, 1.0f, 0.2f), fill(d.reciprocal, 12, 1.0f, 0.2f);
        fill(d.down, 9, 0, 0.05f), fill(d.out, 10, 0, 1.0f), fill(d.rope, 11, 0, 0.7f);
        params.push_back(d.params());
        params.back().x = params[0].x;
    }
    const double ms = time_ms([&](int i) { launch(c.epilogue, params[i % SETS]); });
    for (Data* d : sets) delete d;
    const double rate = 2.0 * c.m * c.n * c.k / ms / 1e9;
    std::printf("time   w4a4 sm90 %-5s m%d n%d k%d %s %8.4f ms %7.1f TF/s %5.1f%%\n", NAMES[c.epilogue], c.m, c.n, c.k,
                text_of(c.parts).c_str(), ms, rate, 100 * rate / ceiling);
    std::fflush(stdout);
    return ms;
}

inline void time_unpacking(int n) {
    const int k = 3072;
    Buffer<u32> codes(size_t(n) * k / 8);
    Buffer<bf16> scales(size_t(n) * k / 64);
    Buffer<u8> w(size_t(n) * k);
    Buffer<float> ws(size_t(n) * k / 64);
    fill(scales, 1, 0.01f, 0.002f);
    const double ms = time_ms([&](int) { unpack(codes, scales, w, ws, n, k); });
    std::printf("time   unpack w4a4 sm90 n%d k%d %8.4f ms\n", n, k, ms);
}

inline void run(double ceiling) {
    check_extremes(false);
    check_extremes(true);
    for (int m : {1, 77, 300}) {
        check({m, 384, 256, {{32}}, STORE4, false, {}});
        check({m, 128, 64, {{0}}, STORE4, false, {}});
        check({m, 640, 1088, {{0}}, STORE4, false, {}});
        check({m, 768, 320, {{48}}, QKV4, false, {}});
        check({m, 384, 448, {{16}}, ADD4, false, {}});
        check({m, 256, 1024, {{128}}, ADD4, true, {}});
        check({m, 512, 256, {{32}}, GELU4, false, {{48}}});
        check({m, 640, 320, {{80}}, GELU4, false, {{32}}});
    }
    if (checks_only) return;
    check({515, 1024, 3072, {{0}}, STORE4, false, {}});
    check({300, 768, 12288, {{0}}, STORE4, false, {}});

    struct Row {
        Case c;
        int count;
    };
    // One FLUX.1-dev step at 1024x1024.
    const Row step[] = {
        {{4608, 9216, 3072, {{32}}, QKV4, false, {}}, 38}, {{4608, 12288, 3072, {{32}}, GELU4, false, {{32}}}, 38},
        {{4608, 3072, 3072, {{32}}, ADD4, false, {}}, 38}, {{4608, 3072, 12288, {{32}}, ADD4, true, {}}, 38},
        {{4096, 9216, 3072, {{32}}, QKV4, false, {}}, 19}, {{4096, 12288, 3072, {{32}}, GELU4, false, {{32}}}, 19},
        {{4096, 3072, 3072, {{32}}, ADD4, false, {}}, 19}, {{4096, 3072, 12288, {{32}}, ADD4, true, {}}, 19},
        {{512, 9216, 3072, {{32}}, QKV4, false, {}}, 19},  {{512, 12288, 3072, {{32}}, GELU4, false, {{32}}}, 19},
        {{512, 3072, 3072, {{32}}, ADD4, false, {}}, 19},  {{512, 3072, 12288, {{32}}, ADD4, true, {}}, 19},
    };
    double total_ms = 0, total_flop = 0;
    for (const Row& row : step) {
        total_ms += row.count * time_case(row.c, ceiling);
        total_flop += row.count * 2.0 * row.c.m * row.c.n * row.c.k;
    }
    std::printf("time   all quantised GEMMs of a step, w4a4   %8.2f ms %7.1f TF/s\n", total_ms,
                total_flop / total_ms / 1e9);
    time_case({4608, 9216, 3072, {{0}}, STORE4, false, {}}, ceiling);
    time_unpacking(9216);
    time_unpacking(3072);
}

}  // namespace test_gemm_w4a4_sm90
