// 4-bit weights as W4A8 multiplies them: int8 codes with one scale a row.
//   ws[n]   = max_k |code[n,k] scale[n,g]| / 127
//   wq[n,k] = round half even (code[n,k] scale[n,g] / ws[n])          (0 where ws is 0)
// in IEEE arithmetic, so that every device gives the same codes. `codes` and `scales` lie in Nunchaku's packing.
#include "common/codes.cuh"

namespace unpack {

// The code of `magnitude`, 1 .. 8.
__device__ __forceinline__ u32 code_of(int magnitude, float scale, float row_scale) {
    return row_scale > 0.0f ? min(__float2int_rn(__fdiv_rn(magnitude * scale, row_scale)), 127) & 0xff : 0;
}

// Where the scale of row `n` and group `g` is, of `groups`.
__device__ __forceinline__ long long scale_at(int n, int g, int groups) {
    const int v = n % 128;
    return (static_cast<long long>(n / 128) * groups + g) * 128 + v / 16 * 16 + v % 8 / 2 * 4 + v % 16 / 8 * 2 + v % 2;
}

// Codes of one row and group, from what magnitudes 1 .. 4 and 5 .. 8 become, a byte each.
__device__ __forceinline__ codes::Table table_of(u32 low, u32 high) {
    return {make_uint2(low << 8, __byte_perm(low, high, 0x6543)),
            make_uint2(__vneg4(__byte_perm(high, 0, 0x0123)), __vneg4(__byte_perm(low, 0, 0x0123)))};
}

}  // namespace unpack

// ws of [n, k]: a CTA of 128 threads for 128 rows, one row a thread. `codes` is read 16 rows x 64 channels at a time.
extern "C" __global__ void __launch_bounds__(128)
    unpack_w4a8_scales(const uint4* codes, const bf16* scales, float* ws, int k) {
    const int row = threadIdx.x, n = blockIdx.x * 128 + row, groups = k / 64;
    float largest = 0.0f;
    for (int g = 0; g < groups; ++g) {
        const float scale = fabsf(__bfloat162float(scales[unpack::scale_at(n, g, groups)]));
        const uint4* tile = codes + ((static_cast<long long>(blockIdx.x) * groups + g) * 8 + row / 16) * 32;
        int magnitude = 0;
        for (int lane = row % 8 * 4; lane < row % 8 * 4 + 4; ++lane) {
            const uint4 v = tile[lane];
            const u32 words[2] = {row % 16 < 8 ? v.x : v.z, row % 16 < 8 ? v.y : v.w};
            for (int i = 0; i < 16; ++i) {
                magnitude = max(magnitude, abs(static_cast<int>(words[i / 8] << (28 - 4 * (i % 8))) >> 28));
            }
        }
        largest = fmaxf(largest, magnitude * scale);
    }
    ws[n] = __fdiv_rn(largest, 127.0f);
}

// wq [n, k]: a warp for 16 rows x 64 channels, blockIdx.y counts 128 rows and blockIdx.x 64 channels.
extern "C" __global__ void __launch_bounds__(256)
    unpack_w4a8(const uint4* codes, const bf16* scales, const float* ws, u8* wq, int k) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, groups = k / 64;
    const int n = blockIdx.y * 128 + warp * 16 + lane / 4, g = blockIdx.x;
    const uint4 v = __ldg(codes + ((static_cast<long long>(blockIdx.y) * groups + g) * 8 + warp) * 32 + lane);
    // The four lanes of a row work out two magnitudes each, of both of their rows.
    u32 mine = 0;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = n + 8 * half, magnitude = 2 * (lane % 4) + 1;
        const float scale = __bfloat162float(scales[unpack::scale_at(row, g, groups)]), row_scale = ws[row];
        mine |= unpack::code_of(magnitude, scale, row_scale) << (16 * half);
        mine |= unpack::code_of(magnitude + 1, scale, row_scale) << (16 * half + 8);
    }
    u32 all[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) all[i] = __shfl_sync(~0u, mine, i, 4);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const u32 bytes = half ? 0x7632 : 0x5410;
        const codes::Table table =
            unpack::table_of(__byte_perm(all[0], all[1], bytes), __byte_perm(all[2], all[3], bytes));
        uint2* to = reinterpret_cast<uint2*>(wq + static_cast<long long>(n + 8 * half) * k + 64 * g + 8 * (lane % 4));
        to[0] = table(half ? v.z : v.x);
        to[4] = table(half ? v.w : v.y);
    }
}
