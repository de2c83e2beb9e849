// Constants that arrive as f32, in the form in which gemm_w4a8_qkv_sm90 reads them.
#include "common/types.cuh"

#include <cuda_fp16.h>

// The rotary table as pairs of fp16. Grid ceil(count/256), block 256.
extern "C" __global__ void __launch_bounds__(256) rope_pairs(const float* from, __half* to, int count) {
    const int i = blockIdx.x * 256 + threadIdx.x;
    if (i < count) to[i] = __float2half(from[i]);
}

// Weights of the norms of q and k, one after the other. Grid 1, block 256.
extern "C" __global__ void __launch_bounds__(256) qk_norms(const float* q, const float* k, bf16* to, int dim) {
    for (int i = threadIdx.x; i < 2 * dim; i += 256) to[i] = __float2bfloat16(i < dim ? q[i] : k[i - dim]);
}
