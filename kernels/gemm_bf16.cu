// Dense linears, bf16 in, f32 sums:
//   out[m,n] = act(scale * sum_k x[m,k] w[n,k] + bias[n] + before[m,n]) * by[m,n] * gate[n] + add[m,n]
// where bias, before (low-rank updates), by (T5's gated GELU), gate and add (the residual, usually `out` itself) may be
// absent.
#include "common/product_bf16.cuh"

struct LinearParams {
    const bf16* x;  // [m, k]
    const bf16* w;  // [n, k]
    int m, n, k;
    product::Output output;  // [m, n]
};

namespace gemm_bf16 {

template <class Tile, bool Vectors>
__device__ __forceinline__ void linear(const LinearParams& p) {
    const product::Place place(p.m, p.n);
    product::MatrixRows<Vectors, mma::ACTIVATION> x{p.x, p.m, p.k, place.m0};
    product::MatrixRows<Vectors, mma::WEIGHT> w{p.w, p.n, p.k, place.n0};
    product::run<Tile>(x, w, p.k, p.m, p.n, place, p.output);
}

}  // namespace gemm_bf16

// All: grid ceil(m/128) * ceil(n/128), block 128, shared memory 98304 bytes, on sm_75 65536. m, n, k > 0.
// x and w are aligned to 16 bytes; so is everything in `output` if n and its pitch are multiples of 8.

// k a multiple of 8.
extern "C" __global__ void __launch_bounds__(128, 2) gemm_bf16_k8(const __grid_constant__ LinearParams p) {
    gemm_bf16::linear<product::WarpTile, true>(p);
}

// Any k.
extern "C" __global__ void __launch_bounds__(128, 2) gemm_bf16_any_k(const __grid_constant__ LinearParams p) {
    gemm_bf16::linear<product::WarpTile, false>(p);
}

#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
// Hopper: as gemm_bf16_k8, by wgmma.
extern "C" __global__ void __launch_bounds__(128, 2) gemm_bf16_sm90(const __grid_constant__ LinearParams p) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    gemm_bf16::linear<product::WarpgroupTile, true>(p);
#endif
}
#endif
