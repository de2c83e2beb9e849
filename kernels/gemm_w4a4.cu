// SVDQuant linear of profile W4A4, exact to the checkpoint, on the 4-bit tensor cores of sm_75 to sm_89:
//   y[m,n] = sum_g (sum_{k in g} xq[m,k] wq[n,k]) xs[g,m] ws[n,g] + sum_r lora[m,r] up[n,r] + bias[n]
// over groups of 64 channels, integer sums exact, groups added up in f32; then one of four epilogues (see the entry
// points). Compiles for later architectures too, where the 4-bit product is emulated: right, but slow.
//
// A CTA of 8 warps computes 128 x 128, a warp 16 rows of it, one group of K a step, through a ring of shared memory.
// All operands lie in global memory in the order in which lanes want them, so that loads need no shuffling:
//   xq  [m/16][k/64][lane] 16 bytes: rows g and g + 8 at channels 8t..8t+7, then both at 32 + 8t.. (lane 4g + t)
//   wq, ws, up, down: Nunchaku's packing, as stored
//
// Launch with 256 threads, SMEM_BYTES of shared memory, blocks of (ceil(m / 128), n / 128). n is a multiple of 128, k
// of 64, ranks of 16, with 0 for none; pointers are aligned to 16 bytes.
#include "common/epilogue.cuh"
#include "common/mma.cuh"

enum Epilogue4 { STORE4, ADD4, QKV4, GELU4 };

struct GemmW4A4Params {
    const uint4* x;           // codes
    const float* xs;          // [k/64, rows], rows = m rounded up to 16
    const uint4* w;           // codes of [n, k]
    const bf16* ws;           // [n/128][k/64][128]
    const bf16* lora;         // [m, rank]
    const uint4* up;          // of [n, rank]
    const bf16* bias;         // [n]
    bf16* out;                // STORE, QKV, ADD: [m, n]
    const bf16* columns;      // ADD: gate [n]. QKV: norm weights of q, then k, [2, 128]
    const u32* rope;          // QKV: [m, 64], cos (low half) and sin of a pair in fp16
    const float* reciprocal;  // GELU: 1 / smooth of the next layer [n]
    const uint4* down;        // GELU: the next layer's of [next_rank, n]
    uint4* next_x;            // GELU: codes of [m, n]
    float* next_scales;       // GELU: [n/64, rows]
    float* next_lora;         // GELU: [n/128, m, next_rank], to be summed over the first axis
    int m, n, k, rank, next_rank;
};

