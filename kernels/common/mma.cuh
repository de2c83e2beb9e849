// Warp-level matrix multiplication of sm_75 to sm_89 (and, slower, of everything after): D[16, 8] += A[16, K] B[8,
// K]^T. Lane 4g + t holds of D rows g (d0, d1) and g + 8 (d2, d3), columns 2t and 2t + 1; of A rows g (a0, a2) and g +
// 8 (a1, a3), of B row g, each at elements t of the first (a0, a1, b0) and of the second (a2, a3, b1) half of K, where
// an element is 32 bits.
#pragma once

#include "types.cuh"

namespace mma {

// ---- 16-bit products

// What products of bf16 multiply: pairs of bf16 or, as sm_75 has tensor cores for fp16 only, of fp16, which has more bits
// but a smaller range. There one operand is multiplied by 2^-4, as activations exceed fp16's 65504, and the other by
// 2^4, so that the product stays what it is:
//   ACTIVATION  is exact from 2^-13 (1.2e-4) up to 2^20 (1e6)
//   WEIGHT      (and keys and values) from 2^-21 up to 2^12
// Below that a bf16 is off by up to 2^-21 or 2^-29, above it is infinite.
enum Role { ACTIVATION, WEIGHT };

template <Role ROLE>
__device__ __forceinline__ u32 operand(float low, float high) {
#if __CUDA_ARCH__ >= 800
    return pack_bf16(low, high);
#else
    constexpr float SCALE = ROLE == WEIGHT ? 16.0f : 1.0f / 16;
    u16 first, second;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(first) : "f"(low * SCALE));
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(second) : "f"(high * SCALE));
    return static_cast<u32>(first) | static_cast<u32>(second) << 16;
#endif
}
// Of a pair of bf16.
template <Role ROLE>
__device__ __forceinline__ u32 operand(u32 pair) {
    return ARCH >= 800 ? pair : operand<ROLE>(bf16_low(pair), bf16_high(pair));
}

// K = 16, of operands.
__device__ __forceinline__ void multiply_16x8x16(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#else
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(b0));
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a2), "r"(a3), "r"(b1));
#endif
}

// K = 16, of pairs of bf16: A are activations, B weights.
__device__ __forceinline__ void bf16_16x8x16(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    multiply_16x8x16(d, operand<ACTIVATION>(a0), operand<ACTIVATION>(a1), operand<ACTIVATION>(a2),
                     operand<ACTIVATION>(a3), operand<WEIGHT>(b0), operand<WEIGHT>(b1));
}

// ---- 4-bit products

// 4-bit codes, K = 64, exact sums: d = c + a b^T with the same `c` everywhere. B is signed, A signed or not.
template <bool UNSIGNED>
__device__ __forceinline__ void s4_16x8x64(int (&d)[4], const uint4& a, u32 b0, u32 b1, int c) {
#define SVDQ_S4(SHAPE, TYPE, OUT, A, B, C) \
    "mma.sync.aligned." SHAPE ".row.col.s32." TYPE ".s4.s32 {" OUT "}, {" A "}, {" B "}, {" C "};"
#if __CUDA_ARCH__ >= 800
#define SVDQ_S4_64(TYPE)                                                                    \
    asm(SVDQ_S4("m16n8k64", TYPE, "%0,%1,%2,%3", "%4,%5,%6,%7", "%8,%9", "%10,%10,%10,%10") \
        : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])                                    \
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1), "r"(c))
    if constexpr (UNSIGNED) {
        SVDQ_S4_64("u4");
    } else {
        SVDQ_S4_64("s4");
    }
#undef SVDQ_S4_64
#else
    // Rows g from (a.x, a.z), rows g + 8 from (a.y, a.w), 32 of K at a time.
#define SVDQ_S4_32(TYPE, OUT0, OUT1, A, B, C0, C1)             \
    asm(SVDQ_S4("m8n8k32", TYPE, "%0,%1", "%2", "%3", "%4,%5") \
        : "=r"(OUT0), "=r"(OUT1)                               \
        : "r"(A), "r"(B), "r"(C0), "r"(C1))
    if constexpr (UNSIGNED) {
        SVDQ_S4_32("u4", d[0], d[1], a.x, b0, c, c);
        SVDQ_S4_32("u4", d[0], d[1], a.z, b1, d[0], d[1]);
        SVDQ_S4_32("u4", d[2], d[3], a.y, b0, c, c);
        SVDQ_S4_32("u4", d[2], d[3], a.w, b1, d[2], d[3]);
    } else {
        SVDQ_S4_32("s4", d[0], d[1], a.x, b0, c, c);
        SVDQ_S4_32("s4", d[0], d[1], a.z, b1, d[0], d[1]);
        SVDQ_S4_32("s4", d[2], d[3], a.y, b0, c, c);
        SVDQ_S4_32("s4", d[2], d[3], a.w, b1, d[2], d[3]);
    }
#undef SVDQ_S4_32
#endif
#undef SVDQ_S4
}

// ---- copies to shared memory, asynchronous from sm_80 on
// --------------------------------------------------------------

// 16 bytes; zeros if not `in`.
__device__ __forceinline__ void copy16(void* shared, const void* global, bool in) {
#if __CUDA_ARCH__ >= 800
    u32 to = static_cast<u32>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(in ? 16 : 0) : "memory");
#else
    *static_cast<uint4*>(shared) = in ? *static_cast<const uint4*>(global) : make_uint4(0, 0, 0, 0);
#endif
}

__device__ __forceinline__ void copy_commit() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits for all but the last `PENDING` groups of this thread.
template <int PENDING>
__device__ __forceinline__ void copy_wait() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
#endif
}

// ---- the four lanes of a row
// --------------------------------------------------------------------------------------------

// Lane t of a quad gives r[j] to lane j and gets lane j's r[t] as r[j].
__device__ __forceinline__ void quad_transpose(u32 (&r)[4]) {
    const int t = threadIdx.x % 4;
#pragma unroll
    for (int mask = 1; mask < 4; mask *= 2) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            if (j & mask) continue;
            u32 got = __shfl_xor_sync(~0u, t & mask ? r[j] : r[j | mask], mask);
            (t & mask ? r[j] : r[j | mask]) = got;
        }
    }
}

}  // namespace mma
