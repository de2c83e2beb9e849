// Warpgroup matrix multiplication of sm_90a: D[64, N] += A[64, K] B[N, K]^T, with a thread's accumulators
//   d[4j + 0..1]: row 16 warp + lane/4,     columns 8j + 2 (lane % 4) + 0..1
//   d[4j + 2..3]: row 16 warp + lane/4 + 8, the same columns
// A and B are described to the tensor cores by 64-bit descriptors of shared memory. Where nothing else is said, tiles
// have rows of 128 bytes in the copy engine's 128-byte swizzle: a tile of R rows takes 128 R bytes and is aligned to
// 1024.
// `add` = 0 starts from zero. A batch of products runs between fence() and commit(); its accumulators may be
// touched after wait() and pin().
#pragma once

#include "types.cuh"

namespace wgmma {

// Rows along M or N, 128 bytes of K in a row. Add 2 for every 32 bytes of K.
__device__ __forceinline__ u64 k_major(u32 smem) {
    return (1ull << 62) | (64ull << 32) | ((smem & 0x3ffff) >> 4);
}

// Rows along K, 64 16-bit elements of N in a row; the next 64 columns are `stride` bytes on. Add 64 for every 8 rows.
__device__ __forceinline__ u64 n_major(u32 smem, u32 stride) {
    return (1ull << 62) | (64ull << 32) | (static_cast<u64>(stride >> 4) << 16) | ((smem & 0x3ffff) >> 4);
}

__device__ __forceinline__ void fence() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Waits for all but the last `Pending` committed batches.
template <int Pending>
__device__ __forceinline__ void wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory");
}

