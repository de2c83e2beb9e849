// CUDA's language and library for the host's compiler: what the kernels use of it, under the name of the one header
// that they include.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "emulation.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(bytes)

// ---- vectors

struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) {
    return {x, y};
}
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) {
    return {x, y, z, w};
}
inline float2 make_float2(float x, float y) {
    return {x, y};
}
inline float4 make_float4(float x, float y, float z, float w) {
    return {x, y, z, w};
}

// ---- numbers

template <class To, class From>
To bits(From v) {
    static_assert(sizeof(To) == sizeof(From));
    To out;
    std::memcpy(&out, &v, sizeof out);
    return out;
}
inline float __int_as_float(int v) {
    return bits<float>(v);
}
inline float __uint_as_float(unsigned v) {
    return bits<float>(v);
}
inline unsigned __float_as_uint(float v) {
    return bits<unsigned>(v);
}

struct __nv_bfloat16 {
    unsigned short bits;
};
inline float __bfloat162float(__nv_bfloat16 v) {
    return __uint_as_float(unsigned(v.bits) << 16);
}
// To nearest, ties to even.
inline __nv_bfloat16 __float2bfloat16(float v) {
    const unsigned u = __float_as_uint(v);
    const unsigned rounded = v == v ? u + 0x7fff + (u >> 16 & 1) : 0x7fff0000;
    return {static_cast<unsigned short>(rounded >> 16)};
}

using std::abs;
template <class T>
T min(T a, T b) {
    return b < a ? b : a;
}
template <class T>
T max(T a, T b) {
    return a < b ? b : a;
}
inline int __float2int_rn(float v) {
    return v != v ? 0 : static_cast<int>(std::nearbyint(min(max(double(v), -0x1p31), 0x1p31 - 1)));
}
inline unsigned __float2uint_rn(float v) {
    return v != v ? 0 : static_cast<unsigned>(std::nearbyint(min(max(double(v), 0.0), 0x1p32 - 1)));
}
inline float __fdiv_rn(float a, float b) {
    return a / b;
}
inline float __fdividef(float a, float b) {
    return a / b;
}
inline float __expf(float v) {
    return std::exp(v);
}

// Byte i of the result is what the nibble i of `selector` picks out of b:a, or its sign in all bits.
inline unsigned prmt(unsigned a, unsigned b, unsigned selector) {
    const uint64_t bytes = uint64_t(b) << 32 | a;
    unsigned out = 0;
    for (int i = 0; i < 4; ++i) {
        const unsigned nibble = selector >> (4 * i) & 15, byte = bytes >> (8 * (nibble & 7)) & 0xff;
        out |= (nibble & 8 ? (byte & 0x80 ? 0xffu : 0u) : byte) << (8 * i);
    }
    return out;
}
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    return prmt(a, b, selector & 0x7777);
}
// Each byte negated.
inline unsigned __vneg4(unsigned v) {
    unsigned out = 0;
    for (int i = 0; i < 32; i += 8) out |= (0u - (v >> i & 0xff) & 0xff) << i;
    return out;
}

// ---- memory and other threads

template <class T>
T __ldg(const T* from) {
    return *from;
}
inline size_t __cvta_generic_to_shared(const void* p) {
    return static_cast<const unsigned char*>(p) - emulation::shared;
}
inline void __syncthreads() {
    emulation::wait(emulation::barriers[0], blockDim.x);
}

namespace emulation {

// The value of another lane.
template <class T>
T shuffle(const void* operation, T v, unsigned from) {
    return bits<T>(exchange(operation, {bits<unsigned>(v), from}, [](std::array<Words, 32>& lanes) {
        const auto given = lanes;
        for (Words& lane : lanes) lane[0] = given[lane[1]][0];
    })[0]);
}

}  // namespace emulation

template <class T>
T __shfl_xor_sync(unsigned, T v, int mask) {
    return emulation::shuffle("shfl.bfly", v, emulation::self % 32 ^ mask);
}
template <class T>
T __shfl_sync(unsigned, T v, int lane, int width = 32) {
    return emulation::shuffle("shfl.idx", v, emulation::self % 32 / width * width + lane % width);
}

#include "ptx.h"
