// gemm_w4a4_* against the formula in plain code. Where 4-bit products are emulated (sm_90 and later) this says nothing
// of their speed.
#pragma once

#include "../../kernels/gemm_w4a4.cu"
#include "harness.cuh"
#include "parts.cuh"

namespace test_gemm_w4a4 {

struct Case {
    int m, n, k;
    Parts parts;
    Epilogue4 epilogue;
    bool is_unsigned;
    Parts next_parts;

    int rank() const { return rank_of(parts); }
    int next_rank() const { return rank_of(next_parts); }
};

// ---- packing by the index formulas
// --------------------------------------------------------------------------------------

// Codes [n, k], 4 bits, in Nunchaku's order.
inline std::vector<u32> pack_weights(const std::vector<int>& q, int n, int k) {
    std::vector<u32> words(size_t(n) * k / 8);
    for (int i = 0; i < n; ++i)
        for (int j = 0; j < k; ++j) {
            int nt = i / 128, np = i % 128 / 16, ni = i % 16 / 8, nl = i % 8, kt = j / 64, kp = j % 64 / 32,
                kl = j % 32 / 8;
            size_t word = ((((size_t(nt) * (k / 64) + kt) * 8 + np) * 8 + nl) * 4 + kl) * 4 + ni * 2 + kp;
            words[word] |= u32(q[size_t(i) * k + j] & 15) << (4 * (j % 8));
        }
    return words;
}

inline std::vector<bf16> pack_scales(const std::vector<float>& s, int n, int groups) {
    std::vector<bf16> out(s.size());
    for (int i = 0; i < n; ++i)
        for (int g = 0; g < groups; ++g) {
            int v = i % 128, c = v % 8 / 2, b = v % 16 / 8, d = v % 2;
            out[(size_t(i / 128) * groups + g) * 128 + v / 16 * 16 + c * 4 + b * 2 + d] =
                __float2bfloat16(s[size_t(i) * groups + g]);
        }
    return out;
}

inline std::vector<bf16> pack_up(const std::vector<float>& up, int n, int rank) {
    std::vector<bf16> out(size_t(n) * rank);
    for (int i = 0; i < n; ++i)
        for (int r = 0; r < rank; ++r) {
            size_t at = ((((size_t(i / 16) * (rank / 16) + r / 16) * 8 + i % 8) * 4 + r % 8 / 2) * 8) + i % 16 / 8 * 4 +
                        r % 16 / 8 * 2 + r % 2;
            out[at] = __float2bfloat16(up[size_t(i) * rank + r]);
        }
    return out;
}

inline std::vector<bf16> pack_down(const std::vector<float>& down, int rank, int k) {
    std::vector<bf16> out(size_t(rank) * k);
    for (int r = 0; r < rank; ++r)
        for (int j = 0; j < k; ++j) {
            size_t at = ((((size_t(j / 16) * (rank / 16) + r / 16) * 8 + r % 8) * 4 + j % 8 / 2) * 8) + r % 16 / 8 * 4 +
                        j % 16 / 8 * 2 + j % 2;
            out[at] = __float2bfloat16(down[size_t(r) * k + j]);
        }
    return out;
}

// Word of an activation code, as the kernels exchange it.
inline size_t word_of(int row, int j, int k) {
    return ((size_t(row / 16) * (k / 64) + j / 64) * 32 + row % 8 * 4 + j % 32 / 8) * 4 + j % 64 / 32 * 2 +
           row % 16 / 8;
}

template <class T>
void upload(const Buffer<T>& to, const void* from, size_t bytes) {
    CUDA(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice));
}

inline float round_bf16(float v) {
    return to_float(__float2bfloat16(v));
}

inline std::vector<float> values(size_t count, u32 seed, float mean, float deviation) {
    std::vector<float> out(count);
    for (size_t i = 0; i < count; ++i) out[i] = round_bf16(mean + deviation * gauss(seed, i));
    return out;
}

constexpr const char* NAMES[] = {"store", "add", "qkv", "gelu"};

// What a linear takes besides codes and scales, the same for all 4-bit formats, and what its epilogue does.
struct Inputs {
    const Case c;
    std::vector<float> lora, up, bias, columns, before, rope, reciprocal, down;
    Buffer<bf16> d_lora, d_up, d_bias, d_columns, d_out, d_down;
    Buffer<float> d_reciprocal, d_next_lora;
    Buffer<__half> d_rope;

