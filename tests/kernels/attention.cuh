// attention_*_sm90 against the formula, and its speed at FLUX.1-dev's shape.
#pragma once

#include "../../kernels/attention_sm90.cu"
#include "harness.cuh"

namespace test_attention {

// One block a (sampled query, head); `scores` in shared memory.
__global__ void reference(const bf16* qkv, float* out, int tokens, int heads, float scale, int step) {
    extern __shared__ float scores[];
    __shared__ float reduce[128];
    const int row = blockIdx.x * step, head = blockIdx.y, width = 3 * heads * 128;
    const bf16* q = qkv + static_cast<size_t>(row) * width + head * 128;
    float top = -INFINITY;
    for (int j = threadIdx.x; j < tokens; j += 128) {
        const bf16* k = qkv + static_cast<size_t>(j) * width + (heads + head) * 128;
        float dot = 0;
        for (int d = 0; d < 128; ++d) dot += __bfloat162float(q[d]) * __bfloat162float(k[d]);
        scores[j] = dot * scale;
        top = fmaxf(top, scores[j]);
    }
    reduce[threadIdx.x] = top;
    __syncthreads();
    for (int i = 0; i < 128; ++i) top = fmaxf(top, reduce[i]);
    __syncthreads();
    double sum = 0, value = 0;
    for (int j = 0; j < tokens; ++j) {
        float p = expf(scores[j] - top);
        sum += p;
        value += p * __bfloat162float(qkv[static_cast<size_t>(j) * width + (2 * heads + head) * 128 + threadIdx.x]);
    }
    out[(static_cast<size_t>(blockIdx.x) * heads + head) * 128 + threadIdx.x] = value / sum;
}

inline AttentionParams params(bf16* qkv, bf16* out, int tokens, int heads) {
    AttentionParams p{};
    p.q = map_bf16(qkv, tokens, 3 * heads * 128, attention::QUERIES);
    p.kv = map_bf16(qkv, tokens, 3 * heads * 128, attention::KEYS);
    p.out = map_bf16(out, tokens, heads * 128, 64);
    p.tokens = tokens, p.heads = heads, p.scale = 0.08838835f;
    return p;
}

inline void launch(const AttentionParams& p) {
    allow_smem(attention_d128_sm90, attention::SMEM_BYTES);
    attention_d128_sm90<<<dim3((p.tokens + 127) / 128, p.heads), 384, attention::SMEM_BYTES>>>(p);
    CUDA(cudaGetLastError());
}

inline void check(int tokens, int heads, int step) {
    Buffer<bf16> qkv(size_t(tokens) * 3 * heads * 128), out(size_t(tokens) * heads * 128);
    fill(qkv, 21, 0, 1.0f, 61, 128);
    AttentionParams p = params(qkv, out, tokens, heads);
    launch(p);
    int rows = (tokens + step - 1) / step;
    Buffer<float> expected(size_t(rows) * heads * 128);
    reference<<<dim3(rows, heads), 128, tokens * 4>>>(qkv, expected, tokens, heads, p.scale, step);
    CUDA(cudaDeviceSynchronize());
    auto all = out.host();
    std::vector<float> got;
    for (int i = 0; i < rows; ++i)
        for (int j = 0; j < heads * 128; ++j) got.push_back(to_float(all[size_t(i) * step * heads * 128 + j]));
    Difference d = compare(got, expected.host());
    char text[160];
    std::snprintf(text, sizeof text, "attention d128 tokens %d heads %d: relative %.1e", tokens, heads, d.relative);
    report(d.relative < 6e-3, text);  // bf16 probabilities and results
    Bits first, second;
    first.add(out);
    out.poison();
    launch(p);
    second.add(out);
    same_bits(first, second);
}

inline void run(double ceiling) {
    for (int tokens : {1, 63, 128, 177, 333, 1536}) check(tokens, 2, 1);
    if (checks_only) return;
    check(4608, 24, 173);
    for (int tokens : {4608, 1536}) {
        Buffer<bf16> qkv(size_t(tokens) * 3 * 3072), out(size_t(tokens) * 3072);
        fill(qkv, 22, 0, 1.0f);
        AttentionParams p = params(qkv, out, tokens, 24);
        double ms = time_ms([&](int) { launch(p); }), rate = 4.0 * tokens * tokens * 3072 / ms / 1e9;
        std::printf("time   attention d128 24 x %d %8.4f ms %7.1f TF/s %5.1f%%\n", tokens, ms, rate,
                    100 * rate / ceiling);
    }
}

}  // namespace test_attention
