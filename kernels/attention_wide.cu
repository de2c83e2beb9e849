// Softmax attention over all tokens for heads of any multiple of 16 up to 512 channels (the VAE's one head), with the
// formula and masks of attention.cu. Too many channels for a warp to hold a row of results, so warps divide the
// channels.
#include "common/attention.cuh"

namespace attention_any {

// For the scores, TILES x PARTS warps own 16 queries by PART_KEYS keys each; for the values, each owns up to 64
// channels of all queries, and probabilities go from one to the other through shared memory. Keys and values pass in
// pieces of 16 KB: 64 keys x 128 channels, then 16 keys x 512 channels.
template <int QUERIES_>
struct Wide {
    // sm_75 has 64 KB of shared memory, and copies wait for no one there.
    static constexpr int THREADS = 256, QUERIES = QUERIES_, KEYS = 64, STAGES = ARCH >= 800 ? 3 : 1;
    static constexpr int TILES = QUERIES / 16, PARTS = 8 / TILES, PART_KEYS = KEYS / PARTS;
    static constexpr int Q_BYTES = QUERIES * 512 * 2, PIECE_BYTES = 16384, P_BYTES = QUERIES * KEYS * 2;
    static constexpr int SMEM_BYTES = Q_BYTES + STAGES * PIECE_BYTES + P_BYTES + (PARTS + 1) * QUERIES * 4;

    const MaskedAttentionParams& p;
    int head, first, key_pieces, pieces;
    u32 q, ring, probabilities;
    float (*maxima)[QUERIES];  // [PARTS]
    float* rescales;
    float out[4][TILES][2][4] = {};  // [16 channels of this warp][16 queries][8 channels]
    float top[2], sum[2] = {};

    __device__ __forceinline__ explicit Wide(const MaskedAttentionParams& p) : p(p) {
        extern __shared__ __align__(1024) u8 shared[];
        head = blockIdx.y;
        first = blockIdx.x * QUERIES;
        key_pieces = ceil_div(p.dim, 128);
        const int end = p.causal ? min(p.tokens, first + QUERIES) : p.tokens;
        pieces = ceil_div(end, KEYS) * (key_pieces + 4);
        q = async::shared_address(shared);
        ring = q + Q_BYTES;
        probabilities = ring + STAGES * PIECE_BYTES;
        maxima = reinterpret_cast<float (*)[QUERIES]>(shared + Q_BYTES + STAGES * PIECE_BYTES + P_BYTES);
        rescales = maxima[PARTS];
        top[0] = top[1] = -INFINITY;
    }

    __device__ __forceinline__ void load(int piece) {
        if (piece < pieces) {
            const int key = piece / (key_pieces + 4) * KEYS, part = piece % (key_pieces + 4), width = p.heads * p.dim;
            const u32 to = ring + piece % STAGES * PIECE_BYTES;
            if (part < key_pieces) {
#pragma unroll
                for (int i = 0; i < 2; ++i)
                    load_panel<KEYS, THREADS, mma::WEIGHT>(to + i * KEYS * 128, p.qkv + width + head * p.dim, 3ll * width, key,
                                              p.tokens, part * 128 + 64 * i, p.dim);
            } else {
                // Eight panels of 16 rows: threads are 32 rows by 8 chunks, so two panels at a time.
                const int row = threadIdx.x / 8 % 16, chunk = threadIdx.x % 8,
                          from_row = key + (part - key_pieces) * 16 + row;
                const bf16* values = p.qkv + 2 * width + head * p.dim;
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const int panel = 2 * i + threadIdx.x / 128, column = 64 * panel + 8 * chunk;
                    const bool valid = from_row < p.tokens && column < p.dim;
                    async::copy_8<mma::WEIGHT>(to + panel * 16 * 128 + async::panel_offset(row, chunk),
                                   valid ? values + from_row * 3ll * width + column : values, valid);
                }
            }
        }
        async::commit();
    }

    // Waits for a piece, starts to load a later one, and gives the address.
    __device__ __forceinline__ u32 next(int piece) {
        async::wait<STAGES - 2>();
        __syncthreads();
        load(piece + STAGES - 1);
        if (STAGES == 1) __syncthreads();
        return ring + piece % STAGES * PIECE_BYTES;
    }

    __device__ __forceinline__ void multiply_scores(float (&s)[PART_KEYS / 8][4], int piece, int warp) {
        for (int part = 0; part < key_pieces; ++part) {
            const u32 k = next(piece + part);
#pragma unroll
            for (int step = 0; step < 8; ++step) {
                u32 a[4];
                async::load_a(a, q + (2 * part + step / 4) * QUERIES * 128, warp / PARTS * 16, step % 4);
#pragma unroll
                for (int j = 0; j < PART_KEYS / 16; ++j) {
                    u32 b[4];
                    async::load_b(b, k + step / 4 * KEYS * 128, warp % PARTS * PART_KEYS + 16 * j, step % 4);
                    mma::multiply_16x8x16(s[2 * j], a[0], a[1], a[2], a[3], b[0], b[1]);
                    mma::multiply_16x8x16(s[2 * j + 1], a[0], a[1], a[2], a[3], b[2], b[3]);
                }
            }
        }
    }

