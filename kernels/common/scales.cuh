// Group scales of 4-bit weights [n, k] in Nunchaku's packing.
#pragma once

#include "nvfp4.cuh"

namespace scales {

// INT4: bf16, of channel `n` and the group of 64 inputs that has input `k`, where rows have `length` inputs.
__device__ __forceinline__ float int4(const bf16* scales, int n, int k, int length) {
    const int v = n % 128;
    const long long tile = static_cast<long long>(n / 128) * (length / 64) + k / 64;
    return __bfloat162float(scales[tile * 128 + v / 16 * 16 + v % 8 / 2 * 4 + v % 16 / 8 * 2 + v % 2]);
}

// NVFP4: e4m3, of channel `n` and the group of 16 inputs that has input `k`.
__device__ __forceinline__ float nvfp4(const u8* scales, int n, int k, int length) {
    const long long tile = static_cast<long long>(n / 128) * (length / 64) + k / 64;
    const u32 code = scales[((tile * 8 + n % 8) * 16 + n % 32 / 8 * 4 + n % 128 / 32) * 4 + k % 64 / 16];
    const float size = ::nvfp4::from_e4m3(code & 127);
    return code & 128 ? -size : size;
}

}  // namespace scales
