// Softmax attention over all tokens on Hopper, heads of 128 channels, bf16 in and out, f32 softmax:
//   out[m, head] = sum_j softmax_j(scale q[m] k[j]) v[j]
// After FlashAttention-3 (arXiv 2407.08608): one warp loads, two warpgroups own 64 queries each; the scores of the next
// block of keys are multiplied while the softmax of this one runs, the two warpgroups take turns at the tensor cores,
// and probabilities go from accumulators to operands without leaving registers.
//
// Launch with 384 threads, SMEM_BYTES of shared memory, blocks of (ceil(tokens / 128), heads). Tensor maps swizzle 128
// bytes and fill with zeros.
#include "common/epilogue_sm90.cuh"
#include "common/wgmma.cuh"

struct AttentionParams {
    TensorMap q;    // qkv [tokens, 3 heads 128] bf16; box 128 rows x 64
    TensorMap kv;   // the same tensor; box KEYS rows x 64
    TensorMap out;  // [tokens, heads 128] bf16; box 64 rows x 64
    int tokens, heads;
    float scale;  // of the scores
};

namespace attention {

constexpr int QUERIES = 128, KEYS = 128, DIM = 128, STAGES = 2;
constexpr int Q_BYTES = QUERIES * DIM * 2, TILE_BYTES = KEYS * DIM * 2;  // two boxes of 64 channels each
[[maybe_unused]] constexpr int SMEM_BYTES = Q_BYTES + 2 * STAGES * TILE_BYTES + 8 * (1 + 4 * STAGES);

struct Barriers {
    u32 q, k_full, k_empty, v_full, v_empty;

    __device__ explicit Barriers(u32 base)
        : q(base),
          k_full(base + 8),
          k_empty(k_full + 8 * STAGES),
          v_full(k_empty + 8 * STAGES),
          v_empty(v_full + 8 * STAGES) {}
};

__device__ __forceinline__ void produce(const AttentionParams& p, u32 q, u32 k, u32 v, const Barriers& bars) {
    const int head = blockIdx.y, row = blockIdx.x * QUERIES, width = p.heads * DIM;
    auto load = [&](const TensorMap& map, u32 dst, u32 bar, int column, int row, int bytes) {
        sm90::barrier_expect(bar, bytes);
        sm90::load_2d(dst, map, bar, column, row);
        sm90::load_2d(dst + bytes / 2, map, bar, column + 64, row);
    };
    load(p.q, q, bars.q, head * DIM, row, Q_BYTES);
    sm90::Ring<STAGES> ring;
    for (int key = 0; key < p.tokens; key += KEYS) {
        int at = ring.stage;
        sm90::barrier_wait(bars.k_empty + 8 * at, ring.parity ^ 1);
        load(p.kv, k + at * TILE_BYTES, bars.k_full + 8 * at, width + head * DIM, key, TILE_BYTES);
        sm90::barrier_wait(bars.v_empty + 8 * at, ring.parity ^ 1);
        load(p.kv, v + at * TILE_BYTES, bars.v_full + 8 * at, 2 * width + head * DIM, key, TILE_BYTES);
        ring.advance();
    }
}

// scores = q k^T, asynchronously.
__device__ __forceinline__ void multiply_scores(float (&scores)[KEYS / 2], u32 q, u32 k) {
    wgmma::fence();
#pragma unroll
    for (int i = 0; i < DIM / 16; ++i) {
        // Channels 64.. are in the second box.
        u64 a = wgmma::k_major(q + i / 4 * (Q_BYTES / 2)) + 2 * (i % 4);
        u64 b = wgmma::k_major(k + i / 4 * (KEYS * 128)) + 2 * (i % 4);
        wgmma::mma_bf16(scores, a, b, i > 0);
    }
    wgmma::commit();
}

// out += p v, asynchronously.
__device__ __forceinline__ void multiply_values(float (&out)[DIM / 2], const u32 (&p)[KEYS / 4], u32 v) {
    wgmma::fence();
#pragma unroll
    for (int i = 0; i < KEYS / 16; ++i) {
        u64 b = wgmma::n_major(v + i * 2048, KEYS * 128);
        wgmma::mma_bf16_rs_n(out, p[4 * i], p[4 * i + 1], p[4 * i + 2], p[4 * i + 3], b, 1);
    }
    wgmma::commit();
}

__device__ __forceinline__ float minus_infinity() {
    return __int_as_float(0xff800000);
}

// Running maximum and sum of this thread's two rows, in units of log2.
struct Softmax {
    float scale;  // of the scores, times log2(e)
    float max[2] = {minus_infinity(), minus_infinity()};
    float sum[2] = {0.0f, 0.0f};  // of this thread's columns only

    // Turns scores into exp2(scale (score - max)) and gives the factor by which earlier results shrink. Keys from
    // `valid` on count as absent.
    template <int R>
    __device__ __forceinline__ void step(float (&s)[R], float (&shrink)[2], int valid) {
        if (valid < 2 * R) {
            const int column = 2 * (threadIdx.x % 4);
#pragma unroll
            for (int i = 0; i < R; ++i) {
                if (i / 4 * 8 + column + i % 2 >= valid) s[i] = minus_infinity();
            }
        }
        float top[2] = {max[0], max[1]};
#pragma unroll
        for (int i = 0; i < R; ++i) top[i % 4 / 2] = fmaxf(top[i % 4 / 2], s[i]);
        float offset[2];
#pragma unroll
        for (int row = 0; row < 2; ++row) {
            top[row] = quad_max(top[row]);
            shrink[row] = exp2f((max[row] - top[row]) * scale);
            max[row] = top[row];
            offset[row] = top[row] * scale;
            sum[row] *= shrink[row];
        }
#pragma unroll
        for (int i = 0; i < R; ++i) {
            asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(s[i]) : "f"(fmaf(s[i], scale, -offset[i % 4 / 2])));
            sum[i % 4 / 2] += s[i];
        }
    }
};

