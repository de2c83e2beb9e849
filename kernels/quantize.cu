// The input of a 4-bit linear, in one pass over x:
//   h         = x, or (x - mean) / sqrt(var + 1e-6) * scale + shift
//   lora[m,r] = sum_k bf16(h[m,k]) down[r,k]
//   W4A8:  xq[m], xs[m]       = h[m] * reciprocal, quantised to -127..127 with one scale a row, absmax / 127
//   W4A4:  xq[m,g], xs[g,m]   = bf16(h[m] * reciprocal), quantised to -8..7 in groups of 64, bf16(absmax / 7)
// A CTA owns a row a warp, 16 or, where shared memory is short, 8. Each warp normalises and quantises its row and
// leaves it in shared memory; then the warps multiply all rows with `down`, each half of the ranks over its part of K.
// Sums are taken in a fixed order, so that results do not depend on timing.
#include "common/mma.cuh"
#include "common/types.cuh"

struct QuantizeParams {
    const bf16* x;            // [m, k]
    const bf16* scale;        // [k], holding its 1 +; null for no norm
    const bf16* shift;        // [k]
    const float* reciprocal;  // [k], 1 / smooth
    const bf16* down;         // [rank, k]
    void* xq;                 // W4A8: [m, k] bytes. W4A4: the layout of gemm_w4a4
    float* xs;                // W4A8: [m]. W4A4: [k/64, m rounded up to 16]
    bf16* lora;               // [m, rank]
    int m, k, rank;
};

namespace quantize {

// Shared memory: h, rows padded by 64 bytes so that a quarter-warp's reads of two rows fall into different banks, then
// partial sums [rows/2 parts of K, rows, 32 ranks].
__host__ __device__ constexpr int pitch(int k) {
    return k + 32;
}
__host__ __device__ constexpr int smem_bytes(int k, int rows) {
    return rows * pitch(k) * 2 + rows / 2 * rows * 32 * 4;
}

__device__ __forceinline__ void unpack(uint4 v, float (&out)[8]) {
    const u32 words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        out[2 * i] = bf16_low(words[i]);
        out[2 * i + 1] = bf16_high(words[i]);
    }
}

__device__ __forceinline__ uint4 pack(const float (&v)[8]) {
    return make_uint4(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7]));
}

__device__ __forceinline__ void load8(const bf16* from, float (&out)[8]) {
    unpack(__ldg(reinterpret_cast<const uint4*>(from)), out);
}

__device__ __forceinline__ void load8(const float* from, float (&out)[8]) {
    float4 a = __ldg(reinterpret_cast<const float4*>(from)), b = __ldg(reinterpret_cast<const float4*>(from) + 1);
    out[0] = a.x, out[1] = a.y, out[2] = a.z, out[3] = a.w;
    out[4] = b.x, out[5] = b.y, out[6] = b.z, out[7] = b.w;
}

__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
    for (int mask = 16; mask; mask /= 2) v += __shfl_xor_sync(~0u, v, mask);
    return v;
}

__device__ __forceinline__ float warp_max(float v) {
#pragma unroll
    for (int mask = 16; mask; mask /= 2) v = fmaxf(v, __shfl_xor_sync(~0u, v, mask));
    return v;
}

// Codes of 8 channels, a byte each. Adding 1.5 * 2^23 rounds to an integer, half to even, in the low bits.
__device__ __forceinline__ uint2 codes(const float (&v)[8], float inverse) {
    u32 q[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) q[i] = __float_as_uint(fmaf(v[i], inverse, 12582912.0f));
    auto join = [](u32 a, u32 b, u32 c, u32 d) {
        return __byte_perm(__byte_perm(a, b, 0x0040), __byte_perm(c, d, 0x0040), 0x5410);
    };
    return make_uint2(join(q[0], q[1], q[2], q[3]), join(q[4], q[5], q[6], q[7]));
}

