// SVDQuant linear of profile W4A8 on Hopper:
//   y[m,n] = sum_b (sum_{k in b} xq[m,k] wq[n,k]) xs[b,m] ws[n] + sum_r lora[m,r] up[n,r] + bias[n]
// with 8-bit tensor cores and exact integer sums, then one of four epilogues (see the entry points).
//
// A cluster of two CTAs works on two tiles of 128 rows x BN columns side by side along M, which share the weights: each
// loads half of them and multicasts it to both. In a CTA one warp keeps a ring of shared memory filled by the copy
// engine; two warpgroups multiply, 64 rows each. A slot of the ring holds 128 bytes of K for 128 + BN rows: 128
// channels of xq and wq, then, after the integer sums became floats, 64 ranks of lora and up, and for the GELU epilogue
// 32 ranks of the next layer's down-projection. CTAs are persistent and walk the tiles M first.
//
// Launch with 384 threads, Shape<BN>::SMEM_BYTES of shared memory and twice as many CTAs as there are pairs of tiles,
// at most one an SM. k is a multiple of 64, n of 64 (QKV: of 384), ranks of 16, with 0 for none; pointers are aligned
// to 16 bytes. All tensor maps swizzle 128 bytes, fill with zeros, and have rows without gaps.
#include "common/epilogue_sm90.cuh"
#include "common/wgmma.cuh"

enum Epilogue { STORE, ADD, QKV, GELU };

struct GemmParams {
    TensorMap x;          // xq [m, k] 8-bit; box 128 rows x 128
    TensorMap w;          // wq [n, k] s8; box BN/2 rows x 128
    TensorMap lora;       // [m, rank] bf16; box 128 rows x 64
    TensorMap up;         // [n, rank] bf16; box BN/2 rows x 64
    TensorMap out;        // STORE, QKV, ADD: [m, n] bf16; box 64 rows x 64. GELU: codes [m, n] u8; box 64 rows x 128
    TensorMap down;       // GELU: the next layer's [next_rank, n] bf16; box 32 rows x 64
    const float* xs;      // [m], or [ceil(k/256), m] if blocked
    const float* ws;      // [n]
    const bf16* bias;     // [n]
    const bf16* columns;  // ADD: gate [n]. QKV: norm weights of q, then k, [2, 128]
    const float* reciprocal;  // GELU: 1 / smooth of the next layer [n]
    const u32* rope;          // QKV: [m, 64], cos (low half) and sin of a pair in fp16
    float* next_scales;       // GELU: [ceil(n/256), m]
    float* next_lora;         // GELU: [ceil(n/256), m, next_rank], to be summed over the first axis
    int m, n, k, rank, next_rank;
};

template <int BN>
struct Shape {
    static constexpr int BM = 128;
    static constexpr int X_BYTES = BM * 128, W_BYTES = BN * 128, SLOT_BYTES = X_BYTES + W_BYTES;
    static constexpr int STAGES = 196608 / SLOT_BYTES;
    static constexpr int SMEM_BYTES = STAGES * SLOT_BYTES + 2 * epilogue::STAGING_BYTES + 2 * 8 * STAGES;
    static_assert(SMEM_BYTES <= 232448, "shared memory of an SM");
};

// The tiles of a CTA in order: m0 and n0 of its part of each pair of tiles.
struct Schedule {
    int tiles, pairs_m;

    template <int BN>
    __device__ static Schedule make(const GemmParams& p) {
        int pairs = ceil_div(p.m, 256);
        return {pairs * ceil_div(p.n, BN), pairs};
    }
    __device__ int m0(int tile, u32 rank) const { return (tile % pairs_m) * 256 + rank * 128; }
    template <int BN>
    __device__ int n0(int tile) const {
        return tile / pairs_m * BN;
    }
};

