// The input of a 4-bit linear, in one pass over x:
//   h         = x, or (x - mean) / sqrt(var + 1e-6) * scale + shift
//   lora[m,r] = strength sum_k bf16(h[m,k]) down[r,k]   for the ranks r of every part of the low-rank branch
//   W4A8:  xq[m], xs[m]       = h[m] * reciprocal, quantised to -127..127 with one scale a row, absmax / 127
//   W4A4:  xq[m,g], xs[g,m]   = bf16(h[m] * reciprocal), quantised to -8..7 in groups of 64, bf16(absmax / 7)
//   W4A4 on sm_90: the same codes as e4m3 numbers
//   NVFP4: the same, quantised to e2m1 in groups of 16, e4m3(min(absmax / 6, 448))
// Groups of 4 warps normalise and quantise 4 rows each, in shared memory, so that a channel's parameters are loaded once
// for 4 rows. For W4A4 and NVFP4 a CTA owns 16 rows or, where shared memory is short, 8, and its warps then multiply all
// rows with `down`, 32 ranks at a time, each half of them over its part of K. Sums are taken in a fixed order, so that
// results do not depend on timing. For W4A8 and W4A4 on sm_90 a CTA owns 4 rows and leaves h to project_down_sm90.cu.
//
// Launch with 32 threads a row of the CTA, smem_bytes of shared memory and ceil(m / rows) CTAs. k is a multiple of 64,
// ranks of 16, with 0 for none; pointers are aligned to 16 bytes.
#include "common/codes.cuh"
#include "common/low_rank.cuh"
#include "common/mma.cuh"
#include "common/nvfp4.cuh"
#include "common/types.cuh"

struct QuantizeParams {
    const bf16* x;            // [m, k]
    const bf16* scale;        // [k], holding its 1 +; null for no norm
    const bf16* shift;        // [k]
    const float* reciprocal;  // [k], 1 / smooth
    void* xq;                 // W4A8, W4A4_SM90: [m, k] bytes. W4A4, NVFP4: linear4::Codes
    float* xs;                // W4A8: [m]. W4A4: [k/64, m rounded up to 16]. NVFP4: so too, but words of four e4m3.
                              // W4A4_SM90: [k/64, m]
    bf16* lora;               // W4A4, NVFP4: [m, rank]
    bf16* h;                  // W4A8, W4A4_SM90: [m, k]; null if it is not wanted, without a norm never written
    int m, k, rank;           // rank: of all parts
    DownPart parts[MAX_PARTS];
};

enum QuantizeTo { TO_W4A8, TO_W4A4, TO_W4A4_SM90, TO_NVFP4 };

namespace quantize {

__host__ __device__ constexpr bool projects(QuantizeTo to) {
    return to == TO_W4A4 || to == TO_NVFP4;
}

// Shared memory: h, for the projection with rows padded by 64 bytes so that a quarter-warp's reads of two rows fall into
// different banks, then partial sums [rows/2 parts of K, rows, 32 ranks], which first serve to add up the rows.
__host__ __device__ constexpr int pitch(QuantizeTo to, int k) {
    return projects(to) ? k + 32 : k;
}
__host__ __device__ constexpr int smem_bytes(QuantizeTo to, int k, int rows) {
    return rows * pitch(to, k) * 2 + (projects(to) ? rows / 2 * rows * 32 * 4 : rows * 32);
}

constexpr int GROUP_ROWS = 4, GROUP_THREADS = 128;

// Four neighbouring channels.
__device__ __forceinline__ void unpack(uint2 v, float (&out)[4]) {
    out[0] = bf16_low(v.x), out[1] = bf16_high(v.x);
    out[2] = bf16_low(v.y), out[3] = bf16_high(v.y);
}

__device__ __forceinline__ uint2 pack(const float (&v)[4]) {
    return make_uint2(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]));
}

__device__ __forceinline__ void load4(const bf16* from, float (&out)[4]) {
    unpack(__ldg(reinterpret_cast<const uint2*>(from)), out);
}

__device__ __forceinline__ void load4(const float* from, float (&out)[4]) {
    float4 v = __ldg(reinterpret_cast<const float4*>(from));
    out[0] = v.x, out[1] = v.y, out[2] = v.z, out[3] = v.w;
}

// A group of 4 warps and its 4 rows.
template <QuantizeTo TO>
struct Group {
    const QuantizeParams& p;
    int index, thread, row;  // thread: of the group's 128. row: the first
    bf16* h;                 // of the first row, in shared memory
    float* scratch;          // 4 warps x 8