// Keeps the compiler from moving uses of an accumulator across a wait.
template <int R>
__device__ __forceinline__ void pin(int (&d)[R]) {
#pragma unroll
    for (int i = 0; i < R; ++i) asm volatile("" : "+r"(d[i])::"memory");
}
template <int R>
__device__ __forceinline__ void pin(float (&d)[R]) {
#pragma unroll
    for (int i = 0; i < R; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// Operands and operand texts of R accumulators. `C` is the constraint.
#define SVDQ_D8(C, o) C(d[o]), C(d[o + 1]), C(d[o + 2]), C(d[o + 3]), C(d[o + 4]), C(d[o + 5]), C(d[o + 6]), C(d[o + 7])
#define SVDQ_D16(C, o) SVDQ_D8(C, o), SVDQ_D8(C, o + 8)
#define SVDQ_D32(C, o) SVDQ_D16(C, o), SVDQ_D16(C, o + 16)
#define SVDQ_ACC16(C) SVDQ_D16(C, 0)
#define SVDQ_ACC32(C) SVDQ_D32(C, 0)
#define SVDQ_ACC48(C) SVDQ_ACC32(C), SVDQ_D16(C, 32)
#define SVDQ_ACC64(C) SVDQ_ACC32(C), SVDQ_D32(C, 32)
#define SVDQ_ACC96(C) SVDQ_ACC64(C), SVDQ_D32(C, 64)
#define SVDQ_ACC104(C) SVDQ_ACC96(C), SVDQ_D8(C, 96)
#define SVDQ_ACC128(C) SVDQ_ACC96(C), SVDQ_D32(C, 96)
#define SVDQ_TEXT16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define SVDQ_TEXT32 \
    SVDQ_TEXT16     \
    ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define SVDQ_TEXT48 \
    SVDQ_TEXT32     \
    ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define SVDQ_TEXT64                                                                    \
    SVDQ_TEXT32                                                                        \
    ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47" \
    ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define SVDQ_TEXT96                                                                    \
    SVDQ_TEXT64                                                                        \
    ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79" \
    ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define SVDQ_TEXT104 \
    SVDQ_TEXT96      \
    ", %96, %97, %98, %99, %100, %101, %102, %103"
#define SVDQ_TEXT128                                                                               \
    SVDQ_TEXT96                                                                                    \
    ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111" \
    ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

// 8-bit integers, exact 32-bit sums. `A` is u8 or s8, `B` s8.
#define SVDQ_WGMMA_INT(NAME, N, R, ATYPE, P0, P1, P2)                                                               \
    __device__ __forceinline__ void NAME(int (&d)[R], u64 a, u64 b, int add) {                                      \
        asm volatile("{\n .reg .pred p;\n setp.ne.b32 p, " P2                                                       \
                     ", 0;\n"                                                                                       \
                     " wgmma.mma_async.sync.aligned.m64n" #N "k32.s32." ATYPE ".s8 {" SVDQ_TEXT##R "}, " P0 ", " P1 \
                                                                                                   ", p;\n}"        \
                     : SVDQ_ACC##R("+r")                                                                            \
                     : "l"(a), "l"(b), "r"(add));                                                                   \
    }
SVDQ_WGMMA_INT(mma_s8, 256, 128, "s8", "%128", "%129", "%130")
SVDQ_WGMMA_INT(mma_s8, 192, 96, "s8", "%96", "%97", "%98")
SVDQ_WGMMA_INT(mma_u8, 192, 96, "u8", "%96", "%97", "%98")

// e4m3, f32 sums of which the products' addition keeps 14 bits.
__device__ __forceinline__ void mma_e4m3(float (&d)[64], u64 a, u64 b, int add) {
    asm volatile("{\n .reg .pred p;\n setp.ne.b32 p, %66, 0;\n"
                 " wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 {" SVDQ_TEXT64 "}, %64, %65, p, 1, 1;\n}"
                 : SVDQ_ACC64("+f")
                 : "l"(a), "l"(b), "r"(add));
}

// bf16, f32 sums, K = 16.
#define SVDQ_WGMMA_BF16(N, R, P0, P1, P2)                                                                             \
    __device__ __forceinline__ void mma_bf16(float (&d)[R], u64 a, u64 b, int add) {                                  \
        asm volatile("{\n .reg .pred p;\n setp.ne.b32 p, " P2                                                         \
                     ", 0;\n"                                                                                         \
                     " wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" SVDQ_TEXT##R "}, " P0 ", " P1      \
                                                                                                ", p, 1, 1, 0, 0;\n}" \
                     : SVDQ_ACC##R("+f")                                                                              \
                     : "l"(a), "l"(b), "r"(add));                                                                     \
    }
SVDQ_WGMMA_BF16(256, 128, "%128", "%129", "%130")
SVDQ_WGMMA_BF16(208, 104, "%104", "%105", "%106")
SVDQ_WGMMA_BF16(192, 96, "%96", "%97", "%98")
SVDQ_WGMMA_BF16(128, 64, "%64", "%65", "%66")
SVDQ_WGMMA_BF16(64, 32, "%32", "%33", "%34")

// The same with A in registers, in the layout of an accumulator packed to bf16 pairs. TRANSPOSED B is n_major.
#define SVDQ_WGMMA_BF16_RS(NAME, N, R, TRANSPOSED, P0, P1, P2, P3, P4, P5)                                \
    __device__ __forceinline__ void NAME(float (&d)[R], u32 a0, u32 a1, u32 a2, u32 a3, u64 b, int add) { \
        asm volatile("{\n .reg .pred p;\n setp.ne.b32 p, " P5                                             \
                     ", 0;\n"                                                                             \
                     " wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" SVDQ_TEXT##R           \
                     "}, {" P0 ", " P1 ", " P2 ", " P3 "}, " P4 ", p, 1, 1, " #TRANSPOSED ";\n}"          \
                     : SVDQ_ACC##R("+f")                                                                  \
                     : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b), "r"(add));                             \
    }
SVDQ_WGMMA_BF16_RS(mma_bf16_rs, 96, 48, 0, "%48", "%49", "%50", "%51", "%52", "%53")
SVDQ_WGMMA_BF16_RS(mma_bf16_rs, 64, 32, 0, "%32", "%33", "%34", "%35", "%36", "%37")
SVDQ_WGMMA_BF16_RS(mma_bf16_rs, 32, 16, 0, "%16", "%17", "%18", "%19", "%20", "%21")
SVDQ_WGMMA_BF16_RS(mma_bf16_rs_n, 128, 64, 1, "%64", "%65", "%66", "%67", "%68", "%69")

}  // namespace wgmma
