// SVDQuant linear of profile W4A4, exact to the checkpoint, on the 4-bit tensor cores of sm_75 to sm_89:
//   y[m,n] = sum_g (sum_{k in g} xq[m,k] wq[n,k]) xs[g,m] ws[n,g] + sum_r lora[m,r] up[n,r] + bias[n]
// over groups of 64 channels, integer sums exact, groups added up in f32; then one of four epilogues (see the entry
// points). Compiles for later architectures too, where the 4-bit product is emulated: right, but slow.
//
// Operands lie in global memory as lanes want them, so that loads need no shuffling: see linear4::Codes. ws, and
// the first part's up and down, are in Nunchaku's packing, as stored.
//
// Launch with 256 threads, SMEM_BYTES of shared memory, blocks of (ceil(m / 128), n / 128). n is a multiple of 128, k
// of 64, ranks of 16, with 0 for none; pointers are aligned to 16 bytes.
#include "common/linear4.cuh"

struct GemmW4A4Params {
    const uint4* x;           // codes
    const float* xs;          // [k/64, rows], rows = m rounded up to 16
    const uint4* w;           // codes of [n, k]
    const bf16* ws;           // [n/128][k/64][128]
    const bf16* lora;         // [m, rank]
    const bf16* bias;         // [n]
    bf16* out;                // STORE, QKV, ADD: [m, n]
    const bf16* columns;      // ADD: gate [n]. QKV: norm weights of q, then k, [2, 128]
    const u32* rope;          // QKV: [m, 64], cos (low half) and sin of a pair in fp16
    const float* reciprocal;  // GELU: 1 / smooth of the next layer [n]
    uint4* next_x;            // GELU: codes of [m, n]
    float* next_scales;       // GELU: [n/64, rows]
    float* next_lora;         // GELU: [n/128, m, next_rank], to be summed over the first axis
    UpPart parts[MAX_PARTS];         // the first in Nunchaku's packing
    DownPart next_parts[MAX_PARTS];  // GELU: the next layer's, likewise
    int m, n, k, rank, next_rank;    // ranks: of all parts
};

namespace w4a4 {

using namespace linear4;

template <bool UNSIGNED>
struct Format {
    using Params = GemmW4A4Params;

    struct Step : Codes {
        float xs[BM];
        bf16 ws[BN];
    };

    static __device__ __forceinline__ void load_step(Step& to, const Params& p, int tile_m, int tile_n, int group) {
        const int thread = threadIdx.x;
        load_codes(to, p, tile_m, tile_n, group);
        if (thread < BM / 4) {
            load_row_scales(&to.xs[4 * thread], p, tile_m, group, thread);
        } else if (thread < BM / 4 + BN / 8) {
            const int n = 8 * (thread - BM / 4);
            const long long tile = static_cast<long long>(tile_n) * (p.k / GROUP) + group;
            mma::copy16(&to.ws[n], p.ws + tile * BN + n, true);
        }
    }

    // v += one group's products, scaled. The integer sums begin at the bits of 1.5 * 2^23: as floats they are that +
    // sum.
    static __device__ __forceinline__ void multiply_step(float (&v)[64], const Step& s) {
        constexpr float MAGIC = 12582912.0f;
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        const uint4 x = s.x[warp][lane];
        const float xs0 = s.xs[16 * warp + lane / 4], xs1 = s.xs[16 * warp + lane / 4 + 8];
#pragma unroll
        for (int pair = 0; pair < 8; ++pair) {
            const uint4 w = s.w[pair][lane];
            const uint2 ws = *reinterpret_cast<const uint2*>(&s.ws[16 * pair + 4 * (lane % 4)]);
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                int d[4];
                mma::s4_16x8x64<UNSIGNED>(d, x, half ? w.z : w.x, half ? w.w : w.y, 0x4b400000);
                const u32 scales = half ? ws.y : ws.x;
                const float ws0 = bf16_low(scales), ws1 = bf16_high(scales);
                float* out = &v[8 * pair + 4 * half];
                out[0] = fmaf(__int_as_float(d[0]) - MAGIC, xs0 * ws0, out[0]);
                out[1] = fmaf(__int_as_float(d[1]) - MAGIC, xs0 * ws1, out[1]);
                out[2] = fmaf(__int_as_float(d[2]) - MAGIC, xs1 * ws0, out[2]);
                out[3] = fmaf(__int_as_float(d[3]) - MAGIC, xs1 * ws1, out[3]);
            }
        }
    }