template <int R>
__device__ __forceinline__ void pack(const float (&s)[R], u32 (&p)[R / 2]) {
#pragma unroll
    for (int i = 0; i < R / 2; ++i) p[i] = pack_bf16(s[2 * i], s[2 * i + 1]);
}

__device__ __forceinline__ void consume(const AttentionParams& p, u32 q, u32 k, u32 v, const Barriers& bars) {
    const int warpgroup = threadIdx.x / 128 - 1;
    const int blocks = ceil_div(p.tokens, KEYS);
    // Whose turn it is to issue products: named barriers 3 and 4, one a warpgroup.
    auto await_turn = [&] { named_sync(3 + warpgroup, 256); };
    auto pass_turn = [&] { named_arrive(3 + (1 - warpgroup), 256); };
    auto release = [&](u32 bar) {
        if (threadIdx.x % 32 == 0) sm90::barrier_arrive(bar);
    };

    Softmax softmax{p.scale * 1.44269504f};
    float out[DIM / 2] = {};
    u32 probs[KEYS / 4];
    float shrink[2];
    u32 rows = q + warpgroup * 64 * 128;
    sm90::Ring<STAGES> kr, vr;

    if (warpgroup == 1) pass_turn();
    sm90::barrier_wait(bars.q, 0);
    {
        float scores[KEYS / 2];
        sm90::barrier_wait(bars.k_full, 0);
        await_turn();
        multiply_scores(scores, rows, k);
        pass_turn();
        wgmma::wait<0>();
        wgmma::pin(scores);
        release(bars.k_empty);
        kr.advance();
        softmax.step(scores, shrink, p.tokens);
        pack(scores, probs);
    }
    for (int block = 1; block < blocks; ++block) {
        float scores[KEYS / 2];
        sm90::barrier_wait(bars.k_full + 8 * kr.stage, kr.parity);
        await_turn();
        multiply_scores(scores, rows, k + kr.stage * TILE_BYTES);
        sm90::barrier_wait(bars.v_full + 8 * vr.stage, vr.parity);
        multiply_values(out, probs, v + vr.stage * TILE_BYTES);
        pass_turn();
        wgmma::wait<1>();
        wgmma::pin(scores);
        release(bars.k_empty + 8 * kr.stage);
        softmax.step(scores, shrink, p.tokens - block * KEYS);
        wgmma::wait<0>();
        wgmma::pin(out);
        release(bars.v_empty + 8 * vr.stage);
#pragma unroll
        for (int i = 0; i < DIM / 2; ++i) out[i] *= shrink[i % 4 / 2];
        pack(scores, probs);
        kr.advance();
        vr.advance();
    }
    sm90::barrier_wait(bars.v_full + 8 * vr.stage, vr.parity);
    multiply_values(out, probs, v + vr.stage * TILE_BYTES);
    wgmma::wait<0>();
    wgmma::pin(out);
    if (warpgroup == 0) await_turn();  // the turn that the other passed last

    float inverse[2] = {reciprocal_of(quad_sum(softmax.sum[0])), reciprocal_of(quad_sum(softmax.sum[1]))};
#pragma unroll
    for (int i = 0; i < DIM / 2; ++i) out[i] *= inverse[i % 4 / 2];
    // This warpgroup's queries are read no more; their place (half of each box) takes the result.
    epilogue::write_bf16<false>(out, p.out, rows, Q_BYTES / 2, blockIdx.y * DIM, blockIdx.x * QUERIES + 64 * warpgroup,
                                p.heads * DIM, warpgroup);
    if (threadIdx.x % 128 == 0) sm90::store_wait_read<0>();
}

__device__ __forceinline__ void run(const AttentionParams& p) {
    extern __shared__ __align__(1024) unsigned char shared_bytes[];
    const u32 q = sm90::smem_addr(shared_bytes), k = q + Q_BYTES, v = k + STAGES * TILE_BYTES;
    const Barriers bars(v + STAGES * TILE_BYTES);

    if (threadIdx.x == 0) {
        sm90::barrier_init(bars.q, 1);
        for (int i = 0; i < STAGES; ++i) {
            sm90::barrier_init(bars.k_full + 8 * i, 1);
            sm90::barrier_init(bars.v_full + 8 * i, 1);
            sm90::barrier_init(bars.k_empty + 8 * i, 8);  // every consumer warp
            sm90::barrier_init(bars.v_empty + 8 * i, 8);
        }
        sm90::barrier_init_fence();
    }
    __syncthreads();
    if (threadIdx.x < 128) {
        sm90::give_registers<24>();
        if (threadIdx.x == 0) produce(p, q, k, v, bars);
    } else {
        sm90::take_registers<240>();
        consume(p, q, k, v, bars);
    }
}

}  // namespace attention

extern "C" __global__ void __launch_bounds__(384, 1) attention_d128_sm90(const __grid_constant__ AttentionParams p) {
    attention::run(p);
}
