// Copies of bf16 from global to shared memory that run beside the arithmetic, and the loads that turn what they brought
// into operands of mma::multiply_16x8x16. Before sm_80 a copy has happened when it returns, and has turned bf16 into
// fp16 on its way.
//
// A panel is R rows of 128 bytes (64 operands); the 16-byte chunk `c` of row `r` lies at chunk c ^ (r % 8), so that
// eight rows of one chunk fall into different banks. It is the copy engine's 128-byte swizzle: wgmma reads panels as
// they are.
#pragma once

#include "mma.cuh"

namespace async {

__device__ __forceinline__ u32 shared_address(const void* p) {
    return static_cast<u32>(__cvta_generic_to_shared(p));
}

// Copies eight elements, 16 bytes, or writes zeros if not `valid`; `from` has to be a legal address either way.
template <mma::Role ROLE>
__device__ __forceinline__ void copy_8(u32 to, const bf16* from, bool valid) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(valid ? 16 : 0) : "memory");
#else
    const uint4 v = valid ? __ldg(reinterpret_cast<const uint4*>(from)) : make_uint4(0, 0, 0, 0);
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(mma::operand<ROLE>(v.x)),
                 "r"(mma::operand<ROLE>(v.y)), "r"(mma::operand<ROLE>(v.z)), "r"(mma::operand<ROLE>(v.w)));
#endif
}

__device__ __forceinline__ void commit() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits for this thread's copies, all but those of the last `Pending` commits.
template <int Pending>
__device__ __forceinline__ void wait() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
#endif
}

// Writes eight elements one by one: element `index(j)` of `from`, or zero where that is negative.
template <mma::Role ROLE, class Index>
__device__ __forceinline__ void store_each(u32 to, const bf16* from, Index index) {
#pragma unroll 1
    for (int j = 0; j < 8; ++j) {
        const long long i = index(j);
        const u16 bits = mma::operand<ROLE>(i < 0 ? 0u : reinterpret_cast<const u16*>(from)[i]);
        asm volatile("st.shared.u16 [%0], %1;" ::"r"(to + 2 * j), "h"(bits) : "memory");
    }
}

__device__ __forceinline__ u32 panel_offset(int row, int chunk) {
    return row * 128 + ((chunk ^ (row % 8)) * 16);
}

// Four 8x8 matrices; lane 8i + r names row r of matrix i.
__device__ __forceinline__ void load_matrices(u32 (&d)[4], u32 from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(from)
                 : "memory");
}
__device__ __forceinline__ void load_matrices_transposed(u32 (&d)[4], u32 from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(from)
                 : "memory");
}

// Operand A, 16 rows from `row` on, channels 16 step ..: a0..a3.
__device__ __forceinline__ void load_a(u32 (&a)[4], u32 panel, int row, int step) {
    const int lane = threadIdx.x % 32;
    load_matrices(a, panel + panel_offset(row + lane % 16, 2 * step + lane / 16));
}

// Operand B of two products, 16 rows from `row` on, channels 16 step ..: b0, b1 of rows 0..7, then of rows 8..15.
__device__ __forceinline__ void load_b(u32 (&b)[4], u32 panel, int row, int step) {
    const int lane = threadIdx.x % 32;
    load_matrices(b, panel + panel_offset(row + lane % 8 + lane / 16 * 8, 2 * step + lane / 8 % 2));
}

// The same where the panel's rows are channels: rows `row` .. row + 15, columns 8 chunk .. 8 chunk + 15.
__device__ __forceinline__ void load_b_transposed(u32 (&b)[4], u32 panel, int row, int chunk) {
    const int lane = threadIdx.x % 32;
    load_matrices_transposed(b, panel + panel_offset(row + lane % 16, chunk + lane / 16));
}

}  // namespace async
