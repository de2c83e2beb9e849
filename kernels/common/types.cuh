// Fixed-size types and small helpers that every kernel uses. No host headers: these files also compile with NVRTC.
#pragma once

#include <cuda_bf16.h>

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
using bf16 = __nv_bfloat16;

// A CUtensorMap by another name: the driver fills it, the copy engine reads it.
struct alignas(64) TensorMap {
    u64 words[16];
};

__device__ __forceinline__ int ceil_div(int a, int b) {
    return (a + b - 1) / b;
}

// What is compiled for, as __CUDA_ARCH__ counts; code for the host sees the constants of SVDQ_HOST_ARCH.
#ifndef SVDQ_HOST_ARCH
#define SVDQ_HOST_ARCH 900
#endif
#ifdef __CUDA_ARCH__
constexpr int ARCH = __CUDA_ARCH__;
#else
constexpr int ARCH = SVDQ_HOST_ARCH;
#endif

// Two floats as bf16, `low` in the low half.
__device__ __forceinline__ u32 pack_bf16(float low, float high) {
#if __CUDA_ARCH__ >= 800
    u32 out;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
    return out;
#else
    auto round = [](float v) {
        u32 bits = __float_as_uint(v);
        return v == v ? (bits + 0x7fff + (bits >> 16 & 1)) >> 16 : 0x7fff;
    };
    return round(low) | round(high) << 16;
#endif
}

__device__ __forceinline__ float bf16_low(u32 pair) {
    return __uint_as_float(pair << 16);
}
__device__ __forceinline__ float bf16_high(u32 pair) {
    return __uint_as_float(pair & 0xffff0000u);
}

// To within two units in the last place, without the slow path for subnormals that a division brings.
__device__ __forceinline__ float reciprocal_of(float v) {
    float out;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(v));
    return out;
}

__device__ __forceinline__ float inverse_sqrt(float v) {
    float out;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(v));
    return out;
}

// What turns values up to `largest` into codes up to `top`: 1 / (largest / top), rounded as IEEE arithmetic does it, so
// that values half-way between two codes go where the CPU puts them. 0 if there is next to nothing to code.
__device__ __forceinline__ float code_scale(float largest, float top) {
    const float step = largest * (1.0f / top), near = reciprocal_of(step);
    return step >= 0x1p-126f ? fmaf(fmaf(-step, near, 1.0f), near, near) : 0.0f;
}

// Maximum and sum over the four lanes that share a row of an mma accumulator.
__device__ __forceinline__ float quad_max(float v) {
    v = fmaxf(v, __shfl_xor_sync(~0u, v, 1));
    return fmaxf(v, __shfl_xor_sync(~0u, v, 2));
}

__device__ __forceinline__ float quad_sum(float v) {
    v += __shfl_xor_sync(~0u, v, 1);
    return v + __shfl_xor_sync(~0u, v, 2);
}

// A barrier among `threads` threads of this CTA. 0 is __syncthreads.
__device__ __forceinline__ void named_sync(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

__device__ __forceinline__ void named_arrive(int id, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
