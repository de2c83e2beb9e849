// What the attention kernels for every GPU share: their parameters, scores with masks, and the way into panels.
#pragma once

#include "async.cuh"
#include "mma.cuh"

struct MaskedAttentionParams {
    const bf16* qkv;    // [tokens, 3 * heads * dim]
    bf16* out;          // [tokens, heads * dim]
    const float* bias;  // [heads, 2 * tokens - 1], by key - query + tokens - 1, or null
    int tokens, heads, dim;
    int causal;   // 0 or 1
    float scale;  // of the scores
};

namespace attention_any {

constexpr float LOG2E = 1.4426950408889634f;

__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// scale * dot + mask in units of log 2.
__device__ __forceinline__ float score(const MaskedAttentionParams& p, float dot, int head, int query, int key) {
    if (key >= p.tokens || (p.causal && key > query)) return -INFINITY;
    float v = dot * p.scale;
    if (p.bias)
        v += __ldg(p.bias + head * (2 * p.tokens - 1) + key - min(query, p.tokens - 1) + p.tokens - 1);
    return v * LOG2E;
}

// The same for four neighbouring results of a product, where no mask is needed if `plain`.
__device__ __forceinline__ void to_scores(const MaskedAttentionParams& p, float (&s)[4], int head, int query, int key,
                                          bool plain) {
#pragma unroll
    for (int e = 0; e < 4; ++e)
        s[e] = plain ? s[e] * (p.scale * LOG2E) : score(p, s[e], head, query + e / 2 * 8, key + e % 2);
}

// Copies columns `column` .. column + 63 of `Rows` rows of `matrix`, zeros beyond `rows` and `columns`, to a panel.
template <int Rows, int Threads, mma::Role ROLE>
__device__ __forceinline__ void load_panel(u32 panel, const bf16* matrix, long long pitch, int first, int rows,
                                           int column, int columns) {
    const int chunk = threadIdx.x % 8;
#pragma unroll
    for (int i = 0; i < Rows / (Threads / 8); ++i) {
        const int row = threadIdx.x / 8 + i * (Threads / 8);
        const bool valid = first + row < rows && column + 8 * chunk < columns;
        const bf16* from = valid ? matrix + (first + row) * pitch + column + 8 * chunk : matrix;
        async::copy_8<ROLE>(panel + async::panel_offset(row, chunk), from, valid);
    }
}

}  // namespace attention_any
