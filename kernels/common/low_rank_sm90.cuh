// Low-rank branches in a linear on Hopper: 64 ranks are a slot of its ring, in blocks of 16, which may be of different
// parts. Of
//   lora  [m, rank]         a slot holds a box of 128 rows x 64,
//   up    [columns, ranks]  of a part: boxes of BN/2 rows x 16, swizzled over 32 bytes,
//   down  [ranks, n]        of a part of the next layer: boxes of 16 rows x 64, four of them side by side.
// The maps of up and down are in global memory. They give zeros where there is nothing, so that a part may begin and
// end anywhere; tiles that it does not meet leave it out.
#pragma once

#include "low_rank.cuh"
#include "sm90.cuh"
#include "wgmma.cuh"

namespace low_rank {

constexpr int SLOT_RANKS = 64;

__device__ __forceinline__ bool meets(const UpPart& part, int n0, int columns) {
    return part.first < n0 + columns && n0 < part.last;
}

// Before the first slot.
template <class Part>
__device__ __forceinline__ void acquire_maps(const Part* parts, int rank, const void* Part::*map) {
#pragma unroll 1
    for (int i = 0; rank > 0 && i < MAX_PARTS; ++i) {
        sm90::acquire_map(parts[i].*map);
        if (parts[i].end == rank) break;
    }
}

// Loads the slots of a tile. CTA `cta` of two loads its half of `up`, for both.
template <int BN, class Params, class Producer>
__device__ __forceinline__ void load_up(const Params& p, Producer& producer, int m0, int n0, u32 cta) {
    constexpr int LORA_BYTES = 128 * 128, BLOCK_BYTES = BN * 32;
    Cursor cursor;
    for (int first = 0; first < p.rank; first += SLOT_RANKS) {
        u32 slot, bytes = 0;
        for (int r = first; r < min(first + SLOT_RANKS, p.rank); r += 16) {
            const UpPart& part = cursor.at(p.parts, r);
            if (!meets(part, n0, BN)) continue;
            if (!bytes) {
                slot = producer.open();
                sm90::load_2d(slot, p.lora, producer.barrier(), first, m0);
                bytes = LORA_BYTES;
            }
            const u32 to = slot + LORA_BYTES + (r - first) / 16 * BLOCK_BYTES + cta * (BLOCK_BYTES / 2);
            sm90::load_2d_multicast(to, *static_cast<const TensorMap*>(part.up), producer.barrier(), r - cursor.begin,
                                    n0 + static_cast<int>(cta) * (BN / 2) - part.first, 0b11);
            bytes += BLOCK_BYTES;
        }
        if (bytes) producer.close(bytes);
    }
}

// sum += lora up^T over the blocks of a slot, for R / 32 times 64 columns of `up` of BN.
template <int BN, int R>
__device__ __forceinline__ void multiply_up(float (&sum)[R], u32 lora, u32 up, u32 blocks) {
    wgmma::fence();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        if (blocks >> i & 1) {
            wgmma::mma_bf16(sum, wgmma::k_major(lora) + 2 * i, wgmma::k_major_32(up + i * BN * 32), 1);
        }
    }
    wgmma::commit();
    wgmma::wait<0>();
    wgmma::pin(sum);
}

// v += lora up^T, PIECE columns at once: in fewer than all where registers beside v are short.
template <int BN, int PIECE, class Params, class Consumer>
__device__ __forceinline__ void add_up(float (&v)[BN / 2], Consumer& c, const Params& p, int n0) {
    Cursor cursor;
    for (int r = 0; r < p.rank; r += SLOT_RANKS) {
        u32 blocks = 0;  // bit i: the i-th meets the tile
        for (int i = 0; i < 4 && r + 16 * i < p.rank; ++i)
            blocks |= static_cast<u32>(meets(cursor.at(p.parts, r + 16 * i), n0, BN)) << i;
        if (!blocks) continue;
        const u32 lora = c.wait_x(), up = c.w_of(lora);
        if constexpr (PIECE == BN) {
            multiply_up<BN>(v, lora, up, blocks);
        } else {
#pragma unroll
            for (int n = 0; n < BN; n += PIECE) {
                float sum[PIECE / 2] = {};
                multiply_up<BN>(sum, lora, up + n * 32, blocks);
#pragma unroll
                for (int i = 0; i < PIECE / 2; ++i) v[n / 2 + i] += sum[i];
            }
        }
        c.release();
    }
}

// Ranks of a slot of `down`, and bytes of 64 channels of them.
constexpr int DOWN_RANKS = 32, DOWN_BYTES = DOWN_RANKS * 128;

// Loads the slots of `down` for 256 channels, `offset` bytes from their start; each CTA loads half of them, for both.
template <class Params, class Producer>
__device__ __forceinline__ void load_down(const Params& p, Producer& producer, u32 offset, int n0, u32 cta) {
    Cursor cursor;
    for (int first = 0; first < p.next_rank; first += DOWN_RANKS) {
        const u32 slot = producer.open() + offset;
        const int end = min(first + DOWN_RANKS, p.next_rank);
        for (int r = first; r < end; r += 16) {
            const TensorMap& down = *static_cast<const TensorMap*>(cursor.at(p.next_parts, r).down);
            for (u32 box = 2 * cta; box < 2 * cta + 2; ++box) {
                sm90::load_2d_multicast(slot + box * DOWN_BYTES + (r - first) * 128, down, producer.barrier(),
                                        n0 + 64 * box, r - cursor.begin, 0b11);
            }
        }
        producer.close((end - first) * 4 * 128);
    }
}

// next_lora[tile, m, r] = strength * sum over this tile's 256 channels of bf16(g[m,n]) down[r,n]
template <class Params, class Consumer>
__device__ __forceinline__ void project_down(const float (&g)[128], Consumer& c, const Params& p, int n0, int row0) {
    Cursor cursor;
    for (int r = 0; r < p.next_rank; r += DOWN_RANKS) {
        float sum[DOWN_RANKS / 2];
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
                                   wgmma::k_major(down + box * DOWN_BYTES) + 2 * i, box + i > 0);
            }
            wgmma::commit();
            wgmma::wait<0>();
            wgmma::pin(sum);
        }
        c.release();
        float* out = p.next_lora + (static_cast<long long>(n0 / 256) * p.m + row0) * p.next_rank + r +
                     2 * (threadIdx.x % 4);
#pragma unroll
        for (int i = 0; i < DOWN_RANKS / 16; ++i) {
            if (r + 16 * i >= p.next_rank) break;
            const float strength = cursor.at(p.next_parts, r + 16 * i).strength;
#pragma unroll
            for (int j = 2 * i; j < 2 * i + 2; ++j) {
                const float* s = &sum[4 * j];
                float* to = out + 8 * j;
                if (row0 < p.m) *reinterpret_cast<float2*>(to) = make_float2(strength * s[0], strength * s[1]);
                if (row0 + 8 < p.m)
                    *reinterpret_cast<float2*>(to + 8 * p.next_rank) = make_float2(strength * s[2], strength * s[3]);
            }
        }
    }
}

}  // namespace low_rank