    explicit Inputs(const Case& c)
        : c(c),
          lora(values(size_t(c.m) * c.rank(), 3, 0, 0.5f)),
          up(values(size_t(c.n) * c.rank(), 4, 0, 0.3f)),
          bias(values(c.n, 5, 0, 0.5f)),
          columns(values(std::max(c.n, 256), 6, 1, 0.2f)),
          before(values(size_t(c.m) * c.n, 7, 0, 1)),
          rope(values(size_t(c.m) * 128, 8, 0, 0.7f)),
          reciprocal(values(c.n, 9, 1, 0.2f)),
          down(values(size_t(c.next_rank()) * c.n, 10, 0, 0.05f)),
          d_lora(lora.size() + 1),
          d_up(up.size() + 8),
          d_bias(c.n),
          d_columns(columns.size()),
          d_out(before.size()),
          d_down(down.size() + 8),
          d_reciprocal(c.n),
          d_next_lora(size_t(c.n / 128) * c.m * c.next_rank() + 1),
          d_rope(rope.size()) {
        auto to_bf16 = [](const std::vector<float>& v) {
            std::vector<bf16> out(v.size());
            for (size_t i = 0; i < v.size(); ++i) out[i] = __float2bfloat16(v[i]);
            return out;
        };
        std::vector<__half> rope_half(rope.size());
        for (size_t i = 0; i < rope.size(); ++i) rope_half[i] = __float2half(rope[i]);
        upload(d_lora, to_bf16(lora).data(), lora.size() * 2);
        // The first part is packed, the others are row by row.
        auto first = [](const Parts& parts) { return parts.empty() ? 0 : parts[0].rank; };
        const int own = first(c.parts), next_own = first(c.next_parts);
        upload(d_up, to_bf16(up).data(), up.size() * 2);
        upload(d_up, pack_up(up, c.n, own).data(), size_t(c.n) * own * 2);
        upload(d_down, to_bf16(down).data(), down.size() * 2);
        upload(d_down, pack_down(down, next_own, c.n).data(), size_t(c.n) * next_own * 2);
        upload(d_bias, to_bf16(bias).data(), c.n * 2);
        upload(d_columns, to_bf16(columns).data(), columns.size() * 2);
        upload(d_reciprocal, reciprocal.data(), c.n * 4);
        upload(d_rope, rope_half.data(), rope.size() * 2);
        if (c.epilogue == ADD4) upload(d_out, to_bf16(before).data(), before.size() * 2);
    }

    template <class Params>
    void set(Params& p) const {
        p.lora = d_lora, p.bias = d_bias, p.out = d_out, p.columns = d_columns;
        set_up(p.parts, c.parts, d_up.data, c.n);
        set_down(p.next_parts, c.next_parts, d_down.data, c.n);
        p.rope = reinterpret_cast<const u32*>(d_rope.data);
        p.reciprocal = d_reciprocal, p.next_lora = d_next_lora;
        p.m = c.m, p.n = c.n, p.k = c.k, p.rank = c.rank(), p.next_rank = c.next_rank();
    }

    // Adds low-rank branch and bias to the products `y`, then does the epilogue.
    void finish(std::vector<float>& y) const {
        for (int i = 0; i < c.m; ++i)
            for (int n = 0; n < c.n; ++n) {
                double sum = y[size_t(i) * c.n + n] + bias[n];
                for (int r = 0; r < c.rank(); ++r)
                    sum += double(lora[size_t(i) * c.rank() + r]) * up_at(c.parts, up, c.n, n, r);
                if (c.epilogue == ADD4) sum = before[size_t(i) * c.n + n] + sum * columns[n];
                if (c.epilogue == GELU4)
                    sum = 0.5 * sum * (1 + std::tanh(0.7978845608 * (sum + 0.044715 * sum * sum * sum)));
                y[size_t(i) * c.n + n] = sum;
            }
        for (int i = 0; c.epilogue == QKV4 && i < c.m; ++i)
            for (int h = 0; h < c.n / 128 * 2 / 3; ++h) {
                float* u = &y[size_t(i) * c.n + 128 * h];
                const float* w = &columns[h < c.n / 384 ? 0 : 128];
                double square = 0;
                for (int j = 0; j < 128; ++j) square += double(u[j]) * u[j];
                double scale = 1 / std::sqrt(square / 128 + 1e-6);
                for (int j = 0; j < 128; j += 2) {
                    double a = u[j] * scale * w[j], b = u[j + 1] * scale * w[j + 1], cos = rope[size_t(i) * 128 + j],
                           sin = rope[size_t(i) * 128 + j + 1];
                    u[j] = a * cos - b * sin, u[j + 1] = a * sin + b * cos;
                }
            }
    }