    static __device__ __forceinline__ void finish(float (&)[64], const Params&, int) {}

    // Quantises x = (g + shift) * reciprocal[n], rounded to bf16, to 0..15 with one scale a row and group of 64
    // channels: scale = bf16(absmax / 15); code = round half even (x / (absmax / 15)).
    static __device__ __forceinline__ void quantise(const float (&g)[64], const Params& p, int row0, int n0) {
        const int lane = threadIdx.x % 32, rows = ceil_div(p.m, 16) * 16;
        const epilogue::Columns<float> reciprocals{p.reciprocal, n0, p.n};
#pragma unroll
        for (int group = 0; group < 2; ++group) {
            u32 x[8][2];  // bf16 pairs of rows g and g + 8
            float top[2] = {};
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                const float2 r = reciprocals[8 * group + j];
                const float* from = &g[32 * group + 4 * j];
#pragma unroll
                for (int row = 0; row < 2; ++row) {
                    x[j][row] =
                        pack_bf16((from[2 * row] + epilogue::SHIFT) * r.x, (from[2 * row + 1] + epilogue::SHIFT) * r.y);
                    top[row] = fmaxf(top[row], fmaxf(bf16_low(x[j][row]), bf16_high(x[j][row])));
                }
            }
            float inverse[2];
#pragma unroll
            for (int row = 0; row < 2; ++row) {
                top[row] = quad_max(top[row]);
                const float scale = top[row] * (1.0f / 15);
                inverse[row] = code_scale(top[row], 15.0f);
                if (lane % 4 == 0 && row0 + 8 * row < rows) {
                    p.next_scales[static_cast<long long>(n0 / 64 + group) * rows + row0 + 8 * row] =
                        bf16_low(pack_bf16(scale, 0.0f));
                }
            }
            auto byte = [&](u32 pair, float inverse) {
                u32 low = __float2uint_rn(bf16_low(pair) * inverse), high = __float2uint_rn(bf16_high(pair) * inverse);
                return min(low, 15u) | min(high, 15u) << 4;
            };
            u32 codes[4];
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                codes[j] = byte(x[j][0], inverse[0]) | byte(x[j][1], inverse[1]) << 8 |
                           byte(x[j + 4][0], inverse[0]) << 16 | byte(x[j + 4][1], inverse[1]) << 24;
            }
            write_codes(codes, p, row0, n0 / 64 + group);
        }
    }
};

[[maybe_unused]] constexpr int SMEM_BYTES = STEPS * sizeof(Format<false>::Step);

}  // namespace w4a4

#define SVDQ_GEMM_W4A4(NAME, UNSIGNED, EPILOGUE)                                                          \
    extern "C" __global__ void __launch_bounds__(256, 2) NAME(const __grid_constant__ GemmW4A4Params p) { \
        linear4::gemm<w4a4::Format<UNSIGNED>, EPILOGUE>(p);                                               \
    }

// y
SVDQ_GEMM_W4A4(gemm_w4a4_store, false, STORE4)
// out += gate * y
SVDQ_GEMM_W4A4(gemm_w4a4_add, false, ADD4)
// The same for inputs quantised unsigned (fc2).
SVDQ_GEMM_W4A4(gemm_w4a4_add_u4, true, ADD4)
// q and k normalised and rotated, v as it is
SVDQ_GEMM_W4A4(gemm_w4a4_qkv, false, QKV4)
// GELU, then quantised and projected down for the next linear
SVDQ_GEMM_W4A4(gemm_w4a4_gelu, false, GELU4)
