// What the tensor cores sustain: two warpgroups an SM, operands that stay in shared memory (SS) or registers (RS), no
// loads. The choice between integers and e4m3 on Hopper rests on these numbers, and other kernels' shares refer to
// them.
#pragma once

#include "common/sm90.cuh"
#include "common/wgmma.cuh"
#include "harness.cuh"

namespace ceiling {

enum Kind { S8_SS, E4M3_SS, S8_RS, E4M3_RS, BF16_SS };

#define CEILING_RS(NAME, T, C, SUFFIX, TAIL)                                             \
    __device__ __forceinline__ void NAME(T(&d)[128], const u32(&a)[4], u64 b) {          \
        asm volatile("wgmma.mma_async.sync.aligned.m64n256k32." SUFFIX " {" SVDQ_TEXT128 \
                     "}, {%128, %129, %130, %131}, %132, 1" TAIL ";"                     \
                     : SVDQ_ACC128(C)                                                    \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));              \
    }
#define CEILING_SS(NAME, T, C, SUFFIX, TAIL)                                                                     \
    __device__ __forceinline__ void NAME(T(&d)[128], u64 a, u64 b) {                                             \
        asm volatile("wgmma.mma_async.sync.aligned.m64n256" SUFFIX " {" SVDQ_TEXT128 "}, %128, %129, 1" TAIL ";" \
                     : SVDQ_ACC128(C)                                                                            \
                     : "l"(a), "l"(b));                                                                          \
    }
CEILING_RS(s8_rs, int, "+r", "s32.s8.s8", "")
CEILING_RS(e4m3_rs, float, "+f", "f32.e4m3.e4m3", ", 1, 1")
CEILING_SS(s8_ss, int, "+r", "k32.s32.s8.s8", "")
CEILING_SS(e4m3_ss, float, "+f", "k32.f32.e4m3.e4m3", ", 1, 1")
CEILING_SS(bf16_ss, float, "+f", "k16.f32.bf16.bf16", ", 1, 1, 0, 0")

constexpr int A_BYTES = 128 * 128, B_BYTES = 256 * 128, SLOTS = 4;

template <Kind KIND, class T>
__device__ __forceinline__ void loop(u32 slots, int iterations, float* out) {
    T acc[128];
#pragma unroll
    for (int i = 0; i < 128; ++i) acc[i] = 0;
    u32 half = threadIdx.x / 128 * 64 * 128;
    for (int it = 0; it < iterations; ++it) {
        u32 a = slots + it % SLOTS * (A_BYTES + B_BYTES), b = a + A_BYTES;
        u32 regs[4];
        if constexpr (KIND == S8_RS || KIND == E4M3_RS) {
            // Other data every iteration, as in a kernel that unpacks its weights.
            asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
                         : "=r"(regs[0]), "=r"(regs[1]), "=r"(regs[2]), "=r"(regs[3])
                         : "r"(a + 16 * threadIdx.x));
        }
        wgmma::fence();
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            u64 da = wgmma::k_major(a + half) + 2 * i, db = wgmma::k_major(b) + 2 * i;
            if constexpr (KIND == S8_SS) s8_ss(acc, da, db);
            if constexpr (KIND == E4M3_SS) e4m3_ss(acc, da, db);
            if constexpr (KIND == BF16_SS) bf16_ss(acc, da, db);
            if constexpr (KIND == S8_RS) s8_rs(acc, regs, db);
            if constexpr (KIND == E4M3_RS) e4m3_rs(acc, regs, db);
        }
        wgmma::commit();
        if constexpr (KIND == S8_RS || KIND == E4M3_RS) {
            wgmma::wait<0>();
        } else {
            wgmma::wait<1>();
        }
    }
    wgmma::wait<0>();
    wgmma::pin(acc);
    float sum = 0;
#pragma unroll
    for (int i = 0; i < 128; ++i) sum += static_cast<float>(acc[i]);
    out[blockIdx.x * 256 + threadIdx.x] = sum;
}

template <Kind KIND>
__global__ void __launch_bounds__(256, 1) kernel(const u8* data, int iterations, float* out) {
    extern __shared__ __align__(1024) u8 shared[];
    for (int i = threadIdx.x; i < SLOTS * (A_BYTES + B_BYTES); i += 256) shared[i] = data[i];
    sm90::fence_async();
    __syncthreads();
    if constexpr (KIND == S8_SS || KIND == S8_RS) {
        loop<KIND, int>(sm90::smem_addr(shared), iterations, out);
    } else {
        loop<KIND, float>(sm90::smem_addr(shared), iterations, out);
    }
}

__global__ void make(u8* out, int n, Kind kind) {
    for (int i = blockIdx.x * 256 + threadIdx.x; i < n; i += gridDim.x * 256) {
        float v = gauss(9, i) * 36.0f;  // what absmax quantisation of normal data gives
        if (kind == S8_SS || kind == S8_RS) {
            out[i] = static_cast<u8>(static_cast<signed char>(rintf(fminf(fmaxf(v, -127.0f), 127.0f))));
        } else if (kind == BF16_SS) {
            u32 bits = __float_as_uint(gauss(9, i / 2));
            out[i] = static_cast<u8>(bits >> (i % 2 ? 24 : 16));
        } else {
            u16 pair;
            asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(v), "f"(v));
            out[i] = static_cast<u8>(pair);
        }
    }
}

template <Kind KIND>
void measure(const char* name, double seconds) {
    constexpr int BYTES = SLOTS * (A_BYTES + B_BYTES);
    Buffer<u8> data(BYTES);
    Buffer<float> out(132 * 256);
    make<<<64, 256>>>(data, BYTES, KIND);
    allow_smem(kernel<KIND>, BYTES);
    constexpr int ITERATIONS = 20000;
    double flop = 132.0 * 2 * ITERATIONS * 4 * 2.0 * 64 * 256 * (KIND == BF16_SS ? 16 : 32);
    auto launch = [&](int) { kernel<KIND><<<132, 256, BYTES>>>(data, ITERATIONS, out); };
    double first = time_ms(launch, 1, 1);
    int batch = std::max(1, int(seconds * 1000 / 4 / first));
    double ms = time_ms(launch, batch, 3);
    std::printf("ceiling %-8s %7.1f TF/s after %.1f s (first launches %7.1f)\n", name, flop / ms / 1e9,
                6 * batch * ms / 1e3, flop / first / 1e9);
    std::fflush(stdout);
}

inline void run(double seconds) {
    measure<S8_SS>("s8 SS", seconds);
    measure<E4M3_SS>("e4m3 SS", seconds);
    measure<S8_RS>("s8 RS", seconds);
    measure<E4M3_RS>("e4m3 RS", seconds);
    measure<BF16_SS>("bf16 SS", seconds);
}

}  // namespace ceiling
