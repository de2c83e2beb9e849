// Softmax attention over all tokens for heads of 64 and 128 channels, bf16 in and out, f32 softmax:
//   out[m, head] = sum_j softmax_j(scale q[m] k[j] + mask[m,j]) v[j]
// where the mask is nothing, causal, or a bias by head and j - m. After FlashAttention-2 (arXiv 2307.08691):
// blocks of keys pass by a block of queries, whose running maximum and sum rescale what has been gathered so far.
#include "common/attention.cuh"

namespace attention_any {

// A warp owns 16 TILES queries.
template <int DIM, int KEYS, int WARPS, int TILES>
struct Flash {
    static constexpr int THREADS = 32 * WARPS, QUERIES = 16 * TILES * WARPS, PANELS = DIM / 64;
    static constexpr int Q_BYTES = QUERIES * DIM * 2, TILE_BYTES = KEYS * DIM * 2;
    static constexpr int SMEM_BYTES = Q_BYTES + 4 * TILE_BYTES;

    float out[TILES][DIM / 8][4] = {};
    float top[TILES][2], sum[TILES][2] = {};

    __device__ __forceinline__ void load_keys(const MaskedAttentionParams& p, u32 to, int first, int head) {
        const long long pitch = 3ll * p.heads * DIM;
#pragma unroll
        for (int i = 0; i < 2 * PANELS; ++i) {
            const bf16* from = p.qkv + (1 + i / PANELS) * p.heads * DIM + head * DIM;
            load_panel<KEYS, THREADS, mma::WEIGHT>(to + i * KEYS * 128, from, pitch, first, p.tokens, i % PANELS * 64, DIM);
        }
        async::commit();
    }

    // Scores of this warp's queries with a block of keys.
    __device__ __forceinline__ void multiply_scores(float (&s)[TILES][KEYS / 8][4], u32 q, u32 k) {
        const int row = threadIdx.x / 32 * 16 * TILES;
#pragma unroll
        for (int i = 0; i < TILES; ++i)
#pragma unroll
            for (int j = 0; j < KEYS / 8; ++j)
#pragma unroll
                for (int e = 0; e < 4; ++e) s[i][j][e] = 0.0f;
#pragma unroll
        for (int step = 0; step < DIM / 16; ++step) {
            u32 a[TILES][4];
#pragma unroll
            for (int i = 0; i < TILES; ++i) async::load_a(a[i], q + step / 4 * QUERIES * 128, row + 16 * i, step % 4);
#pragma unroll
            for (int j = 0; j < KEYS / 16; ++j) {
                u32 b[4];
                async::load_b(b, k + step / 4 * KEYS * 128, 16 * j, step % 4);
#pragma unroll
                for (int i = 0; i < TILES; ++i) {
                    mma::multiply_16x8x16(s[i][2 * j], a[i][0], a[i][1], a[i][2], a[i][3], b[0], b[1]);
                    mma::multiply_16x8x16(s[i][2 * j + 1], a[i][0], a[i][1], a[i][2], a[i][3], b[2], b[3]);
                }
            }
        }
    }