namespace w4a4 {

constexpr int BM = 128, BN = 128, GROUP = 64;

// One group of K for a CTA.
struct Step {
    uint4 x[8][32];
    uint4 w[8][32];
    float xs[BM];
    bf16 ws[BN];
};

#if __CUDA_ARCH__ >= 800 || !defined(__CUDA_ARCH__)
constexpr int STEPS = 4;
#else
constexpr int STEPS = 2;  // copies are not asynchronous
#endif
[[maybe_unused]] constexpr int SMEM_BYTES = STEPS * sizeof(Step);

__device__ __forceinline__ void load_step(Step& to, const GemmW4A4Params& p, int tile_m, int tile_n, int group) {
    const int groups = p.k / GROUP, rows = ceil_div(p.m, 16) * 16, thread = threadIdx.x;
    const int strip = thread / 32, lane = thread % 32;
    const bool in = tile_m * BM + strip * 16 < rows;
    const long long at = static_cast<long long>(in ? tile_m * 8 + strip : 0) * groups + group;
    mma::copy16(&to.x[strip][lane], p.x + at * 32 + lane, in);
    const long long tile = static_cast<long long>(tile_n) * groups + group;
    mma::copy16(&to.w[strip][lane], p.w + tile * 256 + thread, true);
    if (thread < BM / 4) {
        const int row = tile_m * BM + 4 * thread;
        mma::copy16(&to.xs[4 * thread], p.xs + static_cast<long long>(group) * rows + (row < rows ? row : 0),
                    row < rows);
    } else if (thread < BM / 4 + BN / 8) {
        const int n = 8 * (thread - BM / 4);
        mma::copy16(&to.ws[n], p.ws + tile * BN + n, true);
    }
}

// v += one group's products, scaled. The integer sums begin at the bits of 1.5 * 2^23: as floats they are that + sum.
template <bool UNSIGNED>
__device__ __forceinline__ void multiply_step(float (&v)[64], const Step& s) {
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

// v += lora up^T
__device__ __forceinline__ void add_low_rank(float (&v)[64], const GemmW4A4Params& p, int row0, int tile_n) {
    const int lane = threadIdx.x % 32;
    auto pair = [&](int row, int r) {
        return row < p.m ? __ldg(reinterpret_cast<const u32*>(p.lora + static_cast<long long>(row) * p.rank + r)) : 0u;
    };
    for (int r = 0; r < p.rank; r += 16) {
        const int at = r + 2 * (lane % 4);
        const u32 a0 = pair(row0, at), a1 = pair(row0 + 8, at), a2 = pair(row0, at + 8), a3 = pair(row0 + 8, at + 8);
#pragma unroll
        for (int n = 0; n < 8; ++n) {
            const uint4 b = __ldg(p.up + (static_cast<long long>(tile_n * 8 + n) * (p.rank / 16) + r / 16) * 32 + lane);
            float (&first)[4] = *reinterpret_cast<float (*)[4]>(&v[8 * n]);
            float (&second)[4] = *reinterpret_cast<float (*)[4]>(&v[8 * n + 4]);
            mma::bf16_16x8x16(first, a0, a1, a2, a3, b.x, b.y);
            mma::bf16_16x8x16(second, a0, a1, a2, a3, b.z, b.w);
        }
    }
}

// out = v, or out += v, in rows of 16 bytes: the lanes of a quad swap columns first.
template <bool ADD>
__device__ __forceinline__ void write(const float (&v)[64], const GemmW4A4Params& p, int row0, int n0) {
    const int t = threadIdx.x % 4;
#pragma unroll
    for (int row = 0; row < 2; ++row) {
#pragma unroll
        for (int block = 0; block < 4; ++block) {
            u32 r[4];
            if constexpr (!ADD) {
#pragma unroll
                for (int j = 0; j < 4; ++j)
                    r[j] = pack_bf16(v[16 * block + 4 * j + 2 * row], v[16 * block + 4 * j + 2 * row + 1]);
                mma::quad_transpose(r);
            }
            float low[4], high[4];
            if constexpr (ADD) {
                u32 a[4], b[4];
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    a[j] = __float_as_uint(v[16 * block + 4 * j + 2 * row]);
                    b[j] = __float_as_uint(v[16 * block + 4 * j + 2 * row + 1]);
                }
                mma::quad_transpose(a), mma::quad_transpose(b);
#pragma unroll
                for (int j = 0; j < 4; ++j) low[j] = __uint_as_float(a[j]), high[j] = __uint_as_float(b[j]);
            }
            if (row0 + 8 * row >= p.m) continue;
            uint4* to = reinterpret_cast<uint4*>(p.out + static_cast<long long>(row0 + 8 * row) * p.n + n0 +
                                                 32 * block + 8 * t);
            if constexpr (ADD) {
                const uint4 old = *to;
                const u32 words[4] = {old.x, old.y, old.z, old.w};
#pragma unroll
                for (int j = 0; j < 4; ++j)
                    r[j] = pack_bf16(bf16_low(words[j]) + low[j], bf16_high(words[j]) + high[j]);
            }
            *to = make_uint4(r[0], r[1], r[2], r[3]);
        }
    }
}

// Quantises x = (g + shift) * reciprocal[n], rounded to bf16, to 0..15 with one scale a row and group of 64 channels:
// scale = bf16(absmax / 15); code = round half even (x / (absmax / 15)).
__device__ __forceinline__ void quantise_u4(const float (&g)[64], const GemmW4A4Params& p, int row0, int n0) {
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
        // A byte of codes for each of: channels of tile j, rows g and g + 8, then of tile j + 4.
        auto byte = [&](u32 pair, float inverse) {
            u32 low = __float2uint_rn(bf16_low(pair) * inverse), high = __float2uint_rn(bf16_high(pair) * inverse);
            return min(low, 15u) | min(high, 15u) << 4;
        };
        u32 r[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            r[j] = byte(x[j][0], inverse[0]) | byte(x[j][1], inverse[1]) << 8 | byte(x[j + 4][0], inverse[0]) << 16 |
                   byte(x[j + 4][1], inverse[1]) << 24;
        }
        mma::quad_transpose(r);
        // Byte i of every r makes word i.
        const u32 even = __byte_perm(r[0], r[1], 0x5140), odd = __byte_perm(r[2], r[3], 0x5140);
        const u32 even2 = __byte_perm(r[0], r[1], 0x7362), odd2 = __byte_perm(r[2], r[3], 0x7362);
        const uint4 words = make_uint4(__byte_perm(even, odd, 0x5410), __byte_perm(even, odd, 0x7632),
                                       __byte_perm(even2, odd2, 0x5410), __byte_perm(even2, odd2, 0x7632));
        if (row0 - lane / 4 < p.m) {
            p.next_x[(static_cast<long long>(row0 / 16) * (p.n / 64) + n0 / 64 + group) * 32 + lane] = words;
        }
    }
}

