// NVFP4 weights as W4A8 multiplies them: int8 codes with one scale a row. With s[n,g] = scale[n,g] channels[n],
//   ws[n]   = max_k |number[n,k] s[n,g]| / 127
//   wq[n,k] = round half even (number[n,k] s[n,g] / ws[n])          (0 where ws is 0)
// in IEEE arithmetic, so that every device gives the same codes. Numbers are e2m1, scales e4m3 in groups of 16 inputs;
// `codes` and `scales` lie in Nunchaku's packing.
#include "common/scales.cuh"

namespace unpack_nvfp4 {

__device__ __forceinline__ float number(u32 word, int i) {
    return 0.5f * nvfp4::twice_e2m1(word >> 4 * i & 15);
}

__device__ __forceinline__ u32 code_of(float value, float row_scale) {
    return row_scale > 0.0f ? min(max(__float2int_rn(__fdiv_rn(value, row_scale)), -127), 127) & 0xff : 0;
}

}  // namespace unpack_nvfp4

// ws of [n, k]: a CTA of 128 threads for 128 rows, one row a thread.
extern "C" __global__ void __launch_bounds__(128)
    unpack_nvfp4_w4a8_scales(const uint4* codes, const u8* group_scales, const float* channels, float* ws, int k) {
    const int row = threadIdx.x, n = blockIdx.x * 128 + row;
    const float channel = channels[n];
    float largest = 0.0f;
    for (int first = 0; first < k; first += 64) {
        const long long tile = static_cast<long long>(blockIdx.x) * (k / 64) + first / 64;
        const uint4* lanes = codes + (tile * 8 + row / 16) * 32 + row % 8 * 4;
        for (int lane = 0; lane < 4; ++lane) {
            const uint4 v = lanes[lane];
            const u32 words[2] = {row % 16 < 8 ? v.x : v.z, row % 16 < 8 ? v.y : v.w};
            for (int right = 0; right < 2; ++right) {
                const float scale = scales::nvfp4(group_scales, n, first + 32 * right + 8 * lane, k) * channel;
                float top = 0.0f;
                for (int i = 0; i < 8; ++i) top = fmaxf(top, fabsf(unpack_nvfp4::number(words[right], i)));
                largest = fmaxf(largest, top * fabsf(scale));
            }
        }
    }
    ws[n] = __fdiv_rn(largest, 127.0f);
}

// wq [n, k]: a warp for 16 rows x 64 inputs, blockIdx.y counts 128 rows and blockIdx.x 64 inputs. 256 threads.
extern "C" __global__ void __launch_bounds__(256)
    unpack_nvfp4_w4a8(const uint4* codes, const u8* group_scales, const float* channels, const float* ws, u8* wq,
                      int k) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int row = blockIdx.y * 128 + warp * 16 + lane / 4, column = blockIdx.x * 64 + 8 * (lane % 4);
    const uint4 v =
        __ldg(codes + ((static_cast<long long>(blockIdx.y) * (k / 64) + blockIdx.x) * 8 + warp) * 32 + lane);
    const u32 words[2][2] = {{v.x, v.y}, {v.z, v.w}};
#pragma unroll
    for (int below = 0; below < 2; ++below) {
        const int n = row + 8 * below;
        const float row_scale = ws[n], channel = channels[n];
#pragma unroll
        for (int right = 0; right < 2; ++right) {
            const int first = column + 32 * right;
            const float scale = scales::nvfp4(group_scales, n, first, k) * channel;
            u32 bytes[2] = {};
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                const float value = unpack_nvfp4::number(words[below][right], i) * scale;
                bytes[i / 4] |= unpack_nvfp4::code_of(value, row_scale) << (8 * (i % 4));
            }
            *reinterpret_cast<uint2*>(wq + static_cast<long long>(n) * k + first) = make_uint2(bytes[0], bytes[1]);
        }
    }
}
