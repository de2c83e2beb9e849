// Sums over a block, in an order that does not depend on timing.
#pragma once

template <class T>
__device__ __forceinline__ T warp_sum(T v) {
#pragma unroll
    for (int i = 16; i; i /= 2) v += __shfl_xor_sync(~0u, v, i);
    return v;
}

// The sum over all threads of a block of THREADS, for all of them.
template <int THREADS, class T>
__device__ __forceinline__ T block_sum(T v) {
    __shared__ T partial[THREADS / 32];
    v = warp_sum(v);
    __syncthreads();
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = v;
    __syncthreads();
    T sum = 0;
#pragma unroll
    for (int i = 0; i < THREADS / 32; ++i) sum += partial[i];
    return sum;
}