// next_lora[tile_n, m, r] = sum over this tile's 128 channels of bf16(g[m,n]) down[r,n]
__device__ __forceinline__ void project_down(const float (&g)[64], const GemmW4A4Params& p, int row0, int tile_n) {
    const int lane = threadIdx.x % 32;
    for (int r = 0; r < p.next_rank; r += 16) {
        float sum[2][4] = {};
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const u32 a0 = pack_bf16(g[8 * i], g[8 * i + 1]), a1 = pack_bf16(g[8 * i + 2], g[8 * i + 3]);
            const u32 a2 = pack_bf16(g[8 * i + 4], g[8 * i + 5]), a3 = pack_bf16(g[8 * i + 6], g[8 * i + 7]);
            const uint4 b =
                __ldg(p.down + (static_cast<long long>(tile_n * 8 + i) * (p.next_rank / 16) + r / 16) * 32 + lane);
            mma::bf16_16x8x16(sum[0], a0, a1, a2, a3, b.x, b.y);
            mma::bf16_16x8x16(sum[1], a0, a1, a2, a3, b.z, b.w);
        }
        float* out = p.next_lora + (static_cast<long long>(tile_n) * p.m + row0) * p.next_rank + r + 2 * (lane % 4);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            if (row0 < p.m) *reinterpret_cast<float2*>(out + 8 * half) = make_float2(sum[half][0], sum[half][1]);
            if (row0 + 8 < p.m)
                *reinterpret_cast<float2*>(out + 8 * p.next_rank + 8 * half) = make_float2(sum[half][2], sum[half][3]);
        }
    }
}

template <bool UNSIGNED, Epilogue4 E>
__device__ __forceinline__ void gemm(const GemmW4A4Params& p) {
    extern __shared__ __align__(1024) unsigned char shared_bytes[];
    Step* steps = reinterpret_cast<Step*>(shared_bytes);
    const int tile_m = blockIdx.x, tile_n = blockIdx.y, n0 = tile_n * BN, groups = p.k / GROUP;
    const int row0 = tile_m * BM + threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4;

    float v[64] = {};
#pragma unroll
    for (int i = 0; i < STEPS - 1; ++i) {
        if (i < groups) load_step(steps[i], p, tile_m, tile_n, i);
        mma::copy_commit();
    }
    for (int group = 0; group < groups; ++group) {
        mma::copy_wait<STEPS - 2>();
        __syncthreads();  // this step has arrived everywhere, and everyone is done with the one before
        const int next = group + STEPS - 1;
        if (next < groups) load_step(steps[next % STEPS], p, tile_m, tile_n, next);
        mma::copy_commit();
        multiply_step<UNSIGNED>(v, steps[group % STEPS]);
    }

    const epilogue::Columns<bf16> biases{p.bias, n0, p.n};
#pragma unroll
    for (int j = 0; j < 16; ++j) {
        const float2 bias = biases[j];
        v[4 * j] += bias.x, v[4 * j + 1] += bias.y;
        v[4 * j + 2] += bias.x, v[4 * j + 3] += bias.y;
    }
    add_low_rank(v, p, row0, tile_n);

    if constexpr (E == STORE4) {
        write<false>(v, p, row0, n0);
    } else if constexpr (E == ADD4) {
        const epilogue::Columns<bf16> gates{p.columns, n0, p.n};
#pragma unroll
        for (int j = 0; j < 16; ++j) {
            const float2 gate = gates[j];
            v[4 * j] *= gate.x, v[4 * j + 1] *= gate.y;
            v[4 * j + 2] *= gate.x, v[4 * j + 3] *= gate.y;
        }
        write<true>(v, p, row0, n0);
    } else if constexpr (E == QKV4) {
        const int third = 3 * n0 / p.n;
        if (third < 2) {
            epilogue::Rope rope;
            rope.load(p.rope + 64ll * min(row0, p.m - 1), p.rope + 64ll * min(row0 + 8, p.m - 1));
            epilogue::norm_rope(v, p.columns + 128 * third, rope);
        }
        write<false>(v, p, row0, n0);
    } else {
#pragma unroll
        for (int i = 0; i < 64; ++i) v[i] = epilogue::gelu_tanh(v[i]);
        quantise_u4(v, p, row0, n0);
        project_down(v, p, row0, tile_n);
    }
}

}  // namespace w4a4

#define SVDQ_GEMM_W4A4(NAME, UNSIGNED, EPILOGUE)                                                          \
    extern "C" __global__ void __launch_bounds__(256, 2) NAME(const __grid_constant__ GemmW4A4Params p) { \
        w4a4::gemm<UNSIGNED, EPILOGUE>(p);                                                                \
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