template <int BN, Epilogue E>
__device__ __forceinline__ void produce(const GemmParams& p, u32 slots, u32 full, u32 empty) {
    using S = Shape<BN>;
    const u32 rank = sm90::cluster_rank();
    const Schedule schedule = Schedule::make<BN>(p);
    sm90::Ring<S::STAGES> ring;

    auto next_slot = [&](u32 bytes) {
        sm90::barrier_wait(empty + 8 * ring.stage, ring.parity ^ 1);
        sm90::barrier_expect(full + 8 * ring.stage, bytes);
        return slots + ring.stage * S::SLOT_BYTES;
    };
    // One slot of two operands with 128 bytes of K from element `k` on.
    auto load = [&](const TensorMap& a, const TensorMap& b, int k, int m0, int n0) {
        u32 slot = next_slot(S::SLOT_BYTES), bar = full + 8 * ring.stage;
        sm90::load_2d(slot, a, bar, k, m0);
        sm90::load_2d_multicast(slot + S::X_BYTES + rank * (S::W_BYTES / 2), b, bar, k, n0 + rank * (BN / 2), 0b11);
        ring.advance();
    };

    for (int tile = blockIdx.x / 2; tile < schedule.tiles; tile += gridDim.x / 2) {
        int m0 = schedule.m0(tile, rank), n0 = schedule.n0<BN>(tile);
        for (int k = 0; k < p.k; k += 128) load(p.x, p.w, k, m0, n0);
        for (int r = 0; r < p.rank; r += 64) load(p.lora, p.up, r, m0, n0);
        if constexpr (E == GELU) {
            // 32 ranks x 256 channels, as four boxes of 64 channels; each CTA loads two.
            for (int r = 0; r < p.next_rank; r += 32) {
                u32 slot = next_slot(4 * 4096), bar = full + 8 * ring.stage;
                for (u32 box = 2 * rank; box < 2 * rank + 2; ++box) {
                    sm90::load_2d_multicast(slot + S::X_BYTES + box * 4096, p.down, bar, n0 + 64 * box, r, 0b11);
                }
                ring.advance();
            }
        }
    }
}

// A warpgroup's view of the ring.
template <int BN>
struct Consumer {
    using S = Shape<BN>;
    u32 slots, full, empty;
    int warpgroup;
    sm90::Ring<S::STAGES> ring, held;  // `held`: the oldest slot not yet given back

    __device__ u32 wait_x() {
        sm90::barrier_wait(full + 8 * ring.stage, ring.parity);
        u32 slot = slots + ring.stage * S::SLOT_BYTES;
        ring.advance();
        return slot + warpgroup * 64 * 128;
    }
    __device__ u32 w_of(u32 x) const { return x - warpgroup * 64 * 128 + S::X_BYTES; }

    // Gives the oldest slot back to the producers of both CTAs, which write to it.
    __device__ void release() {
        if (threadIdx.x % 32 < 2) sm90::barrier_arrive_cluster(empty + 8 * held.stage, threadIdx.x % 32);
        held.advance();
    }
};

template <int BN, bool Blocked>
__device__ __forceinline__ void multiply_slot(int (&acc)[BN / 2], u32 x, u32 w, bool first) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        if constexpr (Blocked) {
            wgmma::mma_u8(acc, wgmma::k_major(x) + 2 * i, wgmma::k_major(w) + 2 * i, !first || i > 0);
        } else {
            wgmma::mma_s8(acc, wgmma::k_major(x) + 2 * i, wgmma::k_major(w) + 2 * i, !first || i > 0);
        }
    }
    wgmma::commit();
}

// v = the integer product of one tile, scaled by xs (not yet by ws).
template <int BN, bool Blocked>
__device__ __forceinline__ void integer_product(float (&v)[BN / 2], Consumer<BN>& c, const GemmParams& p, int row0) {
    int acc[BN / 2];
    const int first = min(row0, p.m - 1), second = min(row0 + 8, p.m - 1);  // rows past the end are never written
    if constexpr (Blocked) {
#pragma unroll
        for (int i = 0; i < BN / 2; ++i) v[i] = 0.0f;
        for (int k = 0; k < p.k; k += 256) {
            const float* xs = p.xs + static_cast<long long>(k / 256) * p.m;
            float xs0 = __ldg(xs + first), xs1 = __ldg(xs + second);
            const bool two = k + 128 < p.k;
            u32 x = c.wait_x();
            wgmma::fence();
            multiply_slot<BN, true>(acc, x, c.w_of(x), true);
            if (two) {
                x = c.wait_x();
                multiply_slot<BN, true>(acc, x, c.w_of(x), false);
            }
            wgmma::wait<0>();
            wgmma::pin(acc);
            c.release();
            if (two) c.release();
#pragma unroll
            for (int i = 0; i < BN / 2; ++i) v[i] = fmaf(static_cast<float>(acc[i]), i % 4 < 2 ? xs0 : xs1, v[i]);
        }
    } else {
        float xs0 = __ldg(p.xs + first), xs1 = __ldg(p.xs + second);
        u32 x = c.wait_x();
        wgmma::fence();
        multiply_slot<BN, false>(acc, x, c.w_of(x), true);
        for (int k = 128; k < p.k; k += 128) {
            x = c.wait_x();
            wgmma::fence();
            multiply_slot<BN, false>(acc, x, c.w_of(x), false);
            wgmma::wait<1>();
            c.release();
        }
        wgmma::wait<0>();
        wgmma::pin(acc);
        c.release();
#pragma unroll
        for (int i = 0; i < BN / 2; ++i) v[i] = static_cast<float>(acc[i]) * (i % 4 < 2 ? xs0 : xs1);
    }
}