// Leaves h of row `row` in `shared` and gives the largest |h * reciprocal|. A lane holds 8 channels of every 256.
__device__ __forceinline__ float normalise_row(const QuantizeParams& p, int row, bf16* shared) {
    const int lane = threadIdx.x % 32;
    const bf16* x = p.x + static_cast<long long>(row) * p.k;
    auto at = [&](int k) { return reinterpret_cast<uint4*>(shared + k); };
    float v[8], sum = 0.0f, square = 0.0f, top = 0.0f;

    // Moments in one pass: good to 1e-7 (1 + mean^2 / var).
#pragma unroll 6
    for (int k = 8 * lane; k < p.k; k += 256) {
        uint4 packed = row < p.m ? *reinterpret_cast<const uint4*>(x + k) : make_uint4(0, 0, 0, 0);
        *at(k) = packed;
        unpack(packed, v);
#pragma unroll
        for (int c = 0; c < 8; ++c) {
            sum += v[c];
            square = fmaf(v[c], v[c], square);
        }
    }
    const float share = reciprocal_of(p.k);
    const float mean = warp_sum(sum) * share;
    const float deviation = inverse_sqrt(warp_sum(square) * share - mean * mean + 1e-6f);
#pragma unroll 3
    for (int k = 8 * lane; k < p.k; k += 256) {
        float scale[8], shift[8], reciprocal[8];
        load8(p.reciprocal + k, reciprocal);
        unpack(*at(k), v);
        if (p.scale) {
            load8(p.scale + k, scale), load8(p.shift + k, shift);
#pragma unroll
            for (int c = 0; c < 8; ++c) v[c] = fmaf((v[c] - mean) * deviation, scale[c], shift[c]);
            *at(k) = pack(v);
        }
#pragma unroll
        for (int c = 0; c < 8; ++c) top = fmaxf(top, fabsf(v[c] * reciprocal[c]));
    }
    return warp_max(top);
}

__device__ __forceinline__ void quantise_w4a8(const QuantizeParams& p, int row, const bf16* h, float top) {
    const int lane = threadIdx.x % 32;
    if (row >= p.m) return;
    if (lane == 0) p.xs[row] = top * (1.0f / 127);
    const float inverse = code_scale(top, 127.0f);
    u8* xq = static_cast<u8*>(p.xq) + static_cast<long long>(row) * p.k;
#pragma unroll 3
    for (int k = 8 * lane; k < p.k; k += 256) {
        float reciprocal[8], v[8];
        load8(p.reciprocal + k, reciprocal);
        unpack(*reinterpret_cast<const uint4*>(h + k), v);
#pragma unroll
        for (int c = 0; c < 8; ++c) v[c] *= reciprocal[c];
        *reinterpret_cast<uint2*>(xq + k) = codes(v, inverse);
    }
}

// Eight lanes hold a group of 64 channels, each of them one word of an mma operand.
__device__ __forceinline__ void quantise_w4a4(const QuantizeParams& p, int row, const bf16* h) {
    const int lane = threadIdx.x % 32, rows = ceil_div(p.m, 16) * 16;
    if (row >= rows) return;
    for (int first = 0; first < p.k; first += 256) {
        const int k = first + 8 * lane, group = k / 64;
        float reciprocal[8] = {}, v[8] = {}, top = 0.0f;
        if (k < p.k) {
            load8(p.reciprocal + k, reciprocal);
            unpack(*reinterpret_cast<const uint4*>(h + k), v);
        }
#pragma unroll
        for (int c = 0; c < 8; ++c) {
            v[c] = bf16_low(pack_bf16(v[c] * reciprocal[c], 0.0f));
            top = fmaxf(top, fabsf(v[c]));
        }
#pragma unroll
        for (int mask = 1; mask < 8; mask *= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, mask));
        const float inverse = code_scale(top, 7.0f);
        u32 word = 0;
#pragma unroll
        for (int c = 0; c < 8; ++c) word |= (min(max(__float2int_rn(v[c] * inverse), -8), 7) & 15) << (4 * c);
        if (k >= p.k) continue;
        // Word: both row halves of the first 32 channels, then of the second.
        const int half = lane % 8 / 4, t = lane % 4;
        const long long at = static_cast<long long>(row / 16) * (p.k / 64) + group;
        static_cast<u32*>(p.xq)[(at * 32 + row % 8 * 4 + t) * 4 + 2 * half + row % 16 / 8] = word;
        if (lane % 8 == 0)
            p.xs[static_cast<long long>(group) * rows + row] = bf16_low(pack_bf16(top * (1.0f / 7), 0.0f));
    }
}