    // Of the GELU epilogue's low-rank sums over `tile` columns, `y` being the GELU's results.
    double low_rank_error(const std::vector<float>& y, int tile = 128) const {
        std::vector<float> got, expected;
        auto partial = d_next_lora.host();
        auto strengths = strengths_of(c.next_parts);
        for (int i = 0; i < c.m; ++i)
            for (int t = 0; tile * t < c.n; ++t)
                for (int r = 0; r < c.next_rank(); ++r) {
                    double sum = 0;
                    for (int n = tile * t; n < std::min(tile * t + tile, c.n); ++n)
                        sum += double(y[size_t(i) * c.n + n]) * down[size_t(r) * c.n + n];
                    expected.push_back(strengths[r] * sum);
                    got.push_back(partial[(size_t(t) * c.m + i) * c.next_rank() + r]);
                }
        return compare(got, expected).relative;
    }
};

// Codes and scales of a product.
struct Operands {
    int rows, groups;  // rows: those of x, rounded up to 16
    std::vector<int> xq, wq;
    std::vector<float> xs, ws;  // [k/64, rows], [n, k/64]

    explicit Operands(const Case& c)
        : rows((c.m + 15) / 16 * 16),
          groups(c.k / 64),
          xq(size_t(rows) * c.k),
          wq(size_t(c.n) * c.k),
          xs(values(size_t(groups) * rows, 1, 0.1f, 0.02f)),
          ws(values(size_t(c.n) * groups, 2, 0.01f, 0.002f)) {
        for (size_t i = 0; i < xq.size(); ++i) xq[i] = c.is_unsigned ? hash(i) % 16 : int(hash(i) % 16) - 8;
        for (size_t i = 0; i < wq.size(); ++i) wq[i] = int(hash(i + 99991) % 16) - 8;
    }

    std::vector<float> products(const Case& c) const {
        std::vector<float> y(size_t(c.m) * c.n);
        for (int i = 0; i < c.m; ++i)
            for (int n = 0; n < c.n; ++n) {
                double sum = 0;
                for (int g = 0; g < groups; ++g) {
                    int dot = 0;
                    for (int j = 64 * g; j < 64 * g + 64; ++j) dot += xq[size_t(i) * c.k + j] * wq[size_t(n) * c.k + j];
                    sum += double(dot) * xs[size_t(g) * rows + i] * ws[size_t(n) * groups + g];
                }
                y[size_t(i) * c.n + n] = sum;
            }
        return y;
    }
};

// Of results `y` of a GELU: what became of them, by code(row, n) and scale(row, group).
template <class Code, class Scale>
void check_gelu(const char* name, const Inputs& in, const std::vector<float>& y, Code code, Scale scale, int tile) {
    const Case& c = in.c;
    size_t one = 0;
    int more = 0;
    double worst_scale = 0;
    for (int i = 0; i < c.m; ++i)
        for (int g = 0; g < c.n / 64; ++g) {
            double top = 0;
            auto x = [&](int n) { return (y[size_t(i) * c.n + n] + 0.171875) * in.reciprocal[n]; };
            for (int n = 64 * g; n < 64 * g + 64; ++n) top = std::max(top, x(n));
            worst_scale = std::max(worst_scale, std::abs(scale(i, g) / (top / 15) - 1));
            for (int n = 64 * g; n < 64 * g + 64; ++n) {
                const int delta = std::abs(code(i, n) - int(std::lrint(x(n) / (top / 15))));
                one += delta == 1, more += delta > 1;
            }
        }
    const double share = double(one) / (double(c.m) * c.n), low_rank = in.low_rank_error(y, tile);
    char text[256];
    std::snprintf(text, sizeof text, "%s: scales off by %.1e, codes off by one %.2f%%, by more %d, low-rank error %.1e",
                  name, worst_scale, 100 * share, more, low_rank);
    // The smoothed values and the scales are rounded to bf16.
    report(worst_scale < 1e-2 && share < 0.02 && more == 0 && low_rank < 4e-3, text);
}

// The operands of gemm_w4a4 on the device, and its run.
struct Plain {
    Buffer<u32> x, w, next;
    Buffer<float> xs, next_scales;
    Buffer<bf16> ws;