// v += lora up^T over the 64 ranks of one slot, or its first 32; in pieces of 64 columns, so that only 32 accumulators
// live beside v.
template <int BN>
__device__ __forceinline__ void add_low_rank(float (&v)[BN / 2], u32 lora, u32 up, bool all) {
#pragma unroll
    for (int piece = 0; piece < BN / 64; ++piece) {
        float sum[32];
        wgmma::fence();
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if (i == 2 && !all) break;
            wgmma::mma_bf16(sum, wgmma::k_major(lora) + 2 * i, wgmma::k_major(up + piece * 64 * 128) + 2 * i, i > 0);
        }
        wgmma::commit();
        wgmma::wait<0>();
        wgmma::pin(sum);
#pragma unroll
        for (int i = 0; i < 32; ++i) v[32 * piece + i] += sum[i];
    }
}

// next_lora[tile, m, r] = sum over this tile's 256 channels of bf16(g[m,n]) down[r,n]
__device__ __forceinline__ void project_down(const float (&g)[128], Consumer<256>& c, const GemmParams& p, int n0,
                                             int row0) {
    const int column = 2 * (threadIdx.x % 4);
    for (int r = 0; r < p.next_rank; r += 32) {
        float sum[16];
        const u32 down = c.w_of(c.wait_x());
#pragma unroll
        for (int box = 0; box < 4; ++box) {
            u32 a[16];
#pragma unroll
            for (int i = 0; i < 16; ++i) a[i] = pack_bf16(g[32 * box + 2 * i], g[32 * box + 2 * i + 1]);
            wgmma::fence();
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                wgmma::mma_bf16_rs(sum, a[4 * i], a[4 * i + 1], a[4 * i + 2], a[4 * i + 3],
                                   wgmma::k_major(down + box * 4096) + 2 * i, box + i > 0);
            }
            wgmma::commit();
            wgmma::wait<0>();
            wgmma::pin(sum);
        }
        c.release();
        float* out = p.next_lora + (static_cast<long long>(n0 / 256) * p.m + row0) * p.next_rank + r + column;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            if (r + 8 * j >= p.next_rank) break;
            if (row0 < p.m) *reinterpret_cast<float2*>(out + 8 * j) = make_float2(sum[4 * j], sum[4 * j + 1]);
            if (row0 + 8 < p.m)
                *reinterpret_cast<float2*>(out + 8 * p.next_rank + 8 * j) = make_float2(sum[4 * j + 2], sum[4 * j + 3]);
        }
    }
}

