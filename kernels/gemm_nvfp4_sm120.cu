// SVDQuant linear of NVFP4 checkpoints on the block-scaled tensor cores of sm_120:
//   y[m,n] = channels[n] sum_g (sum_{k in g} xq[m,k] wq[n,k]) xs[m,g] ws[n,g] + sum_r lora[m,r] up[n,r] + bias[n]
// over groups of 16 channels, codes e2m1, scales e4m3, sums in f32; then one of four epilogues (see the entry points).
//
// HAS RUN ON NO GPU: there was none of sm_120 at hand. It compiles for sm_120f, and its machine code has the
// instruction. For other architectures the product is emulated as documented, which is slow and checks all but the
// instruction.
//
// Codes lie as linear4::Codes says, which is how the m16n8k64 instructions want them, be they of int4 or of e2m1. A
// weight's scales are used as stored as well. Formula: the scale of channel n and group g is byte
//   (((n/128 * k/64 + g/4) * 8 + n%8) * 16 + n%32/8 * 4 + n%128/32) * 4 + g%4.
// Of 128 channels and 64 of K that is 512 bytes; 16 bytes a lane, lane 4c + b gets four words, word `a` with the four
// scales of channel 32a + 8b + c. An instruction multiplies channels 8j..8j+7, j = 4a + b, and takes the scales of 8j +
// c from the one lane of quad c that its selector names: b. So word `a` of every lane serves four instructions, with
// selectors 0 to 3. Of activations the first two lanes of quad g give the scales of rows g and g + 8.
//
// Launch with 256 threads, SMEM_BYTES of shared memory, blocks of (ceil(m / 128), n / 128). n is a multiple of 128, k
// of 64, ranks of 16, with 0 for none; pointers are aligned to 16 bytes.
#include "common/linear4.cuh"
#include "common/nvfp4.cuh"

struct GemmNvfp4Params {
    const uint4* x;           // codes
    const u32* xs;            // [k/64, rows], rows = m rounded up to 16: four scales a word
    const uint4* w;           // codes of [n, k]
    const uint4* ws;          // scales of [n, k/16], in Nunchaku's packing
    const float* channels;    // [n], wtscale * wcscales
    const bf16* lora;         // [m, rank]
    const bf16* bias;         // [n]
    bf16* out;                // STORE, QKV, ADD: [m, n]
    const bf16* columns;      // ADD: gate [n]. QKV: norm weights of q, then k, [2, 128]
    const u32* rope;          // QKV: [m, 64], cos (low half) and sin of a pair in fp16
    const float* reciprocal;  // GELU: 1 / smooth of the next layer [n]
    uint4* next_x;            // GELU: codes of [m, n]
    u32* next_scales;         // GELU: [n/64, rows]
    float* next_lora;         // GELU: [n/128, m, next_rank], to be summed over the first axis
    UpPart parts[MAX_PARTS];         // the first in Nunchaku's packing
    DownPart next_parts[MAX_PARTS];  // GELU: the next layer's, likewise
    int m, n, k, rank, next_rank;    // ranks: of all parts
};

namespace nvfp4 {

using namespace linear4;

struct Format {
    using Params = GemmNvfp4Params;

    struct Step : Codes {
        u32 xs[BM];
        uint4 ws[32];
    };

    static __device__ __forceinline__ void load_step(Step& to, const Params& p, int tile_m, int tile_n, int group) {
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        load_codes(to, p, tile_m, tile_n, group);
        if (warp == 0) {
            load_row_scales(&to.xs[4 * lane], p, tile_m, group, lane);
        } else if (warp == 1) {
            const long long tile = static_cast<long long>(tile_n) * (p.k / GROUP) + group;
            mma::copy16(&to.ws[lane], p.ws + tile * 32 + lane, true);
        }
    }

