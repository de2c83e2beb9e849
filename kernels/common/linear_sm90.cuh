// A linear on Hopper's tensor cores, whatever the numbers of its products are:
//   y[m,n] = product[m,n] + sum_r lora[m,r] up[n,r] + bias[n], then one of four epilogues
// with a low-rank branch of several parts: see low_rank_sm90.cuh.
//
// A cluster of two CTAs works on two tiles of 128 rows x BN columns side by side along M, which share the weights: each
// loads half of them and multicasts it to both. In a CTA one warp keeps a ring of shared memory filled by the copy
// engine; two warpgroups multiply, 64 rows each. A slot of the ring holds 128 bytes of K for 128 + BN rows: 128
// channels of xq and wq, then, after the products, up to 64 ranks of lora and up, and for the GELU epilogue up to 96 of
// the next layer's down-projection. CTAs are persistent and walk the tiles M first; with GELU, those in the same rows
// before others, whose sums stay in the L2 cache meanwhile.
//
// A `Format` says what the numbers are:
//   BN, PIECE     columns of a tile, and those to which the low-rank branch is added at once
//   DOWN_PIECE    ranks that GELU projects down to at once
//   SCALE_BYTES   of the scales that go with 128 channels, which have a place in a slot; 0 if there are none
//   load_scales   begins to load these
//   product       the tile's products, scaled, plus the bias
//   quantise      codes results for the next linear
//
// Launch with 384 threads, Shape<Format>::SMEM_BYTES of shared memory and twice as many CTAs as there are pairs of
// tiles, at most one an SM. k is a multiple of 64, n of 64 (QKV: of 384), ranks of 16, with 0 for none; pointers are
// aligned to 16 bytes. All tensor maps fill with zeros, have rows without gaps, and but for scales swizzle 128 bytes.
#pragma once

#include "epilogue_sm90.cuh"
#include "low_rank_sm90.cuh"
#include "wgmma.cuh"

enum Epilogue { STORE, ADD, QKV, GELU };

struct GemmParams {
    TensorMap x;          // xq [m, k], bytes; box 128 rows x 128
    TensorMap w;          // wq [n, k], bytes; box BN/2 rows x 128
    TensorMap lora;       // [m, rank] bf16; box 128 rows x 64
    TensorMap out;        // STORE, QKV, ADD: [m, n] bf16; box 64 rows x 64. GELU: codes [m, n], bytes; box 64 rows x 128
    TensorMap scales;     // the format's, if it has any in a slot
    const float* xs;      // the format's
    const float* ws;      // the format's
    const bf16* bias;     // [n]
    const bf16* columns;  // ADD: gate [n]. QKV: norm weights of q, then k, [2, 128]
    const float* reciprocal;  // GELU: 1 / smooth of the next layer [n]
    const u32* rope;          // QKV: [m, 64], cos (low half) and sin of a pair in fp16
    float* next_scales;       // GELU: the format's
    float* next_lora;         // GELU: for every slot and row next_rank sums, as low_rank::Sums has them
    int m, n, k, rank, next_rank;    // ranks: of all parts
    // GELU: the t-th of the tiles side by side along N leaves its sums in slot t modulo this. The tiles of a slot in the
    // same rows have to be one CTA's: clusters / gcd(clusters, ceil(m/256)), or the number of tiles if that is less.
    int next_slots;
    UpMap parts[MAX_PARTS];
    DownMap next_parts[MAX_PARTS];  // GELU: the next layer's
};

namespace linear_sm90 {

template <class Format>
struct Shape {
    static constexpr int BM = 128, BN = Format::BN;
    static constexpr int X_BYTES = BM * 128, W_BYTES = BN * 128;
    static constexpr int SLOT_BYTES = X_BYTES + W_BYTES + Format::SCALE_BYTES;
    static constexpr int STAGES = 196608 / SLOT_BYTES;
    static constexpr int SMEM_BYTES = STAGES * SLOT_BYTES + 2 * epilogue::STAGING_BYTES + 2 * 8 * STAGES;
    static_assert(SMEM_BYTES <= 232448, "shared memory of an SM");
};

// The tiles of a CTA: m0 and n0 of its part of each pair of tiles.
struct Schedule {
    int tiles, pairs_m;
    int turns;  // through the tiles: with GELU, for each of the rows that the CTA has tiles in

    template <int BN>
    __device__ static Schedule make(const GemmParams& p) {
        int pairs = ceil_div(p.m, 256);
        return {pairs * ceil_div(p.n, BN), pairs, max(1, pairs * p.next_slots / static_cast<int>(gridDim.x / 2))};
    }
    // Calls `work(tile)` for each, in order.
    template <class Work>
    __device__ __forceinline__ void each(Work work) const {
        const int clusters = gridDim.x / 2;
#pragma unroll 1
        for (int turn = 0; turn < turns; ++turn) {
#pragma unroll 1
            for (int tile = blockIdx.x / 2 + turn * clusters; tile < tiles; tile += turns * clusters) work(tile);
        }
    }
    __device__ int m0(int tile, u32 rank) const { return (tile % pairs_m) * 256 + rank * 128; }
    template <int BN>
    __device__ int n0(int tile) const {
        return tile / pairs_m * BN;
    }
};

// The view of the ring that the thread has which fills it.
template <class Format>
struct Producer {
    using S = Shape<Format>;
    u32 slots, full, empty;
    sm90::Ring<S::STAGES> ring;

