// attention_d64, _d128 and _wide against the formula with every mask, and their speed at the shapes of FLUX.1, T5,
// CLIP, VAE.
#pragma once

#include "../../kernels/attention.cu"
#include "../../kernels/attention_wide.cu"
#include "harness.cuh"

namespace test_masked_attention {

// One block a (query, head); scores in shared memory, which is read in vectors of up to four.
__global__ void reference(MaskedAttentionParams p, float* out) {
    extern __shared__ float scores[];
    __shared__ float high;
    const int row = blockIdx.x, head = blockIdx.y, width = p.heads * p.dim;
    const bf16* q = p.qkv + static_cast<size_t>(row) * 3 * width + head * p.dim;
    const int keys = p.causal ? row + 1 : p.tokens;
    for (int j = threadIdx.x; j < keys; j += blockDim.x) {
        const bf16* k = p.qkv + static_cast<size_t>(j) * 3 * width + width + head * p.dim;
        float dot = 0;
        for (int d = 0; d < p.dim; ++d) dot += __bfloat162float(q[d]) * __bfloat162float(k[d]);
        scores[j] =
            dot * p.scale + (p.bias ? p.bias[size_t(head) * (2 * p.tokens - 1) + j - row + p.tokens - 1] : 0.0f);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        high = -INFINITY;
        for (int j = 0; j < keys; ++j) high = fmaxf(high, scores[j]);
    }
    __syncthreads();
    for (int d = threadIdx.x; d < p.dim; d += blockDim.x) {
        double sum = 0, value = 0;
        for (int j = 0; j < keys; ++j) {
            float w = expf(scores[j] - high);
            sum += w;
            value += w * __bfloat162float(p.qkv[static_cast<size_t>(j) * 3 * width + 2 * width + head * p.dim + d]);
        }
        out[static_cast<size_t>(row) * width + head * p.dim + d] = value / sum;
    }
}

struct Entry {
    void (*kernel)(MaskedAttentionParams);
    const char* name;
    int queries, threads, smem, dim;
};
const Entry D64{attention_d64, "d64", attention_any::Flash64::QUERIES, 128, attention_any::Flash64::SMEM_BYTES, 64};
const Entry D128{
    attention_d128, "d128", attention_any::Flash128::QUERIES, 128, attention_any::Flash128::SMEM_BYTES, 128};
const Entry WIDE{attention_wide, "wide", 32, 256, attention_any::Wide<32>::SMEM_BYTES, 0};
const Entry WIDE_Q64{attention_wide_q64, "wide q64", 64, 256, attention_any::Wide<64>::SMEM_BYTES, 0};

inline void launch(const Entry& e, const MaskedAttentionParams& p) {
    allow_smem(e.kernel, e.smem);
    e.kernel<<<dim3((p.tokens + e.queries - 1) / e.queries, p.heads), e.threads, e.smem>>>(p);
    CUDA(cudaGetLastError());
}

inline void check(const Entry& e, int tokens, int heads, int dim) {
    const size_t count = size_t(tokens) * heads * dim, guard = 4096;
    Buffer<bf16> qkv(3 * count), out(count + guard);
    Buffer<float> bias(heads * (2 * tokens - 1)), expected(count);
    fill(qkv, 31, 0, 1, tokens == 130 ? 0 : 61, dim);
    fill(bias, 32, 0, 2);
    for (int mask = 0; mask < 3; ++mask) {
        MaskedAttentionParams p{qkv, out,       mask == 2 ? bias.data : nullptr, tokens, heads,
                                dim, mask == 1, 1 / std::sqrt(float(dim))};
        out.poison();
        launch(e, p);
        reference<<<dim3(tokens, heads), 64, (tokens + 4) * 4>>>(p, expected);
        CUDA(cudaDeviceSynchronize());
        auto got = out.host();
        out.poison();
        launch(e, p);
        auto again = out.host();
        bool same = !std::memcmp(got.data(), again.data(), got.size() * 2), intact = true;
        for (size_t i = count; i < got.size(); ++i) intact &= !(to_float(got[i]) == to_float(got[i]));
        got.resize(count);
        Difference d = compare(got, expected.host());
        const char* masks[] = {"", " causal", " bias"};
        char text[160];
        std::snprintf(text, sizeof text, "attention %s %d x %d x %d%s: relative %.1e%s%s", e.name, heads, tokens, dim,
                      masks[mask], d.relative, intact ? "" : ", wrote past the end",
                      same ? "" : ", the second run differs");
        report(d.relative < 6e-3 && same && intact, text);  // bf16 probabilities and results
    }
}

inline void time(const Entry& e, int tokens, int heads, int dim, bool causal, bool with_bias, double ceiling) {
    Buffer<bf16> qkv(size_t(tokens) * heads * dim * 3), out(size_t(tokens) * heads * dim);
    Buffer<float> bias(with_bias ? heads * (2 * tokens - 1) : 1);
    fill(qkv, 31, 0, 1);
    fill(bias, 32, 0, 2);
    MaskedAttentionParams p{qkv, out,    with_bias ? bias.data : nullptr, tokens, heads,
                            dim, causal, 1 / std::sqrt(float(dim))};
    double ms = time_ms([&](int) { launch(e, p); }, 4, 8), rate = 4.0 * tokens * tokens * heads * dim / ms / 1e9;
    std::printf("time   attention %s %d x %d x %d%s%s %8.4f ms %7.1f TF/s %5.1f%%\n", e.name, heads, tokens, dim,
                causal ? " causal" : "", with_bias ? " bias" : "", ms, rate, 100 * rate / ceiling);
}

inline void run(double ceiling) {
    for (int tokens : {1, 33, 77, 130, 300}) {
        if (checks_only && tokens > 130) continue;
        check(D64, tokens, 3, 64);
        check(D128, tokens, 3, 128);
        for (int dim : {16, 64, 96, 240, 512}) {
            check(WIDE, tokens, 2, dim);
            if (ARCH >= 800) check(WIDE_Q64, tokens, 2, dim);
        }
    }
    if (checks_only) return;
    time(D64, 77, 12, 64, true, false, ceiling);
    time(D64, 512, 64, 64, false, true, ceiling);
    time(D128, 4608, 24, 128, false, false, ceiling);
    time(WIDE, 16384, 1, 512, false, false, ceiling);
    time(WIDE_Q64, 16384, 1, 512, false, false, ceiling);
}

}  // namespace test_masked_attention
