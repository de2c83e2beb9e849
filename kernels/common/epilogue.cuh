// What is done to results in registers, whichever instruction made them. A thread holds of each 8 columns two, in two
// rows: v[4j + 0..1] are columns 8j + 2 (lane % 4) + 0..1 of row lane / 4, v[4j + 2..3] the same of row lane / 4 + 8.
#pragma once

#include "types.cuh"

namespace epilogue {

// Added to the input of fc2, so that a GELU's output (at least -0.17) is never negative.
constexpr float SHIFT = 0.171875f;

// Pairs of channels of a vector for this thread's columns of a tile: [j] is channels n0 + 8j + 2 (lane % 4) and the
// next. Vectors have a multiple of 64 channels; past the end the last 64 stand in, for columns that nobody will see.
template <class T>
struct Columns {
    const T* values;
    int n0, count;

    __device__ __forceinline__ float2 operator[](int j) const {
        const T* from = values + min(n0 + j / 8 * 64, count - 64) + 2 * (threadIdx.x % 4) + j % 8 * 8;
        if constexpr (sizeof(T) == 2) {
            u32 pair = *reinterpret_cast<const u32*>(from);
            return make_float2(bf16_low(pair), bf16_high(pair));
        } else {
            return *reinterpret_cast<const float2*>(from);
        }
    }
};

// This thread's part of two rows of the rotary table, [., 64] pairs (cos, sin) of fp16: [j] is pair 4j + lane % 4.
struct Rope {
    u32 first[16], second[16];

    __device__ __forceinline__ void load(const u32* row0, const u32* row1) {
#pragma unroll
        for (int j = 0; j < 16; ++j) {
            first[j] = __ldg(row0 + 4 * j + threadIdx.x % 4);
            second[j] = __ldg(row1 + 4 * j + threadIdx.x % 4);
        }
    }
};

// (a, b) -> (a cos - b sin, a sin + b cos)
__device__ __forceinline__ void rotate(float& a, float& b, u32 cos_sin) {
    float cos, sin;
    asm("{\n .reg .b16 c, s;\n mov.b32 {c, s}, %2;\n cvt.f32.f16 %0, c;\n cvt.f32.f16 %1, s;\n}"
        : "=f"(cos), "=f"(sin)
        : "r"(cos_sin));
    float turned = a * cos - b * sin;
    b = a * sin + b * cos;
    a = turned;
}

// RMSNorm and rotary embedding of one head of 128 channels, in place: this thread's 64 values `v` of two rows.
__device__ __forceinline__ void norm_rope(float* v, const bf16* weight, const Rope& rope) {
    const Columns<bf16> weights{weight, 0, 128};
    float sum0 = 0.0f, sum1 = 0.0f;
#pragma unroll
    for (int j = 0; j < 16; ++j) {
        sum0 += v[4 * j] * v[4 * j] + v[4 * j + 1] * v[4 * j + 1];
        sum1 += v[4 * j + 2] * v[4 * j + 2] + v[4 * j + 3] * v[4 * j + 3];
    }
    float scale0 = inverse_sqrt(quad_sum(sum0) * (1.0f / 128) + 1e-6f);
    float scale1 = inverse_sqrt(quad_sum(sum1) * (1.0f / 128) + 1e-6f);
#pragma unroll
    for (int j = 0; j < 16; ++j) {
        float2 w = weights[j];
        v[4 * j] *= scale0 * w.x;
        v[4 * j + 1] *= scale0 * w.y;
        v[4 * j + 2] *= scale1 * w.x;
        v[4 * j + 3] *= scale1 * w.y;
        rotate(v[4 * j], v[4 * j + 1], rope.first[j]);
        rotate(v[4 * j + 2], v[4 * j + 3], rope.second[j]);
    }
}

// 0.5 v (1 + tanh(sqrt(2/pi) (v + 0.044715 v^3)))
__device__ __forceinline__ float gelu_tanh(float v) {
    float u = v * fmaf(0.7978845608f * 0.044715f, v * v, 0.7978845608f);
    float t;
    asm("tanh.approx.f32 %0, %1;" : "=f"(t) : "f"(u));
    float half = 0.5f * v;
    return fmaf(half, t, half);
}

}  // namespace epilogue