    // Waits for the next slot.
    __device__ u32 open() {
        sm90::barrier_wait(empty + 8 * ring.stage, ring.parity ^ 1);
        if constexpr (Format::SCALE_BYTES > 0) sm90::fence_async();  // after the loads of scales that were there
        return slots + ring.stage * S::SLOT_BYTES;
    }
    // What copies into it complete on.
    __device__ u32 barrier() const { return full + 8 * ring.stage; }
    // So many bytes of it are on their way.
    __device__ void close(u32 bytes) {
        sm90::barrier_expect(barrier(), bytes);
        ring.advance();
    }
};

template <class Format, Epilogue E>
__device__ __forceinline__ void produce(const GemmParams& p, u32 slots, u32 full, u32 empty) {
    using S = Shape<Format>;
    const u32 rank = sm90::cluster_rank();
    const Schedule schedule = Schedule::make<S::BN>(p);
    Producer<Format> producer{slots, full, empty, {}};

    schedule.each([&](int tile) {
        const int m0 = schedule.m0(tile, rank), n0 = schedule.n0<S::BN>(tile);
        for (int k = 0; k < p.k; k += 128) {
            const u32 slot = producer.open(), w = slot + S::X_BYTES, bar = producer.barrier();
            sm90::load_2d(slot, p.x, bar, k, m0);
            sm90::load_2d_multicast(w + rank * (S::W_BYTES / 2), p.w, bar, k, n0 + rank * (S::BN / 2), 0b11);
            Format::load_scales(w + S::W_BYTES, bar, p, k, n0);
            producer.close(S::SLOT_BYTES);
        }
        low_rank::load_up<S::BN>(p, producer, m0, n0, rank);
        if constexpr (E == GELU) {
            static_assert(4 * low_rank::DOWN_BYTES <= S::X_BYTES + S::W_BYTES);
            low_rank::load_down(p, producer, n0, rank);
        }
    });
}

// A warpgroup's view of the ring.
template <class Format>
struct Consumer {
    using S = Shape<Format>;
    u32 slots, full, empty;
    int warpgroup;
    sm90::Ring<S::STAGES> ring, held;  // `held`: the oldest slot not yet given back

    __device__ u32 wait_x() {
        sm90::barrier_wait(full + 8 * ring.stage, ring.parity);
        u32 slot = slots + ring.stage * S::SLOT_BYTES;
        ring.advance();
        return slot + warpgroup * 64 * 128;
    }
    __device__ u32 slot_of(u32 x) const { return x - warpgroup * 64 * 128; }
    __device__ u32 w_of(u32 x) const { return slot_of(x) + S::X_BYTES; }
    __device__ u32 scales_of(u32 x) const { return w_of(x) + S::W_BYTES; }

    // Gives the oldest slot back to the producers of both CTAs, which write to it.
    __device__ void release() {
        if constexpr (Format::SCALE_BYTES > 0) __syncwarp();  // all lanes have read their scales
        if (threadIdx.x % 32 < 2) sm90::barrier_arrive_cluster(empty + 8 * held.stage, threadIdx.x % 32);
        held.advance();
    }
};

template <class Format, Epilogue E>
__device__ __forceinline__ void consume(const GemmParams& p, u32 slots, u32 full, u32 empty, u32 staging) {
    constexpr int BN = Format::BN;
    const u32 rank = sm90::cluster_rank();
    const Schedule schedule = Schedule::make<BN>(p);
    const int warpgroup = threadIdx.x / 128 - 1, lane = threadIdx.x % 32;
    Consumer<Format> c{slots, full, empty, warpgroup, {}, {}};
    staging += warpgroup * epilogue::STAGING_BYTES;

    schedule.each([&](int tile) {
        const int m0 = schedule.m0(tile, rank) + 64 * warpgroup, n0 = schedule.n0<BN>(tile);
        const int row0 = m0 + 16 * (threadIdx.x % 128 / 32) + lane / 4;
        float v[BN / 2];
        Format::product(v, c, p, row0, n0);
        low_rank::add_up<BN, Format::PIECE>(v, c, p, n0);
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
            if (3 * n0 < 2 * p.n) {
                epilogue::Rope rope;
                rope.load(p.rope + 64ll * min(row0, p.m - 1), p.rope + 64ll * min(row0 + 8, p.m - 1));
#pragma unroll
                for (int head = 0; head < BN / 128; ++head) {
                    int third = 3 * (n0 + 128 * head) / p.n;
                    if (third < 2) epilogue::norm_rope(&v[64 * head], p.columns + 128 * third, rope);
                }
            }
            epilogue::write_bf16<false>(v, p.out, staging, epilogue::SLICE_BYTES, n0, m0, p.n, warpgroup);
        } else {
#pragma unroll
            for (int i = 0; i < BN / 2; ++i) v[i] = epilogue::gelu_tanh(v[i]);
            low_rank::project_down<Format::DOWN_PIECE>(v, c, p, n0, row0);
            Format::quantise(v, p, staging, n0, m0, warpgroup);
        }
    });
    if (threadIdx.x % 128 == 0) sm90::store_wait_read<0>();
}

template <class Format, Epilogue E>
__device__ __forceinline__ void gemm(const GemmParams& p) {
    using S = Shape<Format>;
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
        if (threadIdx.x == 0) produce<Format, E>(p, slots, full, empty);
    } else {
        sm90::take_registers<240>();
        consume<Format, E>(p, slots, full, empty, staging);
    }
    // Neither CTA may leave while the other can still write to its shared memory.
    sm90::cluster_sync();
}

}  // namespace linear_sm90

#define SVDQ_LINEAR_SM90(NAME, FORMAT, EPILOGUE)                             \
    extern "C" __global__ void __cluster_dims__(2) __launch_bounds__(384, 1) \
        NAME(const __grid_constant__ GemmParams p) {                         \
        linear_sm90::gemm<FORMAT, EPILOGUE>(p);                              \
    }