    // Turns scores of tile `i` into probabilities relative to the running maximum, and rescales what was gathered.
    __device__ __forceinline__ void softmax(float (&s)[KEYS / 8][4], int i) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float high = top[i][half];
#pragma unroll
            for (int j = 0; j < KEYS / 8; ++j) high = fmaxf(high, fmaxf(s[j][2 * half], s[j][2 * half + 1]));
            high = quad_max(high);
            const float rescale = exp2_fast(top[i][half] - high);
            top[i][half] = high;
            float total = sum[i][half] * rescale;
#pragma unroll
            for (int j = 0; j < KEYS / 8; ++j)
#pragma unroll
                for (int e = 2 * half; e < 2 * half + 2; ++e) {
                    s[j][e] = exp2_fast(s[j][e] - high);
                    total += s[j][e];
                }
            sum[i][half] = total;
#pragma unroll
            for (int j = 0; j < DIM / 8; ++j) {
                out[i][j][2 * half] *= rescale;
                out[i][j][2 * half + 1] *= rescale;
            }
        }
    }

    __device__ __forceinline__ void multiply_values(const float (&s)[TILES][KEYS / 8][4], u32 v) {
#pragma unroll
        for (int step = 0; step < KEYS / 16; ++step) {
            u32 a[TILES][4];
#pragma unroll
            for (int i = 0; i < TILES; ++i) {
                const float *left = s[i][2 * step], *right = s[i][2 * step + 1];
                a[i][0] = mma::operand<mma::ACTIVATION>(left[0], left[1]);
                a[i][1] = mma::operand<mma::ACTIVATION>(left[2], left[3]);
                a[i][2] = mma::operand<mma::ACTIVATION>(right[0], right[1]);
                a[i][3] = mma::operand<mma::ACTIVATION>(right[2], right[3]);
            }
#pragma unroll
            for (int j = 0; j < DIM / 16; ++j) {
                u32 b[4];
                async::load_b_transposed(b, v + j / 4 * KEYS * 128, 16 * step, j % 4 * 2);
#pragma unroll
                for (int i = 0; i < TILES; ++i) {
                    mma::multiply_16x8x16(out[i][2 * j], a[i][0], a[i][1], a[i][2], a[i][3], b[0], b[1]);
                    mma::multiply_16x8x16(out[i][2 * j + 1], a[i][0], a[i][1], a[i][2], a[i][3], b[2], b[3]);
                }
            }
        }
    }

    __device__ __forceinline__ void run(const MaskedAttentionParams& p) {
        extern __shared__ __align__(1024) u8 shared[];
        const u32 q = async::shared_address(shared), kv = q + Q_BYTES;
        const int head = blockIdx.y, first = blockIdx.x * QUERIES, lane = threadIdx.x % 32;
        const int row = first + threadIdx.x / 32 * 16 * TILES + lane / 4;
        const int end = p.causal ? min(p.tokens, first + QUERIES) : p.tokens;
#pragma unroll
        for (int i = 0; i < 2 * TILES; ++i) top[i / 2][i % 2] = -INFINITY;

#pragma unroll
        for (int i = 0; i < PANELS; ++i)
            load_panel<QUERIES, THREADS, mma::ACTIVATION>(q + i * QUERIES * 128, p.qkv + head * DIM, 3ll * p.heads * DIM, first,
                                         p.tokens, 64 * i, DIM);
        load_keys(p, kv, 0, head);
        for (int key = 0, at = 0; key < end; key += KEYS, at ^= 1) {
            async::wait<0>();
            __syncthreads();
            if (key + KEYS < end) load_keys(p, kv + (at ^ 1) * 2 * TILE_BYTES, key + KEYS, head);
            const u32 k = kv + at * 2 * TILE_BYTES;
            float s[TILES][KEYS / 8][4];
            multiply_scores(s, q, k);
            const bool plain = !p.bias && key + KEYS <= p.tokens && (!p.causal || key + KEYS <= first);
#pragma unroll
            for (int i = 0; i < TILES; ++i) {
#pragma unroll
                for (int j = 0; j < KEYS / 8; ++j)
                    to_scores(p, s[i][j], head, row + 16 * i, key + 8 * j + 2 * (lane % 4), plain);
                softmax(s[i], i);
            }
            multiply_values(s, k + TILE_BYTES);
        }

#pragma unroll
        for (int i = 0; i < 2 * TILES; ++i) {
            const int query = row + 8 * i;
            const float weight = reciprocal_of(quad_sum(sum[i / 2][i % 2]));
            if (query >= p.tokens) continue;
            u32* to = reinterpret_cast<u32*>(p.out + (static_cast<long long>(query) * p.heads + head) * DIM) + lane % 4;
#pragma unroll
            for (int j = 0; j < DIM / 8; ++j)
                to[4 * j] = pack_bf16(out[i / 2][j][i % 2 * 2] * weight, out[i / 2][j][i % 2 * 2 + 1] * weight);
        }
    }
};

using Flash64 = Flash<64, 64, 4, 1>;
using Flash128 = Flash<128, 32, 4, 2>;

}  // namespace attention_any

// dim = 64. Grid (ceil(tokens/64), heads), block 128, shared memory 40960 bytes.
extern "C" __global__ void __launch_bounds__(128) attention_d64(const __grid_constant__ MaskedAttentionParams p) {
    attention_any::Flash64 flash;
    flash.run(p);
}

// dim = 128. Grid (ceil(tokens/128), heads), block 128, shared memory 65536 bytes.
extern "C" __global__ void __launch_bounds__(128) attention_d128(const __grid_constant__ MaskedAttentionParams p) {
    attention_any::Flash128 flash;
    flash.run(p);
}
