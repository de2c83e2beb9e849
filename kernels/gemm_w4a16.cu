// Linears with 4-bit weights and bf16 activations, for few rows (the modulation of all denoising steps at once):
//   y[m,n] = sum_k x[m,k] (code[n,k] scale[g,n] + zero[g,n]),   g = k / group
// on codes as Nunchaku's AWQ files store them, read once: 16-bit word
//   (n/4) k + (k/64) 64 + (n%4) 16 + (k%64/32) 8 + k%8
// holds codes k, k + 8, k + 16, k + 24 of a run of 32 channels in its nibbles. Products are of x and 128 + code, exact
// in bf16; scales, and what takes the 128 away again, apply to their sums over 64 channels. Stored row d * chunks + s
// becomes column s * n/chunks + d, and the epilogue is a dense linear's.
#include "common/mma.cuh"
#include "common/product_bf16.cuh"

struct W4A16Params {
    const bf16* x;       // [m, k]
    const u16* codes;    // n * k / 4 words
    const bf16* scales;  // [k/group, n]
    const bf16* zeros;   // [k/group, n]
    int m, n, k;
    int group;               // 64 or 128; divides k
    int chunks;              // divides n
    product::Output output;  // [m, n], its columns and vectors in the order of the result
};

namespace w4a16 {

// A block has 64 rows of weights. Its warps are two halves of the rows by four parts of the channels.
constexpr int ROWS = 64, THREADS = 256, PARTS = 4;

// 128 + codes `nibble` of both halves of `word`, as operands: their bits, of bf16 or of fp16 times 2^4, are at hand
// without a conversion.
__device__ __forceinline__ u32 biased_codes(u32 word, int nibble) {
    const u32 codes = word >> (4 * nibble) & 0x000f000fu;
    return ARCH >= 800 ? codes | 0x43004300u : codes << 3 | 0x68006800u;
}

// What a thread needs of 32 rows of weights by 64 channels: rows 8 i + g, with g = lane / 4. Of a row's codes, t = lane
// % 4 has channels 32 (t/2) + 8 j + 4 (t%2) + 0..3, j = 0..3, so that step j of the products is channels 8 j .. of each
// half.
struct Weights {
    uint2 words[4];
    bf16 scales[4], zeros[4];

    // `offsets`: of the rows' first codes.
    __device__ __forceinline__ void load(const W4A16Params& p, const u32 (&offsets)[4], const int (&rows)[4], int k,
                                         int shift) {
        if (k >= p.k) return;
        const u32 vector = (k >> shift) * p.n;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            words[i] = __ldg(reinterpret_cast<const uint2*>(p.codes + offsets[i] + k));
            scales[i] = p.scales[vector + rows[i]];
            zeros[i] = p.zeros[vector + rows[i]];
        }
    }
};

// 64 rows of weights by 8 TOKENS rows of x. Weights are loaded one turn ahead: they come from memory, x from a cache.
template <int TOKENS>
__device__ __forceinline__ void linear(const W4A16Params& p) {
    __shared__ float results[ROWS][8 * TOKENS + 1];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int first = warp % 2 * 32, part_of_k = warp / 2, m0 = blockIdx.x * 8 * TOKENS, n0 = blockIdx.y * ROWS;
    const u32 ones = mma::operand<mma::WEIGHT>(0x3f803f80u);
    float sums[2][TOKENS][4] = {};

    const int shift = p.group == 64 ? 6 : 7;
    int rows[4];
    u32 offsets[4];
    const bf16* x[TOKENS];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        rows[i] = min(n0 + first + 8 * i + g, p.n - 1);
        offsets[i] = rows[i] / 4 * p.k + rows[i] % 4 * 16 + 4 * t;
    }
#pragma unroll
    for (int j = 0; j < TOKENS; ++j)
        x[j] = p.x + static_cast<long long>(min(m0 + 8 * j + g, p.m - 1)) * p.k + 32 * (t / 2) + 4 * (t % 2);

    Weights next;
    next.load(p, offsets, rows, 64 * part_of_k, shift);
    for (int k = 64 * part_of_k; k < p.k; k += 64 * PARTS) {
        const Weights w = next;
        next.load(p, offsets, rows, k + 64 * PARTS, shift);
        uint2 inputs[TOKENS][4];
        float totals[TOKENS][4] = {}, part[2][TOKENS][4] = {};
#pragma unroll
        for (int j = 0; j < TOKENS; ++j)
#pragma unroll
            for (int step = 0; step < 4; ++step) {
                const uint2 pairs = __ldg(reinterpret_cast<const uint2*>(x[j] + k + 8 * step));
                inputs[j][step] =
                    make_uint2(mma::operand<mma::ACTIVATION>(pairs.x), mma::operand<mma::ACTIVATION>(pairs.y));
            }
#pragma unroll
        for (int step = 0; step < 4; ++step) {
#pragma unroll
            for (int j = 0; j < TOKENS; ++j)
                mma::multiply_16x8x16(totals[j], ones, ones, ones, ones, inputs[j][step].x, inputs[j][step].y);
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const u32 a0 = biased_codes(w.words[2 * i].x, step), a1 = biased_codes(w.words[2 * i + 1].x, step);
                const u32 a2 = biased_codes(w.words[2 * i].y, step), a3 = biased_codes(w.words[2 * i + 1].y, step);
#pragma unroll
                for (int j = 0; j < TOKENS; ++j)
                    mma::multiply_16x8x16(part[i][j], a0, a1, a2, a3, inputs[j][step].x, inputs[j][step].y);
            }
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float scale = __bfloat162float(w.scales[i]),
                        zero = fmaf(-128.0f, scale, __bfloat162float(w.zeros[i]));
#pragma unroll
            for (int j = 0; j < TOKENS; ++j)
#pragma unroll
                for (int e = i % 2 * 2; e < i % 2 * 2 + 2; ++e)
                    sums[i / 2][j][e] = fmaf(part[i / 2][j][e], scale, fmaf(totals[j][e], zero, sums[i / 2][j][e]));
        }
    }

    for (int turn = 0; turn < PARTS; ++turn) {
        if (part_of_k == turn) {
#pragma unroll
            for (int i = 0; i < 2; ++i)
#pragma unroll
                for (int j = 0; j < TOKENS; ++j)
#pragma unroll
                    for (int e = 0; e < 4; ++e) {
                        float& to = results[first + 16 * i + e / 2 * 8 + g][8 * j + 2 * t + e % 2];
                        to = turn == 0 ? sums[i][j][e] : to + sums[i][j][e];
                    }
        }
        __syncthreads();
    }
    for (int i = threadIdx.x; i < ROWS * 8 * TOKENS; i += THREADS) {
        const int row = n0 + i % ROWS, m = m0 + i / ROWS;
        if (row >= p.n || m >= p.m) continue;
        const int column = row % p.chunks * (p.n / p.chunks) + row / p.chunks;
        p.output.finish(results[i % ROWS][i / ROWS], m, column);
    }
}

}  // namespace w4a16

// All: grid (ceil(m/M), ceil(n/64)), block 256; M is in the name. k a multiple of 64, n of 4, n k / 4 below 2^32; any
// m. x and codes are aligned to 8 bytes.
extern "C" __global__ void __launch_bounds__(256, 2) gemm_w4a16_m8(const __grid_constant__ W4A16Params p) {
    w4a16::linear<1>(p);
}
extern "C" __global__ void __launch_bounds__(256, 2) gemm_w4a16_m16(const __grid_constant__ W4A16Params p) {
    w4a16::linear<2>(p);
}
