// SVDQuant linear of profile W4A4, exact to the checkpoint, on Hopper:
//   y[m,n] = sum_g (sum_{k in g} xq[m,k] wq[n,k]) xs[g,m] ws[n,g] + sum_r lora[m,r] up[n,r] + bias[n]
// over groups of 64 channels, then one of four epilogues: see linear_sm90.cuh, which this is a format of.
//
// Codes are e4m3 numbers, -8 .. 15, in bytes. The tensor cores add up their products in floats that keep 14 bits; a
// group's sum is an integer below 2^13 in magnitude, as are all sums on the way: they are exact. Groups are added up in
// f32, each with one rounding, in the order of K: the same numbers as by gemm_w4a4.
//
//   x   [m, k], w [n, k]  codes
//   xs  [k/64, m]
//   scales       w's: [n/128, k/64, 128] floats, as unpack_w4a4_sm90 leaves them: in Nunchaku's order; box 2 x 2 x 128,
//                not swizzled
//   next_scales  [n/64, m]
// n is a multiple of 128.
#include "common/linear_sm90.cuh"

namespace w4a4_sm90 {

using linear_sm90::Consumer;

struct Format {
    static constexpr int BN = 256, PIECE = 64, DOWN_PIECE = 32, GROUP = 64;
    // Of two groups, for two blocks of 128 columns.
    static constexpr int BLOCK_BYTES = 2 * 128 * 4, SCALE_BYTES = 2 * BLOCK_BYTES;

    static __device__ __forceinline__ void load_scales(u32 to, u32 bar, const GemmParams& p, int k, int n0) {
        sm90::load_3d(to, p.scales, bar, 0, k / GROUP, n0 / 128);
    }

    static __device__ __forceinline__ void product(float (&v)[128], Consumer<Format>& c, const GemmParams& p, int row0,
                                                   int n0) {
        // Rows past the end are never written.
        const float *xs0 = p.xs + min(row0, p.m - 1), *xs1 = p.xs + min(row0 + 8, p.m - 1);
        float next[2] = {__ldg(xs0), __ldg(xs1)};
#pragma unroll
        for (int i = 0; i < 128; ++i) v[i] = 0.0f;
        for (int k = 0; k < p.k; k += 2 * GROUP) {
            const u32 x = c.wait_x(), w = c.w_of(x), ws = c.scales_of(x) + 16 * (threadIdx.x % 4);
#pragma unroll
            for (int group = 0; group < 2; ++group) {
                if (k + group * GROUP >= p.k) break;
                const float scales[2] = {next[0], next[1]};
                if (k + (group + 1) * GROUP < p.k) {
                    xs0 += p.m, xs1 += p.m;
                    next[0] = __ldg(xs0), next[1] = __ldg(xs1);
                }
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    float sum[64];
                    const u64 a = wgmma::k_major(x) + 4 * group, b = wgmma::k_major(w + half * 128 * 128) + 4 * group;
                    wgmma::fence();
                    wgmma::mma_e4m3(sum, a, b, false);
                    wgmma::mma_e4m3(sum, a + 2, b + 2, true);
                    wgmma::commit();
                    wgmma::wait<0>();
                    wgmma::pin(sum);
                    add_scaled(&v[64 * half], sum, scales, ws + half * BLOCK_BYTES + group * 128 * 4);
                }
            }
            c.release();
        }
        const epilogue::Columns<bf16> biases{p.bias, n0, p.n};
#pragma unroll
        for (int j = 0; j < BN / 8; ++j) {
            if (j % 8 == 0) asm volatile("" ::: "memory");  // bounds how many of these loads are under way: registers
            const float2 bias = biases[j];
            v[4 * j] += bias.x, v[4 * j + 1] += bias.y;
            v[4 * j + 2] += bias.x, v[4 * j + 3] += bias.y;
        }
    }

    // v += sum xs ws of a group in 128 columns. sum xs has no more than 22 bits: only the addition rounds.
    static __device__ __forceinline__ void add_scaled(float* v, const float (&sum)[64], const float (&xs)[2], u32 ws) {
#pragma unroll
        for (int pair = 0; pair < 8; ++pair) {
            const float4 s = sm90::load_shared(ws + 64 * pair);
            const float columns[4] = {s.x, s.y, s.z, s.w};  // 0 and 1, 8 and 9 of 16, from 2 (lane % 4) on
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                const int at = 8 * pair + i;
                v[at] = fmaf(sum[at] * xs[i % 4 / 2], columns[i / 4 * 2 + i % 2], v[at]);
            }
        }
    }

    static __device__ __forceinline__ void quantise(float (&g)[128], const GemmParams& p, u32 staging, int n0, int m0,
                                                    int warpgroup) {
        float* scales = p.next_scales + static_cast<long long>(n0 / GROUP) * p.m;
        epilogue::quantise_u4(g, p.out, scales, p.reciprocal, staging, n0, m0, p.m, p.n, warpgroup);
    }
};

}  // namespace w4a4_sm90

// y
SVDQ_LINEAR_SM90(gemm_w4a4_store_sm90, w4a4_sm90::Format, STORE)
// out += gate * y
SVDQ_LINEAR_SM90(gemm_w4a4_add_sm90, w4a4_sm90::Format, ADD)
// q and k normalised and rotated, v as it is
SVDQ_LINEAR_SM90(gemm_w4a4_qkv_sm90, w4a4_sm90::Format, QKV)
// GELU, then quantised and projected down for the next linear
SVDQ_LINEAR_SM90(gemm_w4a4_gelu_sm90, w4a4_sm90::Format, GELU)
