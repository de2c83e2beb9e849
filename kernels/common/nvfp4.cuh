// NVFP4: numbers of 4 bits (e2m1: a sign and 0, 0.5, 1, 1.5, 2, 3, 4 or 6) with an e4m3 scale for 16 of them, and their
// product on the tensor cores of sm_120. Before that everything is computed as the PTX ISA describes it: right, and
// slow, so that whatever surrounds the instructions can be checked on any GPU.
#pragma once

#include "types.cuh"

namespace nvfp4 {

// The nearest e2m1 codes, ties to even, saturated to 6: `low` in the low four bits of a byte.
__device__ __forceinline__ u32 to_e2m1(float low, float high) {
#if __CUDA_ARCH__ >= 1200
    u32 byte;
    asm("{\n .reg .b8 b;\n cvt.rn.satfinite.e2m1x2.f32 b, %1, %2;\n cvt.u32.u8 %0, b;\n}"
        : "=r"(byte)
        : "f"(high), "f"(low));
    return byte;
#else
    auto code = [](float v) {
        const float size = fminf(fabsf(v), 6.0f);
        const u32 magnitude = size < 2.0f   ? __float2uint_rn(2.0f * size)
                              : size < 4.0f ? 2 + __float2uint_rn(size)
                                            : 4 + __float2uint_rn(0.5f * size);
        return magnitude | __float_as_uint(v) >> 31 << 3;
    };
    return code(low) | code(high) << 4;
#endif
}

// The nearest e4m3 code of a number from 0 to 448, ties to even.
__device__ __forceinline__ u32 to_e4m3(float v) {
#if __CUDA_ARCH__ >= 1200
    u16 pair;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(0.0f), "f"(v));
    return pair;
#else
    if (v < 0.015625f) return __float2uint_rn(512.0f * v);
    const u32 bits = __float_as_uint(v);
    return min(((bits + 0x7ffff + (bits >> 20 & 1)) >> 20) - (120 << 3), 0x7eu);
#endif
}

// How 16 values of at most `largest` are coded: the scale s = min(largest / 6, 448), stored as e4m3, and 1 / s, by
// which values are multiplied before they are rounded to e2m1. (The rounded scale does not take part in that.)
struct Scale {
    u32 stored;
    float inverse;

    __device__ __forceinline__ explicit Scale(float largest) {
        largest = fminf(largest, 6.0f * 448.0f);
        stored = to_e4m3(largest * (1.0f / 6));
        inverse = code_scale(largest, 6.0f);
    }
};

// Twice the number of an e2m1 code.
__device__ __forceinline__ int twice_e2m1(u32 code) {
    const int magnitude = 0xc8643210u >> 4 * (code & 7) & 15;
    return code & 8 ? -magnitude : magnitude;
}

__device__ __forceinline__ float from_e4m3(u32 code) {
    const int exponent = code >> 3 & 15, mantissa = code & 7;
    const int significand = exponent ? 8 + mantissa : mantissa;
    return significand * __int_as_float((max(exponent, 1) - 10 + 127) << 23);
}

// D[16, 8] += A[16, 64] B[8, 64]^T, every 16 channels of a row of A or B times their scale. Codes and sums lie as in
// mma.cuh, an element there being 8 codes here, the first in the lowest bits. A word of scales has those of a row's
// four groups, the first in the lowest byte. Of the words that lanes give, those of A for rows g and g + 8 are taken
// from lanes 4g and 4g + 1 (thread-id 0 of 0..1: the first two lanes of a quad), those of B for row g from lane 4g +
// LANE_B (thread-id LANE_B of 0..3); other lanes' words are ignored.
template <int LANE_B>
__device__ __forceinline__ void mma_16x8x64(float (&d)[4], const uint4& a, u32 b0, u32 b1, u32 scales_a, u32 scales_b) {
#if __CUDA_ARCH__ >= 1200
    asm("mma.sync.aligned.m16n8k64.row.col.kind::mxf4nvf4.block_scale.scale_vec::4X.f32.e2m1.e2m1.f32.ue4m3 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3}, %10, {0,0}, %11, {0,%12};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1), "r"(scales_a), "r"(scales_b), "n"(LANE_B));
#else
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    auto from = [](u32 word, int lane) { return __shfl_sync(~0u, word, lane); };
    const u32 words_a[4] = {a.x, a.y, a.z, a.w}, words_b[2] = {b0, b1};
    for (int part = 0; part < 8; ++part) {  // 8 of K
        const int half = part / 4, owner = part % 4, shift = part / 2 * 8;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int row = i / 2, column = 2 * t + i % 2;
            const u32 x = from(half ? words_a[2 + row] : words_a[row], 4 * g + owner);
            const u32 w = from(words_b[half], 4 * column + owner);
            int sum = 0;
            for (int j = 0; j < 32; j += 4) sum += twice_e2m1(x >> j & 15) * twice_e2m1(w >> j & 15);
            const float scale = from_e4m3(from(scales_a, 4 * g + row) >> shift & 255) *
                                from_e4m3(from(scales_b, 4 * column + LANE_B) >> shift & 255);
            d[i] = fmaf(0.25f * sum, scale, d[i]);
        }
    }
#endif
}

}  // namespace nvfp4
