// 4-bit weights as gemm_w4a4_sm90 multiplies them: codes as e4m3 numbers, exactly, and scales as floats.
#include "common/codes.cuh"

// wq [n, k] and ws [n/128][k/64][128] from `packed` codes and `scales` in Nunchaku's packing; ws stays in its order. A CTA of
// 256 threads for 128 rows (blockIdx.y) x 64 channels (blockIdx.x).
extern "C" __global__ void __launch_bounds__(256)
    unpack_w4a4_sm90(const uint4* packed, const bf16* scales, u8* wq, float* ws, int k) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, groups = k / 64;
    const int n = blockIdx.y * 128 + warp * 16 + lane / 4;
    const long long tile = static_cast<long long>(blockIdx.y) * groups + blockIdx.x;
    if (threadIdx.x < 128) ws[tile * 128 + threadIdx.x] = __bfloat162float(scales[tile * 128 + threadIdx.x]);
    const uint4 v = __ldg(packed + tile * 256 + threadIdx.x);
    const codes::Table table = codes::e4m3();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        uint2* to = reinterpret_cast<uint2*>(wq + static_cast<long long>(n + 8 * half) * k + 64 * blockIdx.x +
                                             8 * (lane % 4));
        to[0] = table(half ? v.z : v.x);
        to[4] = table(half ? v.w : v.y);
    }
}
