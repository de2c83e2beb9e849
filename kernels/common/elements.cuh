// Elements of tensors that are bf16 or f32, and the non-linearities.
#pragma once

#include "types.cuh"

// A tensor whose elements are f32 if `f32` is not 0, else bf16.
struct Elements {
    void* data;
    int f32;

    __device__ __forceinline__ float load(long long i) const {
        return f32 ? static_cast<const float*>(data)[i] : __bfloat162float(static_cast<const bf16*>(data)[i]);
    }
    __device__ __forceinline__ void store(long long i, float v) const {
        if (f32) {
            static_cast<float*>(data)[i] = v;
        } else {
            static_cast<bf16*>(data)[i] = __float2bfloat16(v);
        }
    }
};

// Eight elements at a multiple of eight.
__device__ __forceinline__ void load_8(const bf16* from, float (&v)[8]) {
    const uint4 raw = *reinterpret_cast<const uint4*>(from);
    const u32 words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        v[2 * i] = bf16_low(words[i]);
        v[2 * i + 1] = bf16_high(words[i]);
    }
}
__device__ __forceinline__ void load_8(const float* from, float (&v)[8]) {
    const float4 a = reinterpret_cast<const float4*>(from)[0], b = reinterpret_cast<const float4*>(from)[1];
    v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
}
__device__ __forceinline__ void load_8(const Elements& from, long long i, float (&v)[8]) {
    if (from.f32) {
        load_8(static_cast<const float*>(from.data) + i, v);
    } else {
        load_8(static_cast<const bf16*>(from.data) + i, v);
    }
}

__device__ __forceinline__ void store_8(bf16* to, const float (&v)[8]) {
    *reinterpret_cast<uint4*>(to) =
        make_uint4(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7]));
}
__device__ __forceinline__ void store_8(const Elements& to, long long i, const float (&v)[8]) {
    if (to.f32) {
        float4* out = reinterpret_cast<float4*>(static_cast<float*>(to.data) + i);
        out[0] = make_float4(v[0], v[1], v[2], v[3]);
        out[1] = make_float4(v[4], v[5], v[6], v[7]);
    } else {
        store_8(static_cast<bf16*>(to.data) + i, v);
    }
}

enum Activation { ACT_NONE = 0, ACT_SILU = 1, ACT_GELU_TANH = 2, ACT_QUICK_GELU = 3 };

// v sigmoid(u); u < -88 gives v / inf = -0.
__device__ __forceinline__ float gated(float v, float u) {
    return __fdividef(v, 1.0f + __expf(fminf(-u, 87.0f)));
}

__device__ __forceinline__ float activate(float v, int activation) {
    switch (activation) {
        case ACT_SILU:
            return gated(v, v);
        // 0.5 v (1 + tanh u) = v sigmoid(2 u), u = sqrt(2/pi) (v + 0.044715 v^3)
        case ACT_GELU_TANH:
            return gated(v, v * fmaf(2 * 0.7978845608f * 0.044715f, v * v, 2 * 0.7978845608f));
        case ACT_QUICK_GELU:
            return gated(v, 1.702f * v);
        default:
            return v;
    }
}