template <int BN, bool Blocked, Epilogue E>
__device__ __forceinline__ void consume(const GemmParams& p, u32 slots, u32 full, u32 empty, u32 staging) {
    const u32 rank = sm90::cluster_rank();
    const Schedule schedule = Schedule::make<BN>(p);
    const int warpgroup = threadIdx.x / 128 - 1, lane = threadIdx.x % 32;
    Consumer<BN> c{slots, full, empty, warpgroup, {}, {}};
    staging += warpgroup * epilogue::STAGING_BYTES;

    for (int tile = blockIdx.x / 2; tile < schedule.tiles; tile += gridDim.x / 2) {
        const int m0 = schedule.m0(tile, rank) + 64 * warpgroup, n0 = schedule.n0<BN>(tile);
        const int row0 = m0 + 16 * (threadIdx.x % 128 / 32) + lane / 4;
        float v[BN / 2];
        integer_product<BN, Blocked>(v, c, p, row0);
        const epilogue::Columns<float> scales{p.ws, n0, p.n};
        const epilogue::Columns<bf16> biases{p.bias, n0, p.n};
#pragma unroll
        for (int j = 0; j < BN / 8; ++j) {
            if (j % 8 == 0) asm volatile("" ::: "memory");  // bounds how many of these loads are under way: registers
            float2 ws = scales[j], bias = biases[j];
            v[4 * j] = fmaf(v[4 * j], ws.x, bias.x);
            v[4 * j + 1] = fmaf(v[4 * j + 1], ws.y, bias.y);
            v[4 * j + 2] = fmaf(v[4 * j + 2], ws.x, bias.x);
            v[4 * j + 3] = fmaf(v[4 * j + 3], ws.y, bias.y);
        }
        for (int r = 0; r < p.rank; r += 64) {
            u32 lora = c.wait_x();
            add_low_rank<BN>(v, lora, c.w_of(lora), p.rank - r > 32);
            c.release();
        }
        if constexpr (E == STORE) {
            epilogue::write_bf16<false>(v, p.out, staging, epilogue::SLICE_BYTES, n0, m0, p.n, warpgroup);
        } else if constexpr (E == ADD) {
            const epilogue::Columns<bf16> gates{p.columns, n0, p.n};
#pragma unroll
            for (int j = 0; j < BN / 8; ++j) {
                float2 gate = gates[j];
                v[4 * j] *= gate.x;
                v[4 * j + 1] *= gate.y;
                v[4 * j + 2] *= gate.x;
                v[4 * j + 3] *= gate.y;
            }
            epilogue::write_bf16<true>(v, p.out, staging, epilogue::SLICE_BYTES, n0, m0, p.n, warpgroup);
        } else if constexpr (E == QKV) {
            epilogue::Rope rope;
            if (3 * n0 < 2 * p.n) rope.load(p.rope + 64ll * min(row0, p.m - 1), p.rope + 64ll * min(row0 + 8, p.m - 1));
#pragma unroll
            for (int head = 0; head < BN / 128; ++head) {
                int third = 3 * (n0 + 128 * head) / p.n;
                if (third < 2) epilogue::norm_rope(&v[64 * head], p.columns + 128 * third, rope);
            }
            epilogue::write_bf16<false>(v, p.out, staging, epilogue::SLICE_BYTES, n0, m0, p.n, warpgroup);
        } else {
#pragma unroll
            for (int i = 0; i < BN / 2; ++i) v[i] = epilogue::gelu_tanh(v[i]);
            project_down(v, c, p, n0, row0);
            float* scales = p.next_scales + static_cast<long long>(n0 / 256) * p.m;
            epilogue::quantise_u8(v, p.out, scales, p.reciprocal, staging, n0, m0, p.m, p.n, warpgroup);
        }
    }
    if (threadIdx.x % 128 == 0) sm90::store_wait_read<0>();
}

template <int BN, bool Blocked, Epilogue E>
__device__ __forceinline__ void gemm(const GemmParams& p) {
    using S = Shape<BN>;
    extern __shared__ __align__(1024) unsigned char shared_bytes[];
    const u32 slots = sm90::smem_addr(shared_bytes), staging = slots + S::STAGES * S::SLOT_BYTES;
    const u32 full = staging + 2 * epilogue::STAGING_BYTES, empty = full + 8 * S::STAGES;

    if (threadIdx.x == 0) {
        for (int s = 0; s < S::STAGES; ++s) {
            sm90::barrier_init(full + 8 * s, 1);
            sm90::barrier_init(empty + 8 * s, 2 * 8);  // every consumer warp of both CTAs
        }
        sm90::barrier_init_fence();
    }
    sm90::cluster_sync();

    if (threadIdx.x < 128) {
        sm90::give_registers<24>();
        if (threadIdx.x == 0) produce<BN, E>(p, slots, full, empty);
    } else {
        sm90::take_registers<240>();
        consume<BN, Blocked, E>(p, slots, full, empty, staging);
    }
    // Neither CTA may leave while the other can still write to its shared memory.
    sm90::cluster_sync();
}

#define SVDQ_GEMM(NAME, BN, BLOCKED, EPILOGUE)                               \
    extern "C" __global__ void __cluster_dims__(2) __launch_bounds__(384, 1) \
        NAME(const __grid_constant__ GemmParams p) {                         \
        gemm<BN, BLOCKED, EPILOGUE>(p);                                      \
    }

// y
SVDQ_GEMM(gemm_w4a8_store_sm90, 256, false, STORE)
// out += gate * y
SVDQ_GEMM(gemm_w4a8_add_sm90, 192, false, ADD)
// The same for inputs quantised unsigned in blocks of 256 channels (fc2).
SVDQ_GEMM(gemm_w4a8_add_u8_sm90, 192, true, ADD)
// q and k normalised and rotated, v as it is
SVDQ_GEMM(gemm_w4a8_qkv_sm90, 256, false, QKV)
// GELU, then quantised and projected down for the next linear
SVDQ_GEMM(gemm_w4a8_gelu_sm90, 256, false, GELU)