// lora of the CTA's rows from h in `shared`. K may be taken in any order, as long as both operands agree: of
// each 32 channels lane 4g + t takes 8t .. 8t+7, in one 16-byte read, as its 4 + 4 of two products.
__device__ __forceinline__ void project_down(const QuantizeParams& p, const bf16* shared, float* partial) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int rows = blockDim.x / 32, parts = rows / 2, part = warp % parts, half = warp / parts;
    for (int r = 0; r < p.rank; r += 32) {
        float sum[2][4] = {};
        if (r + 16 * half < p.rank) {
            const bf16* down = p.down + static_cast<long long>(r + 16 * half + g) * p.k + 8 * t;
            const bf16* h = shared + g * pitch(p.k) + 8 * t;
#pragma unroll 3
            for (int k = 32 * part; k < p.k; k += 32 * parts) {
                const uint4 a = *reinterpret_cast<const uint4*>(h + k);
                const uint4 b =
                    rows > 8 ? *reinterpret_cast<const uint4*>(h + 8 * pitch(p.k) + k) : make_uint4(0, 0, 0, 0);
#pragma unroll
                for (int n = 0; n < 2; ++n) {
                    const uint4 w = __ldg(reinterpret_cast<const uint4*>(down + 8ll * n * p.k + k));
                    mma::bf16_16x8x16(sum[n], a.x, b.x, a.y, b.y, w.x, w.y);
                    mma::bf16_16x8x16(sum[n], a.z, b.z, a.w, b.w, w.z, w.w);
                }
            }
        }
        // Column blocks of 8 are swizzled by the row, against bank conflicts.
        float* out = partial + (part * rows + g) * 32 + 2 * t;
#pragma unroll
        for (int n = 0; n < 2; ++n) {
            const int block = 8 * ((2 * half + n) ^ (g % 4));
            *reinterpret_cast<float2*>(out + block) = make_float2(sum[n][0], sum[n][1]);
            if (rows > 8) *reinterpret_cast<float2*>(out + 8 * 32 + block) = make_float2(sum[n][2], sum[n][3]);
        }
        __syncthreads();
        // A thread a sum: as many as there are threads.
        const int row = blockIdx.x * rows + threadIdx.x / 32,
                  rank = r + (threadIdx.x % 32 ^ 8 * (threadIdx.x / 32 % 4));
        float total = 0.0f;
        for (int i = 0; i < parts; ++i) total += partial[i * rows * 32 + threadIdx.x];
        if (row < p.m && rank < p.rank) p.lora[static_cast<long long>(row) * p.rank + rank] = __float2bfloat16(total);
        __syncthreads();
    }
}

template <bool FOUR>
__device__ __forceinline__ void run(const QuantizeParams& p) {
    extern __shared__ __align__(1024) unsigned char shared_bytes[];
    bf16* shared = reinterpret_cast<bf16*>(shared_bytes);
    const int warp = threadIdx.x / 32, rows = blockDim.x / 32, row = blockIdx.x * rows + warp;
    bf16* h = shared + warp * pitch(p.k);
    const float top = normalise_row(p, row, h);
    __syncwarp();
    if constexpr (FOUR) {
        quantise_w4a4(p, row, h);
    } else {
        quantise_w4a8(p, row, h, top);
    }
    __syncthreads();
    project_down(p, shared, reinterpret_cast<float*>(shared + rows * pitch(p.k)));
}

}  // namespace quantize

// k is a multiple of 64; 256 or 512 threads, whichever smem_bytes allows.
#if __CUDA_ARCH__ == 900
#define SVDQ_BLOCKS 2
#else
#define SVDQ_BLOCKS 1
#endif
#define SVDQ_QUANTIZE(NAME, FOUR)                                                           \
    extern "C" __global__ void __launch_bounds__(512, SVDQ_BLOCKS) NAME(QuantizeParams p) { \
        quantize::run<FOUR>(p);                                                             \
    }

SVDQ_QUANTIZE(quantize_w4a8, false)
SVDQ_QUANTIZE(quantize_w4a4, true)

// lora[m,r] = sum_b partials[b,m,r]: what the GELU epilogue left. `count` = m * rank.
extern "C" __global__ void __launch_bounds__(256)
    sum_low_rank(const float* partials, bf16* lora, int blocks, int count) {
    int i = 4 * (blockIdx.x * 256 + threadIdx.x);
    if (i >= count) return;
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    for (int b = 0; b < blocks; ++b) {
        float4 v = __ldg(reinterpret_cast<const float4*>(partials + static_cast<long long>(b) * count + i));
        sum = make_float4(sum.x + v.x, sum.y + v.y, sum.z + v.z, sum.w + v.w);
    }
    *reinterpret_cast<uint2*>(lora + i) = make_uint2(pack_bf16(sum.x, sum.y), pack_bf16(sum.z, sum.w));
}
