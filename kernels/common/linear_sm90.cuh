// A linear on Hopper's tensor cores, whatever the numbers of its products are:
//   y[m,n] = product[m,n] + sum_r lora[m,r] up[n,r] + bias[n], then one of four epilogues
//
// A cluster of two CTAs works on two tiles of 128 rows x BN columns side by side along M, which share the weights: each
// loads half of them and multicasts it to both. In a CTA one warp keeps a ring of shared memory filled by the copy
// engine; two warpgroups multiply, 64 rows each. A slot of the ring holds 128 bytes of K for 128 + BN rows: 128
// channels of xq and wq, then, after the products, 64 ranks of lora and up, and for the GELU epilogue 32 ranks of the
// next layer's down-projection. CTAs are persistent and walk the tiles M first.
//
// A `Format` says what the numbers are:
//   BN            columns of a tile
//   SCALE_BYTES   what load_scales needs of a slot
//   load_scales   begins to load the scales that go with 128 channels, and gives their bytes
//   product       the tile's products, scaled, plus the bias
//   quantise      codes results for the next linear
//
// Launch with 384 threads, Shape<Format>::SMEM_BYTES of shared memory and twice as many CTAs as there are pairs of
// tiles, at most one an SM. k is a multiple of 64, n of 64 (QKV: of 384), ranks of 16, with 0 for none; pointers are
// aligned to 16 bytes. All tensor maps swizzle 128 bytes, fill with zeros, and have rows without gaps.
#pragma once

#include "epilogue_sm90.cuh"
#include "wgmma.cuh"

enum Epilogue { STORE, ADD, QKV, GELU };

struct GemmParams {
    TensorMap x;          // xq [m, k], bytes; box 128 rows x 128
    TensorMap w;          // wq [n, k], bytes; box BN/2 rows x 128
    TensorMap lora;       // [m, rank] bf16; box 128 rows x 64
    TensorMap up;         // [n, rank] bf16; box BN/2 rows x 64
    TensorMap out;        // STORE, QKV, ADD: [m, n] bf16; box 64 rows x 64. GELU: codes [m, n], bytes; box 64 rows x 128
    TensorMap down;       // GELU: the next layer's [next_rank, n] bf16; box 32 rows x 64
    const float* xs;      // the format's
    const float* ws;      // the format's
    const bf16* bias;     // [n]
    const bf16* columns;  // ADD: gate [n]. QKV: norm weights of q, then k, [2, 128]
    const float* reciprocal;  // GELU: 1 / smooth of the next layer [n]
    const u32* rope;          // QKV: [m, 64], cos (low half) and sin of a pair in fp16
    float* next_scales;       // GELU: the format's
    float* next_lora;         // GELU: [ceil(n/256), m, next_rank], to be summed over the first axis
    int m, n, k, rank, next_rank;
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

template <class Format, Epilogue E>
__device__ __forceinline__ void produce(const GemmParams& p, u32 slots, u32 full, u32 empty) {
    using S = Shape<Format>;
    const u32 rank = sm90::cluster_rank();
    const Schedule schedule = Schedule::make<S::BN>(p);
    sm90::Ring<S::STAGES> ring;

    auto next_slot = [&](u32 bytes) {
        sm90::barrier_wait(empty + 8 * ring.stage, ring.parity ^ 1);
        sm90::barrier_expect(full + 8 * ring.stage, bytes);
        return slots + ring.stage * S::SLOT_BYTES;
    };
    // 128 bytes of K from element `k` on of two operands, into a slot where `more` bytes will come too.
    auto load = [&](const TensorMap& a, const TensorMap& b, int k, int m0, int n0, u32 more) {
        u32 slot = next_slot(S::X_BYTES + S::W_BYTES + more), bar = full + 8 * ring.stage;
        sm90::load_2d(slot, a, bar, k, m0);
        sm90::load_2d_multicast(slot + S::X_BYTES + rank * (S::W_BYTES / 2), b, bar, k, n0 + rank * (S::BN / 2), 0b11);
        return slot + S::X_BYTES + S::W_BYTES;
    };

    for (int tile = blockIdx.x / 2; tile < schedule.tiles; tile += gridDim.x / 2) {
        int m0 = schedule.m0(tile, rank), n0 = schedule.n0<S::BN>(tile);
        for (int k = 0; k < p.k; k += 128) {
            u32 scales = load(p.x, p.w, k, m0, n0, Format::scale_bytes(p, k));
            Format::load_scales(scales, full + 8 * ring.stage, p, k, n0);
            ring.advance();
        }
        for (int r = 0; r < p.rank; r += 64) {
            load(p.lora, p.up, r, m0, n0, 0);
            ring.advance();
        }
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
    __device__ u32 w_of(u32 x) const { return x - warpgroup * 64 * 128 + S::X_BYTES; }
    __device__ u32 scales_of(u32 x) const { return w_of(x) + S::W_BYTES; }

    // Gives the oldest slot back to the producers of both CTAs, which write to it.
    __device__ void release() {
        if (threadIdx.x % 32 < 2) sm90::barrier_arrive_cluster(empty + 8 * held.stage, threadIdx.x % 32);
        held.advance();
    }
};

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
template <class Format>
__device__ __forceinline__ void project_down(const float (&g)[128], Consumer<Format>& c, const GemmParams& p, int n0,
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

template <class Format, Epilogue E>
__device__ __forceinline__ void consume(const GemmParams& p, u32 slots, u32 full, u32 empty, u32 staging) {
    constexpr int BN = Format::BN;
    const u32 rank = sm90::cluster_rank();
    const Schedule schedule = Schedule::make<BN>(p);
    const int warpgroup = threadIdx.x / 128 - 1, lane = threadIdx.x % 32;
    Consumer<Format> c{slots, full, empty, warpgroup, {}, {}};
    staging += warpgroup * epilogue::STAGING_BYTES;

    for (int tile = blockIdx.x / 2; tile < schedule.tiles; tile += gridDim.x / 2) {
        const int m0 = schedule.m0(tile, rank) + 64 * warpgroup, n0 = schedule.n0<BN>(tile);
        const int row0 = m0 + 16 * (threadIdx.x % 128 / 32) + lane / 4;
        float v[BN / 2];
        Format::product(v, c, p, row0, n0);
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
            project_down(v, c, p, n0, row0);
            Format::quantise(v, p, staging, n0, m0, warpgroup);
        }
    }
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