    static __device__ __forceinline__ void multiply_step(float (&v)[64], const Step& s) {
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        const uint4 x = s.x[warp][lane], ws = s.ws[lane];
        const u32 xs = s.xs[16 * warp + lane / 4 + 8 * (lane % 2)], words[4] = {ws.x, ws.y, ws.z, ws.w};
        auto tile = [&](int j) -> float(&)[4] { return *reinterpret_cast<float(*)[4]>(&v[4 * j]); };
#pragma unroll
        for (int a = 0; a < 4; ++a) {
            const uint4 first = s.w[2 * a][lane], second = s.w[2 * a + 1][lane];
            mma_16x8x64<0>(tile(4 * a), x, first.x, first.y, xs, words[a]);
            mma_16x8x64<1>(tile(4 * a + 1), x, first.z, first.w, xs, words[a]);
            mma_16x8x64<2>(tile(4 * a + 2), x, second.x, second.y, xs, words[a]);
            mma_16x8x64<3>(tile(4 * a + 3), x, second.z, second.w, xs, words[a]);
        }
    }

    // Times `channels`.
    static __device__ __forceinline__ void finish(float (&v)[64], const Params& p, int n0) {
        const epilogue::Columns<float> channels{p.channels, n0, p.n};
#pragma unroll
        for (int j = 0; j < 16; ++j) {
            const float2 channel = channels[j];
            v[4 * j] *= channel.x, v[4 * j + 1] *= channel.y;
            v[4 * j + 2] *= channel.x, v[4 * j + 3] *= channel.y;
        }
    }

    // Codes g * reciprocal[n], rounded to bf16.
    static __device__ __forceinline__ void quantise(const float (&g)[64], const Params& p, int row0, int n0) {
        const int lane = threadIdx.x % 32, rows = ceil_div(p.m, 16) * 16;
        const epilogue::Columns<float> reciprocals{p.reciprocal, n0, p.n};
#pragma unroll
        for (int group = 0; group < 2; ++group) {
            u32 codes[4] = {}, scales[2] = {};
#pragma unroll
            for (int sixteen = 0; sixteen < 4; ++sixteen) {
                const int j = 2 * sixteen;  // tiles j and j + 1 of this group
                const float2 r[2] = {reciprocals[8 * group + j], reciprocals[8 * group + j + 1]};
#pragma unroll
                for (int row = 0; row < 2; ++row) {
                    u32 x[2];
                    float top = 0.0f;
#pragma unroll
                    for (int half = 0; half < 2; ++half) {
                        const float* from = &g[32 * group + 4 * (j + half) + 2 * row];
                        x[half] = pack_bf16(from[0] * r[half].x, from[1] * r[half].y);
                        top = fmaxf(top, fmaxf(fabsf(bf16_low(x[half])), fabsf(bf16_high(x[half]))));
                    }
                    const Scale scale(quad_max(top));
                    scales[row] |= scale.stored << (8 * sixteen);
#pragma unroll
                    for (int half = 0; half < 2; ++half) {
                        codes[(j + half) % 4] |=
                            to_e2m1(bf16_low(x[half]) * scale.inverse, bf16_high(x[half]) * scale.inverse)
                            << (16 * (j / 4) + 8 * row);
                    }
                }
            }
            const int at = n0 / 64 + group;
#pragma unroll
            for (int row = 0; row < 2; ++row) {
                if (lane % 4 == 0 && row0 + 8 * row < rows)
                    p.next_scales[static_cast<long long>(at) * rows + row0 + 8 * row] = scales[row];
            }
            write_codes(codes, p, row0, at);
        }
    }
};

[[maybe_unused]] constexpr int SMEM_BYTES = STEPS * sizeof(Format::Step);

}  // namespace nvfp4

#define SVDQ_GEMM_NVFP4(NAME, EPILOGUE)                                                                    \
    extern "C" __global__ void __launch_bounds__(256, 2) NAME(const __grid_constant__ GemmNvfp4Params p) { \
        linear4::gemm<nvfp4::Format, EPILOGUE>(p);                                                         \
    }

// y
SVDQ_GEMM_NVFP4(gemm_nvfp4_store, STORE4)
// out += gate * y
SVDQ_GEMM_NVFP4(gemm_nvfp4_add, ADD4)
// q and k normalised and rotated, v as it is
SVDQ_GEMM_NVFP4(gemm_nvfp4_qkv, QKV4)
// GELU, then quantised and projected down for the next linear
SVDQ_GEMM_NVFP4(gemm_nvfp4_gelu, GELU4)