    __device__ Group(const QuantizeParams& p, bf16* shared, float* scratch)
        : p(p), index(projects(TO) ? threadIdx.x / GROUP_THREADS : 0), thread(threadIdx.x % GROUP_THREADS) {
        row = blockIdx.x * (blockDim.x / 32) + GROUP_ROWS * index;
        h = shared + GROUP_ROWS * index * pitch(TO, p.k);
        this->scratch = scratch + 32 * index;
    }

    __device__ uint2* at(int j, int k) const { return reinterpret_cast<uint2*>(h + j * pitch(TO, p.k) + k); }

    // `op` over all threads of the group, for each of the values.
    template <int COUNT, class Op>
    __device__ __forceinline__ void reduce(float (&v)[COUNT], Op op) const {
        static_assert(COUNT <= 8, "scratch");
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
#pragma unroll
            for (int mask = 16; mask; mask /= 2) v[i] = op(v[i], __shfl_xor_sync(~0u, v[i], mask));
        }
        named_sync(1 + index, GROUP_THREADS);  // the last reduction has been read
        if (thread % 32 == 0) {
#pragma unroll
            for (int i = 0; i < COUNT; ++i) scratch[thread / 32 * 8 + i] = v[i];
        }
        named_sync(1 + index, GROUP_THREADS);
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            v[i] = op(op(scratch[i], scratch[8 + i]), op(scratch[16 + i], scratch[24 + i]));
        }
    }

    // Leaves h in shared memory, and where it is wanted in p.h, and gives the largest |h * reciprocal| of each row.
    __device__ __forceinline__ void normalise(float (&top)[GROUP_ROWS]) const {
        if (p.scale) {
            float moments[2 * GROUP_ROWS] = {};
            load(moments);
            normalise(moments, top);
        } else {
            load_plain(top);
        }
    }

    // Four channels of the group's rows, zeros past the last.
    __device__ __forceinline__ uint2 load_x(int j, int k) const {
        const uint2* x = reinterpret_cast<const uint2*>(p.x + static_cast<long long>(row + j) * p.k + k);
        return row + j < p.m ? *x : make_uint2(0, 0);
    }

    // x to shared memory, and its sums and sums of squares. In one pass: good to 1e-7 (1 + mean^2 / var).
    __device__ __forceinline__ void load(float (&moments)[2 * GROUP_ROWS]) const {
#pragma unroll 3
        for (int k = 4 * thread; k < p.k; k += 4 * GROUP_THREADS) {
#pragma unroll
            for (int j = 0; j < GROUP_ROWS; ++j) {
                const uint2 packed = load_x(j, k);
                *at(j, k) = packed;
                float v[4];
                unpack(packed, v);
#pragma unroll
                for (int c = 0; c < 4; ++c) {
                    moments[2 * j] += v[c];
                    moments[2 * j + 1] = fmaf(v[c], v[c], moments[2 * j + 1]);
                }
            }
        }
    }

    __device__ __forceinline__ void normalise(float (&moments)[2 * GROUP_ROWS], float (&top)[GROUP_ROWS]) const {
        reduce(moments, [](float a, float b) { return a + b; });
#pragma unroll
        for (int j = 0; j < GROUP_ROWS; ++j) {
            const float share = reciprocal_of(p.k), mean = moments[2 * j] * share;
            const float deviation = inverse_sqrt(moments[2 * j + 1] * share - mean * mean + 1e-6f);
            moments[2 * j] = deviation;
            moments[2 * j + 1] = -mean * deviation;
            top[j] = 0.0f;
        }
#pragma unroll 2
        for (int k = 4 * thread; k < p.k; k += 4 * GROUP_THREADS) {
            float scale[4], shift[4], reciprocal[4];
            load4(p.reciprocal + k, reciprocal);
            load4(p.scale + k, scale), load4(p.shift + k, shift);
#pragma unroll
            for (int j = 0; j < GROUP_ROWS; ++j) {
                float v[4];
                unpack(*at(j, k), v);
#pragma unroll
                for (int c = 0; c < 4; ++c) {
                    v[c] = fmaf(fmaf(v[c], moments[2 * j], moments[2 * j + 1]), scale[c], shift[c]);
                    top[j] = fmaxf(top[j], fabsf(v[c] * reciprocal[c]));
                }
                const uint2 packed = pack(v);
                *at(j, k) = packed;
                if (!projects(TO) && p.h && row + j < p.m) {
                    *reinterpret_cast<uint2*>(p.h + static_cast<long long>(row + j) * p.k + k) = packed;
                }
            }
        }
    }

    // h is x.
    __device__ __forceinline__ void load_plain(float (&top)[GROUP_ROWS]) const {
#pragma unroll
        for (int j = 0; j < GROUP_ROWS; ++j) top[j] = 0.0f;
#pragma unroll 3
        for (int k = 4 * thread; k < p.k; k += 4 * GROUP_THREADS) {
            float reciprocal[4];
            load4(p.reciprocal + k, reciprocal);
#pragma unroll
            for (int j = 0; j < GROUP_ROWS; ++j) {
                const uint2 packed = load_x(j, k);
                *at(j, k) = packed;
                float v[4];
                unpack(packed, v);
#pragma unroll
                for (int c = 0; c < 4; ++c) top[j] = fmaxf(top[j], fabsf(v[c] * reciprocal[c]));
            }
        }
    }

    __device__ __forceinline__ void quantise_w4a8(float (&top)[GROUP_ROWS]) const {
        reduce(top, [](float a, float b) { return fmaxf(a, b); });
#pragma unroll
        for (int j = 0; j < GROUP_ROWS; ++j) {
            if (thread == j && row + j < p.m) p.xs[row + j] = top[j] * (1.0f / 127);
            top[j] = code_scale(top[j], 127.0f);
        }
#pragma unroll 2
        for (int k = 4 * thread; k < p.k; k += 4 * GROUP_THREADS) {
            float reciprocal[4], v[4];
            load4(p.reciprocal + k, reciprocal);
#pragma unroll
            for (int j = 0; j < GROUP_ROWS; ++j) {
                unpack(*at(j, k), v);
                // Adding 1.5 * 2^23 rounds to an integer, half to even, in the low bits.
                u32 q[4];
#pragma unroll
                for (int c = 0; c < 4; ++c) q[c] = __float_as_uint(fmaf(v[c] * reciprocal[c], top[j], 12582912.0f));
                const u32 word = __byte_perm(__byte_perm(q[0], q[1], 0x0040), __byte_perm(q[2], q[3], 0x0040), 0x5410);
                u8* out = static_cast<u8*>(p.xq) + static_cast<long long>(row + j) * p.k + k;
                if (row + j < p.m) *reinterpret_cast<u32*>(out) = word;
            }
        }
    }

    // 16 threads hold 64 channels, two of them a word of an mma operand. One scale for all of them, or (NVFP4) one for
    // every four threads.
    __device__ __forceinline__ void quantise_4bit() const {
        const int rows = ceil_div(p.m, 16) * 16;
        for (int first = 0; first < p.k; first += 4 * GROUP_THREADS) {
            const int k = first + 4 * thread;
            float reciprocal[4] = {}, v[4] = {};
            if (k < p.k) load4(p.reciprocal + k, reciprocal);
#pragma unroll
            for (int j = 0; j < GROUP_ROWS; ++j) {
                if (k < p.k) unpack(*at(j, k), v);
                float top = 0.0f;
#pragma unroll
                for (int c = 0; c < 4; ++c) {
                    v[c] = bf16_low(pack_bf16(v[c] * reciprocal[c], 0.0f));
                    top = fmaxf(top, fabsf(v[c]));
                }
#pragma unroll
                for (int mask = 1; mask < (TO == TO_NVFP4 ? 4 : 16); mask *= 2)
                    top = fmaxf(top, __shfl_xor_sync(~0u, top, mask));
                u32 word = 0;
                float scale;
                if constexpr (TO == TO_NVFP4) {
                    const nvfp4::Scale s(top);
                    word = nvfp4::to_e2m1(v[0] * s.inverse, v[1] * s.inverse) |
                           nvfp4::to_e2m1(v[2] * s.inverse, v[3] * s.inverse) << 8;
                    u32 scales = s.stored << (thread / 4 % 4 * 8);
                    scales |= __shfl_xor_sync(~0u, scales, 4);
                    scales |= __shfl_xor_sync(~0u, scales, 8);
                    scale = __uint_as_float(scales);
                } else {
                    const float inverse = code_scale(top, 7.0f);
#pragma unroll
                    for (int c = 0; c < 4; ++c) {
                        word |= (min(max(__float2int_rn(v[c] * inverse), -8), 7) & 15) << (4 * c);
                    }
                    scale = bf16_low(pack_bf16(top * (1.0f / 7), 0.0f));
                }
                if constexpr (TO == TO_W4A4_SM90) {
                    if (k >= p.k || row + j >= p.m) continue;
                    u8* out = static_cast<u8*>(p.xq) + static_cast<long long>(row + j) * p.k + k;
                    *reinterpret_cast<u32*>(out) = codes::e4m3()(word).x;
                    if (thread % 16 == 0) p.xs[static_cast<long long>(k / 64) * p.m + row + j] = scale;
                    continue;
                }
                word |= __shfl_xor_sync(~0u, word, 1) << 16;
                if (k >= p.k || row + j >= rows) continue;
                // Words of 16 bytes: both row halves at channels 8t.. of the first 32, then of the second.
                const int m = row + j, half = k % 64 / 32, t = k % 32 / 8;
                const long long at = static_cast<long long>(m / 16) * (p.k / 64) + k / 64;
                u32* out = static_cast<u32*>(p.xq) + (at * 32 + m % 8 * 4 + t) * 4 + 2 * half + m % 16 / 8;
                if (thread % 2 == 0) *out = word;
                if (thread % 16 == 0) p.xs[static_cast<long long>(k / 64) * rows + m] = scale;
            }
        }
    }
};

