// Norms of rows: LayerNorm (and, with a step's scale and shift as weight and bias, adaLN), RMSNorm, and the RMSNorm and
// rotation of the heads of q and k.
#include "common/elements.cuh"
#include "common/reduce.cuh"

struct NormParams {
    Elements x, out;  // [rows, cols]
    Elements weight;  // [cols]
    Elements bias;    // [cols], LayerNorm only
    int cols;
    float eps;  // added to the variance or mean square
};

struct QkNormRopeParams {
    bf16* qkv;          // [rows, 3 * heads * dim], q and k are changed in place
    Elements q, k;      // [dim], the norms' weights
    const float* rope;  // [rows, dim]: cos, sin of pair p at 2p, 2p + 1
    int rows, heads, dim;
};

// out = (x - mean) / sqrt(var + eps) * weight + bias. Grid rows, block 256.
extern "C" __global__ void __launch_bounds__(256) layer_norm(NormParams p) {
    const long long row = static_cast<long long>(blockIdx.x) * p.cols;
    float sum = 0.0f;
    for (int i = threadIdx.x; i < p.cols; i += 256) sum += p.x.load(row + i);
    const float mean = block_sum<256>(sum) / p.cols;
    float squares = 0.0f;
    for (int i = threadIdx.x; i < p.cols; i += 256) {
        const float d = p.x.load(row + i) - mean;
        squares = fmaf(d, d, squares);
    }
    const float scale = inverse_sqrt(block_sum<256>(squares) / p.cols + p.eps);
    for (int i = threadIdx.x; i < p.cols; i += 256)
        p.out.store(row + i, fmaf((p.x.load(row + i) - mean) * scale, p.weight.load(i), p.bias.load(i)));
}

// out = x / sqrt(mean(x^2) + eps) * weight. Grid rows, block 256.
extern "C" __global__ void __launch_bounds__(256) rms_norm(NormParams p) {
    const long long row = static_cast<long long>(blockIdx.x) * p.cols;
    float squares = 0.0f;
    for (int i = threadIdx.x; i < p.cols; i += 256) {
        const float v = p.x.load(row + i);
        squares = fmaf(v, v, squares);
    }
    const float scale = inverse_sqrt(block_sum<256>(squares) / p.cols + p.eps);
    for (int i = threadIdx.x; i < p.cols; i += 256) p.out.store(row + i, p.x.load(row + i) * scale * p.weight.load(i));
}

// u' = u / sqrt(mean(u^2) + 1e-6) * weight, then (a, b) -> (a cos - b sin, a sin + b cos) in adjacent pairs, for every
// head u of q and k. A warp a head: grid ceil(rows * 2 * heads / 8), block 256. dim even, up to 512.
extern "C" __global__ void __launch_bounds__(256) qk_norm_rope(QkNormRopeParams p) {
    const int item = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32, pairs = p.dim / 2;
    const int row = item / (2 * p.heads), head = item % (2 * p.heads);
    if (row >= p.rows) return;
    u32* u = reinterpret_cast<u32*>(p.qkv + static_cast<long long>(row) * 3 * p.heads * p.dim + head * p.dim);
    const float2* rope = reinterpret_cast<const float2*>(p.rope) + static_cast<long long>(row) * pairs;

    u32 values[8];
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        values[i] = lane + 32 * i < pairs ? u[lane + 32 * i] : 0;
        const float a = bf16_low(values[i]), b = bf16_high(values[i]);
        squares += a * a + b * b;
    }
    const float scale = inverse_sqrt(warp_sum(squares) / p.dim + 1e-6f);
    const Elements weight{head < p.heads ? p.q.data : p.k.data, head < p.heads ? p.q.f32 : p.k.f32};
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const int pair = lane + 32 * i;
        if (pair >= pairs) continue;
        const float a = bf16_low(values[i]) * scale * weight.load(2 * pair);
        const float b = bf16_high(values[i]) * scale * weight.load(2 * pair + 1);
        const float2 turn = rope[pair];
        u[pair] = pack_bf16(a * turn.x - b * turn.y, a * turn.y + b * turn.x);
    }
}
