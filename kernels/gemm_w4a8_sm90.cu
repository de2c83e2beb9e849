// SVDQuant linear of profile W4A8 on Hopper:
//   y[m,n] = sum_b (sum_{k in b} xq[m,k] wq[n,k]) xs[b,m] ws[n] + sum_r lora[m,r] up[n,r] + bias[n]
// with 8-bit tensor cores and exact integer sums, then one of four epilogues: see linear_sm90.cuh, which this is a
// format of.
//
//   x   [m, k] s8 with one scale a row, xs [m], or, blocked, u8 with one in 256 channels, xs [ceil(k/256), m]
//   w   [n, k] s8, ws [n]
//   next_scales [ceil(n/256), m]
#include "common/linear_sm90.cuh"

namespace w4a8 {

using linear_sm90::Consumer;

template <int COLUMNS, bool Blocked>
struct Format {
    static constexpr int BN = COLUMNS, PIECE = BN, DOWN_PIECE = 96, SCALE_BYTES = 0;

    static __device__ __forceinline__ void load_scales(u32, u32, const GemmParams&, int, int) {}

    static __device__ __forceinline__ void multiply_slot(int (&acc)[BN / 2], u32 x, u32 w, bool first) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if constexpr (Blocked) {
                wgmma::mma_u8(acc, wgmma::k_major(x) + 2 * i, wgmma::k_major(w) + 2 * i, !first || i > 0);
            } else {
                wgmma::mma_s8(acc, wgmma::k_major(x) + 2 * i, wgmma::k_major(w) + 2 * i, !first || i > 0);
            }
        }
        wgmma::commit();
    }

    // The integer product of one tile, scaled by xs (not yet by ws).
    static __device__ __forceinline__ void integer_product(float (&v)[BN / 2], Consumer<Format>& c, const GemmParams& p,
                                                           int row0) {
        int acc[BN / 2];
        const int first = min(row0, p.m - 1), second = min(row0 + 8, p.m - 1);  // rows past the end are never written
        if constexpr (Blocked) {
#pragma unroll
            for (int i = 0; i < BN / 2; ++i) v[i] = 0.0f;
            for (int k = 0; k < p.k; k += 256) {
                const float* xs = p.xs + static_cast<long long>(k / 256) * p.m;
                float xs0 = __ldg(xs + first), xs1 = __ldg(xs + second);
                const bool two = k + 128 < p.k;
                u32 x = c.wait_x();
                wgmma::fence();
                multiply_slot(acc, x, c.w_of(x), true);
                if (two) {
                    x = c.wait_x();
                    multiply_slot(acc, x, c.w_of(x), false);
                }
                wgmma::wait<0>();
                wgmma::pin(acc);
                c.release();
                if (two) c.release();
#pragma unroll
                for (int i = 0; i < BN / 2; ++i) v[i] = fmaf(static_cast<float>(acc[i]), i % 4 < 2 ? xs0 : xs1, v[i]);
            }
        } else {
            float xs0 = __ldg(p.xs + first), xs1 = __ldg(p.xs + second);
            u32 x = c.wait_x();
            wgmma::fence();
            multiply_slot(acc, x, c.w_of(x), true);
            for (int k = 128; k < p.k; k += 128) {
                x = c.wait_x();
                wgmma::fence();
                multiply_slot(acc, x, c.w_of(x), false);
                wgmma::wait<1>();
                c.release();
            }
            wgmma::wait<0>();
            wgmma::pin(acc);
            c.release();
#pragma unroll
            for (int i = 0; i < BN / 2; ++i) v[i] = static_cast<float>(acc[i]) * (i % 4 < 2 ? xs0 : xs1);
        }
    }

    static __device__ __forceinline__ void product(float (&v)[BN / 2], Consumer<Format>& c, const GemmParams& p,
                                                   int row0, int n0) {
        integer_product(v, c, p, row0);
        const epilogue::Columns<float> scales{p.ws, n0, p.n};
        const epilogue::Columns<bf16> biases{p.bias, n0, p.n};
#pragma unroll
        for (int j = 0; j < BN / 8; ++j) {
            if (j % 8 == 0) asm volatile("" ::: "memory");  // bounds how many of these loads are under way: registers
            float2 ws = scales[j], bias = biases[j];
            v[4 * j] = fmaf(v[4 * j], ws.x, bias.x);
            v[4 * j + 1] = fmaf(v[4 * j + 1], ws.y, bias.y);
            v[4 * j + 2] = fmaf(v[4 * j + 2], ws.x, bias.x);
            v[4 * j + 3] = fmaf(v[4 * j + 3], ws.y, bias.y);
        }
    }

    static __device__ __forceinline__ void quantise(float (&g)[BN / 2], const GemmParams& p, u32 staging, int n0,
                                                    int m0, int warpgroup) {
        float* scales = p.next_scales + static_cast<long long>(n0 / 256) * p.m;
        epilogue::quantise_u8(g, p.out, scales, p.reciprocal, staging, n0, m0, p.m, p.n, warpgroup);
    }
};

using Wide = Format<256, false>;
using Narrow = Format<192, false>;
using NarrowU8 = Format<192, true>;

}  // namespace w4a8

// y
SVDQ_LINEAR_SM90(gemm_w4a8_store_sm90, w4a8::Wide, STORE)
// out += gate * y
SVDQ_LINEAR_SM90(gemm_w4a8_add_sm90, w4a8::Narrow, ADD)
// The same for inputs quantised unsigned in blocks of 256 channels (fc2).
SVDQ_LINEAR_SM90(gemm_w4a8_add_u8_sm90, w4a8::NarrowU8, ADD)
// q and k normalised and rotated, v as it is
SVDQ_LINEAR_SM90(gemm_w4a8_qkv_sm90, w4a8::Wide, QKV)
// GELU, then quantised and projected down for the next linear
SVDQ_LINEAR_SM90(gemm_w4a8_gelu_sm90, w4a8::Wide, GELU)