// lora of the CTA's rows from h in `shared`. K may be taken in any order, as long as both operands agree: of
// each 32 channels lane 4g + t takes 8t .. 8t+7, in one 16-byte read, as its 4 + 4 of two products.
template <QuantizeTo TO>
__device__ __forceinline__ void project_down(const QuantizeParams& p, const bf16* shared, float* partial) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int rows = blockDim.x / 32, parts = rows / 2, part = warp % parts, half = warp / parts;
    low_rank::Cursor cursor;
    for (int r = 0; r < p.rank; r += 32) {
        float sum[2][4] = {}, strength = 0.0f;
        const int first = r + 16 * half;
        if (first < p.rank) {
            const DownPart& source = cursor.at(p.parts, first);
            strength = source.strength;
            const bf16* down = static_cast<const bf16*>(source.down) +
                               static_cast<long long>(first - cursor.begin + g) * p.k + 8 * t;
            const bf16* h = shared + g * pitch(TO, p.k) + 8 * t;
#pragma unroll 3
            for (int k = 32 * part; k < p.k; k += 32 * parts) {
                const uint4 a = *reinterpret_cast<const uint4*>(h + k);
                const uint4 b =
                    rows > 8 ? *reinterpret_cast<const uint4*>(h + 8 * pitch(TO, p.k) + k) : make_uint4(0, 0, 0, 0);
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
            *reinterpret_cast<float2*>(out + block) = make_float2(strength * sum[n][0], strength * sum[n][1]);
            if (rows > 8) {
                *reinterpret_cast<float2*>(out + 8 * 32 + block) =
                    make_float2(strength * sum[n][2], strength * sum[n][3]);
            }
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

template <QuantizeTo TO>
__device__ __forceinline__ void run(const QuantizeParams& p) {
    extern __shared__ __align__(1024) unsigned char shared_bytes[];
    bf16* shared = reinterpret_cast<bf16*>(shared_bytes);
    float* partial = reinterpret_cast<float*>(shared + blockDim.x / 32 * pitch(TO, p.k));
    const Group<TO> group(p, shared, partial);
    float top[GROUP_ROWS];
    group.normalise(top);
    if constexpr (TO == TO_W4A8) {
        group.quantise_w4a8(top);
    } else {
        group.quantise_4bit();
    }
    if constexpr (projects(TO)) {
        __syncthreads();
        project_down<TO>(p, shared, partial);
    }
}

}  // namespace quantize

#if __CUDA_ARCH__ == 900
#define SVDQ_BLOCKS 2
#else
#define SVDQ_BLOCKS 1
#endif
#define SVDQ_QUANTIZE(NAME, TO, THREADS, BLOCKS)                                                             \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) NAME(const __grid_constant__ QuantizeParams p) { \
        quantize::run<TO>(p);                                                                                \
    }

SVDQ_QUANTIZE(quantize_w4a8, TO_W4A8, 128, 8)
SVDQ_QUANTIZE(quantize_w4a4, TO_W4A4, 512, SVDQ_BLOCKS)
SVDQ_QUANTIZE(quantize_w4a4_sm90, TO_W4A4_SM90, 128, 8)
SVDQ_QUANTIZE(quantize_nvfp4, TO_NVFP4, 512, SVDQ_BLOCKS)

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
