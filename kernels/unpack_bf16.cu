// 4-bit weights as bf16, for products with activations that are not quantised:
//   w[n,k] = bf16(number(code[n,k]) scale[n,g] channels[n] reciprocal[k])
// row-major. INT4: numbers -8..7, a bf16 scale for 64 inputs, no `channels`. NVFP4: e2m1 numbers, an e4m3 scale for 16
// inputs. `codes` and `scales` lie in Nunchaku's packing; `reciprocal` is 1 / smooth, [k].
//
// Launch these with 256 threads and blocks of (k / 64, n / 128): a warp for 16 rows x 64 inputs. n is a multiple of 128, k
// of 64; pointers are aligned to 16 bytes.
#include "common/scales.cuh"

namespace unpack_bf16 {

// Eight neighbours of a row.
template <bool NVFP4>
__device__ __forceinline__ uint4 row_of_8(u32 word, float scale, const float (&reciprocal)[8]) {
    u32 pairs[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        float v[2];
#pragma unroll
        for (int j = 0; j < 2; ++j) {
            const int at = 2 * i + j;
            const float number =
                NVFP4 ? 0.5f * nvfp4::twice_e2m1(word >> 4 * at & 15) : static_cast<int>(word << (28 - 4 * at)) >> 28;
            v[j] = number * scale * reciprocal[at];
        }
        pairs[i] = pack_bf16(v[0], v[1]);
    }
    return make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
}

template <bool NVFP4>
__device__ __forceinline__ void run(const uint4* codes, const void* group_scales, const float* channels,
                                    const float* reciprocal, bf16* w, int k) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int row = blockIdx.y * 128 + warp * 16 + lane / 4, column = blockIdx.x * 64 + 8 * (lane % 4);
    const uint4 v =
        __ldg(codes + ((static_cast<long long>(blockIdx.y) * (k / 64) + blockIdx.x) * 8 + warp) * 32 + lane);
    const u32 words[2][2] = {{v.x, v.z}, {v.y, v.w}};
#pragma unroll
    for (int right = 0; right < 2; ++right) {
        const int first = column + 32 * right;
        const float4 a = __ldg(reinterpret_cast<const float4*>(reciprocal + first));
        const float4 b = __ldg(reinterpret_cast<const float4*>(reciprocal + first + 4));
        const float r[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
        for (int below = 0; below < 2; ++below) {
            const int n = row + 8 * below;
            const float scale = NVFP4 ? scales::nvfp4(static_cast<const u8*>(group_scales), n, first, k) * channels[n]
                                      : scales::int4(static_cast<const bf16*>(group_scales), n, first, k);
            *reinterpret_cast<uint4*>(w + static_cast<long long>(n) * k + first) =
                row_of_8<NVFP4>(words[right][below], scale, r);
        }
    }
}

}  // namespace unpack_bf16

extern "C" __global__ void __launch_bounds__(256)
    unpack_int4_bf16(const uint4* codes, const bf16* group_scales, const float* reciprocal, bf16* w, int k) {
    unpack_bf16::run<false>(codes, group_scales, nullptr, reciprocal, w, k);
}

extern "C" __global__ void __launch_bounds__(256)
    unpack_nvfp4_bf16(const uint4* codes, const u8* group_scales, const float* channels, const float* reciprocal,
                      bf16* w, int k) {
    unpack_bf16::run<true>(codes, group_scales, channels, reciprocal, w, k);
}

// Codes 0..15 in AWQ's layout (gemm_w4a16.cu), with a scale and a zero for 1 << `shift` inputs, rows in the order of the
// result:
//   w[s n/chunks + d, k] = bf16(code[r,k] scale[g,r] + zero[g,r]),   r = d chunks + s
// Launch with 256 threads and ceil(n k / 8192) blocks: a thread for 32 inputs of a row, whose codes are neighbours. n is a
// multiple of 4 and `chunks`, k of 64; pointers are aligned to 16 bytes.
extern "C" __global__ void __launch_bounds__(256)
    unpack_awq_bf16(const uint4* codes, const bf16* scales, const bf16* zeros, bf16* w, int n, int k, int shift,
                    int chunks) {
    const u32 at = blockIdx.x * 256 + threadIdx.x, four_rows = k / 8;
    if (at >= n / 4 * four_rows) return;
    const int row = at / four_rows * 4 + at % 8 / 2, first = at % four_rows / 8 * 64 + at % 2 * 32;
    const long long vector = static_cast<long long>(first >> shift) * n + row;
    const float scale = __bfloat162float(scales[vector]), zero = __bfloat162float(zeros[vector]);
    const uint4 v = __ldg(codes + at);
    const u32 words[4] = {v.x, v.y, v.z, v.w};
    bf16* to = w + static_cast<long long>(row % chunks * (n / chunks) + row / chunks) * k + first;
#pragma unroll
    for (int run = 0; run < 4; ++run) {
        u32 pairs[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const u32 low = words[i] >> 4 * run & 15, high = words[i] >> (16 + 4 * run) & 15;
            pairs[i] = pack_bf16(fmaf(static_cast<float>(low), scale, zero), fmaf(static_cast<float>(high), scale, zero));
        }
        reinterpret_cast<uint4*>(to)[run] = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
    }
}