    // Writes probabilities relative to the running maximum, and how much that has changed.
    __device__ __forceinline__ void softmax(float (&s)[PART_KEYS / 8][4], int key, int warp, int lane) {
        const int row = warp / PARTS * 16 + lane / 4, column = warp % PARTS * PART_KEYS + 2 * (lane % 4);
#pragma unroll
        for (int j = 0; j < PART_KEYS / 8; ++j) to_scores(p, s[j], head, first + row, key + column + 8 * j, false);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float high = -INFINITY;
#pragma unroll
            for (int j = 0; j < PART_KEYS / 8; ++j) high = fmaxf(high, fmaxf(s[j][2 * half], s[j][2 * half + 1]));
            high = quad_max(high);
            if (lane % 4 == 0) maxima[warp % PARTS][row + 8 * half] = high;
        }
        __syncthreads();
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float high = top[half];
#pragma unroll
            for (int i = 0; i < PARTS; ++i) high = fmaxf(high, maxima[i][row + 8 * half]);
            const float rescale = exp2_fast(top[half] - high);
            top[half] = high;
            if (warp % PARTS == 0 && lane % 4 == 0) rescales[row + 8 * half] = rescale;
            sum[half] *= rescale;
#pragma unroll
            for (int j = 0; j < PART_KEYS / 8; ++j) {
                const float a = exp2_fast(s[j][2 * half] - high), b = exp2_fast(s[j][2 * half + 1] - high);
                sum[half] += a + b;
                const u32 to =
                    probabilities + async::panel_offset(row + 8 * half, (column + 8 * j) / 8) + 4 * (lane % 4);
                asm volatile("st.shared.u32 [%0], %1;" ::"r"(to), "r"(mma::operand<mma::ACTIVATION>(a, b)) : "memory");
            }
        }
    }

    __device__ __forceinline__ void multiply_values(int piece, int warp, int lane) {
        const int units = p.dim / 16;
        for (int part = 0; part < 4; ++part) {
            const u32 v = next(piece + part);
            if (part == 0) {
#pragma unroll
                for (int i = 0; i < 2 * TILES; ++i) {
                    const float rescale = rescales[8 * i + lane / 4];
#pragma unroll
                    for (int unit = 0; unit < 4; ++unit)
#pragma unroll
                        for (int j = 0; j < 2; ++j) {
                            out[unit][i / 2][j][i % 2 * 2] *= rescale;
                            out[unit][i / 2][j][i % 2 * 2 + 1] *= rescale;
                        }
                }
            }
            u32 a[TILES][4];
#pragma unroll
            for (int i = 0; i < TILES; ++i) async::load_a(a[i], probabilities, 16 * i, part);
#pragma unroll
            for (int unit = 0; unit < 4; ++unit) {
                const int column = warp + 8 * unit;
                if (column >= units) break;
                u32 b[4];
                async::load_b_transposed(b, v + column / 4 * 16 * 128, 0, column % 4 * 2);
#pragma unroll
                for (int i = 0; i < TILES; ++i)
#pragma unroll
                    for (int j = 0; j < 2; ++j)
                        mma::multiply_16x8x16(out[unit][i][j], a[i][0], a[i][1], a[i][2], a[i][3], b[2 * j], b[2 * j + 1]);
            }
        }
    }

    __device__ __forceinline__ void run() {
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        for (int i = 0; i < 2 * key_pieces; ++i)
            load_panel<QUERIES, THREADS, mma::ACTIVATION>(q + i * QUERIES * 128, p.qkv + head * p.dim, 3ll * p.heads * p.dim, first,
                                         p.tokens, 64 * i, p.dim);
        for (int piece = 0; piece < STAGES - 1; ++piece) load(piece);
        for (int piece = 0, key = 0; piece < pieces; piece += key_pieces + 4, key += KEYS) {
            float s[PART_KEYS / 8][4] = {};
            multiply_scores(s, piece, warp);
            softmax(s, key, warp, lane);
            multiply_values(piece + key_pieces, warp, lane);
        }

        __syncthreads();
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float total = quad_sum(sum[half]);
            if (lane % 4 == 0) maxima[warp % PARTS][warp / PARTS * 16 + lane / 4 + 8 * half] = total;
        }
        __syncthreads();
#pragma unroll
        for (int i = 0; i < 2 * TILES; ++i) {
            const int row = 8 * i + lane / 4;
            if (first + row >= p.tokens) continue;
            float total = 0.0f;
#pragma unroll
            for (int part = 0; part < PARTS; ++part) total += maxima[part][row];
            const float weight = reciprocal_of(total);
            bf16* to = p.out + (static_cast<long long>(first + row) * p.heads + head) * p.dim + 2 * (lane % 4);
#pragma unroll
            for (int unit = 0; unit < 4; ++unit)
#pragma unroll
                for (int j = 0; j < 2; ++j) {
                    const int column = 16 * (warp + 8 * unit) + 8 * j;
                    const float* v = out[unit][i / 2][j] + i % 2 * 2;
                    if (column < p.dim) *reinterpret_cast<u32*>(to + column) = pack_bf16(v[0] * weight, v[1] * weight);
                }
        }
    }
};

}  // namespace attention_any

// Grid (ceil(tokens/32), heads), block 256, shared memory 86656 bytes, on sm_75 53888.
extern "C" __global__ void __launch_bounds__(256, 2) attention_wide(const __grid_constant__ MaskedAttentionParams p) {
    attention_any::Wide<32> wide(p);
    wide.run();
}

// The same with more shared memory, which sm_80 and sm_90 have: grid (ceil(tokens/64), heads), block 256, shared memory
// 123648 bytes.
extern "C" __global__ void __launch_bounds__(256, 1)
    attention_wide_q64(const __grid_constant__ MaskedAttentionParams p) {
    attention_any::Wide<64> wide(p);
    wide.run();
}