    Plain(const Case& c, const Operands& o)
        : x(o.xq.size() / 8),
          w(o.wq.size() / 8),
          next(size_t(o.rows) * c.n / 8),
          xs(o.xs.size()),
          next_scales(size_t(c.n / 64) * o.rows),
          ws(o.ws.size()) {
        std::vector<u32> packed(x.count);
        for (int i = 0; i < o.rows; ++i)
            for (int j = 0; j < c.k; ++j)
                packed[word_of(i, j, c.k)] |= u32(o.xq[size_t(i) * c.k + j] & 15) << (4 * (j % 8));
        upload(x, packed.data(), packed.size() * 4);
        upload(w, pack_weights(o.wq, c.n, c.k).data(), o.wq.size() / 2);
        upload(xs, o.xs.data(), o.xs.size() * 4);
        upload(ws, pack_scales(o.ws, c.n, o.groups).data(), o.ws.size() * 2);
    }

    void run(const Inputs& in) const {
        const Case& c = in.c;
        GemmW4A4Params p{};
        p.x = reinterpret_cast<const uint4*>(x.data), p.w = reinterpret_cast<const uint4*>(w.data);
        p.next_x = reinterpret_cast<uint4*>(next.data);
        p.xs = xs, p.ws = ws, p.next_scales = next_scales;
        in.set(p);
        auto kernel = c.epilogue == STORE4  ? gemm_w4a4_store
                      : c.epilogue == QKV4  ? gemm_w4a4_qkv
                      : c.epilogue == GELU4 ? gemm_w4a4_gelu
                      : c.is_unsigned       ? gemm_w4a4_add_u4
                                            : gemm_w4a4_add;
        kernel<<<dim3((c.m + 127) / 128, c.n / 128), 256, w4a4::SMEM_BYTES>>>(p);
        CUDA(cudaGetLastError());
        CUDA(cudaDeviceSynchronize());
    }
};

inline void check(const Case& c) {
    Inputs in(c);
    const Operands operands(c);
    const Plain plain(c, operands);
    plain.run(in);
    auto y = operands.products(c);
    in.finish(y);

    char name[96], text[256];
    std::snprintf(name, sizeof name, "w4a4 %s%s m%d n%d k%d %s", NAMES[c.epilogue], c.is_unsigned ? " u4" : "", c.m,
                  c.n, c.k, text_of(c.parts).c_str());
    if (c.epilogue != GELU4) {
        Difference d = compare(in.d_out.host(), y);
        std::snprintf(text, sizeof text, "%s: relative %.1e", name, d.relative);
        return report(d.relative < 4e-3, text);  // bf16 results
    }
    auto codes = plain.next.host();
    auto scales = plain.next_scales.host();
    check_gelu(
        name, in, y, [&](int i, int n) { return int(codes[word_of(i, n, c.n)] >> (4 * (n % 8)) & 15); },
        [&](int i, int g) { return scales[size_t(g) * operands.rows + i]; }, 128);
}

inline void run() {
    for (int m : {1, 77, 300}) {
        check({m, 384, 256, {{32}}, STORE4, false, {}});
        check({m, 128, 64, {{0}}, STORE4, false, {}});
        check({m, 768, 320, {{48}}, QKV4, false, {}});
        check({m, 384, 448, {{16}}, ADD4, false, {}});
        check({m, 256, 1024, {{128}}, ADD4, true, {}});
        check({m, 512, 256, {{32}}, GELU4, false, {{48}}});
        // Updates of some columns, which begin and end anywhere.
        check({m, 768, 320, {{32}, {16, 1, 0, 256}, {64, 1, 256, 512}, {48, 1, 512, 768}}, QKV4, false, {}});
        check({m, 384, 256, {{0}, {128}, {16, 1, 100, 333}, {32, 1, 383, 384}}, STORE4, false, {}});
        check({m, 256, 192, {{16}, {16}, {32, 1, 1, 2}}, ADD4, false, {}});
        check({m, 512, 256, {{16}, {32}}, GELU4, false, {{32}, {16, -0.6f}, {64, 2}}});
        check({m, 256, 128, {{0}, {16}}, GELU4, false, {{0}, {16, 3}}});
        check({m, 128, 128, Parts(MAX_PARTS, {16}), GELU4, false, Parts(MAX_PARTS, {16, 0.5f})});
    }
}

}  // namespace test_gemm_w4a4
