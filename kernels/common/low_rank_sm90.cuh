// Low-rank branches in a linear on Hopper, by slots of its ring: 64 ranks of one part on the way up, 96 of any parts on
// the way down. Of
//   lora  [m, rank]         a slot holds a box of 128 rows x 64,
//   up    [columns, ranks]  of a part: boxes of BN/2 rows x 64,
//   down  [ranks, n]        of a part of the next layer: boxes of 32 rows x 64, or of 16 where a part does not begin
//                           and end with a multiple of 32.
// Maps give zeros where there is nothing, so that a part may begin and end anywhere; tiles that it does not meet leave
// it out. They are among the parameters: a map in global memory has to be fenced before its first use.
#pragma once

#include "low_rank.cuh"
#include "sm90.cuh"
#include "wgmma.cuh"

// DownPart and UpPart, with maps. `box`: ranks of a box.
struct DownMap {
    TensorMap down;
    float strength;
    int end, box;
};
struct UpMap {
    TensorMap up;
    int end;
    int first, last;
};

namespace low_rank {

constexpr int UP_RANKS = 64;

// Calls `slot(part, begin, r)` for every slot of the parts that `has`: their first rank, and the slot's.
template <class Part, class Has, class Slot>
__device__ __forceinline__ void for_slots(const Part* parts, int rank, Has has, Slot slot) {
    int begin = 0;
#pragma unroll 1
    for (; begin < rank; begin = parts++->end) {
        if (!has(*parts)) continue;
#pragma unroll 1
        for (int r = begin; r < parts->end; r += UP_RANKS) slot(*parts, begin, r);
    }
}

__device__ __forceinline__ bool meets(const UpMap& part, int n0, int columns) {
    return part.first < n0 + columns && n0 < part.last;
}

// Loads the slots of a tile. CTA `cta` of two loads its half of `up`, for both.
template <int BN, class Params, class Producer>
__device__ __forceinline__ void load_up(const Params& p, Producer& producer, int m0, int n0, u32 cta) {
    constexpr int LORA_BYTES = 128 * 128, UP_BYTES = BN * 128;
    auto meets_tile = [&](const UpMap& part) { return meets(part, n0, BN); };
    for_slots(p.parts, p.rank, meets_tile, [&](const UpMap& part, int begin, int r) {
        const u32 slot = producer.open();
        sm90::load_2d(slot, p.lora, producer.barrier(), r, m0);
        sm90::load_2d_multicast(slot + LORA_BYTES + cta * (UP_BYTES / 2), part.up, producer.barrier(), r - begin,
                                n0 + static_cast<int>(cta) * (BN / 2) - part.first, 0b11);
        producer.close(LORA_BYTES + UP_BYTES);
    });
}

// Begins sum += lora up^T over `ranks` of a slot, for R / 32 times 64 columns.
template <int R>
__device__ __forceinline__ void multiply_up(float (&sum)[R], u32 lora, u32 up, int ranks) {
    wgmma::fence();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        if (16 * i < ranks) wgmma::mma_bf16(sum, wgmma::k_major(lora) + 2 * i, wgmma::k_major(up) + 2 * i, 1);
    }
    wgmma::commit();
}

// v += lora up^T, PIECE columns at once: in fewer than all where registers beside v are short.
template <int BN, int PIECE, class Params, class Consumer>
__device__ __forceinline__ void add_up(float (&v)[BN / 2], Consumer& c, const Params& p, int n0) {
    bool held = false;  // a slot whose products are under way
    auto meets_tile = [&](const UpMap& part) { return meets(part, n0, BN); };
    for_slots(p.parts, p.rank, meets_tile, [&](const UpMap& part, int, int r) {
        const u32 lora = c.wait_x(), up = c.w_of(lora);
        const int ranks = part.end - r;
        if constexpr (PIECE == BN) {
            multiply_up(v, lora, up, ranks);
            wgmma::wait<1>();
            if (held) c.release();
            held = true;
        } else {
#pragma unroll
            for (int n = 0; n < BN; n += PIECE) {
                float sum[PIECE / 2] = {};
                multiply_up(sum, lora, up + n * 128, ranks);
                wgmma::wait<0>();
                wgmma::pin(sum);
#pragma unroll
                for (int i = 0; i < PIECE / 2; ++i) v[n / 2 + i] += sum[i];
            }
            c.release();
        }
    });
    if constexpr (PIECE == BN) {
        wgmma::wait<0>();
        wgmma::pin(v);
        if (held) c.release();
    }
}

// Ranks of a slot of `down`, and bytes of 64 channels of these.
constexpr int DOWN_RANKS = 96, DOWN_BYTES = DOWN_RANKS * 128;

// Loads the slots of `down` for 256 channels; CTA `cta` of two loads half of them, for both.
template <class Params, class Producer>
__device__ __forceinline__ void load_down(const Params& p, Producer& producer, int n0, u32 cta) {
    const int n = n0 + 128 * static_cast<int>(cta);
    Cursor cursor;
#pragma unroll 1
    for (int begin = 0; begin < p.next_rank; begin += DOWN_RANKS) {
        const int end = min(begin + DOWN_RANKS, p.next_rank);
        u32 to = producer.open() + 2 * cta * DOWN_BYTES;
#pragma unroll 1
        for (int r = begin; r < end;) {
            const DownMap& part = cursor.at(p.next_parts, r);
            const int row = r - cursor.begin;
            sm90::load_2d_multicast(to, part.down, producer.barrier(), n, row, 0b11);
            sm90::load_2d_multicast(to + DOWN_BYTES, part.down, producer.barrier(), n + 64, row, 0b11);
            r += part.box, to += part.box * 128;
        }
        producer.close((end - begin) * 4 * 128);
    }
}

// sum = g down^T over this tile's 256 channels, for 2 R ranks.
template <int R>
__device__ __forceinline__ void multiply_down(float (&sum)[R], const float (&g)[128], u32 down) {
    u32 a[2][16];  // while one is multiplied, the other is made
#pragma unroll
    for (int box = 0; box < 4; ++box) {
        u32(&pairs)[16] = a[box % 2];
#pragma unroll
        for (int i = 0; i < 16; ++i) pairs[i] = pack_bf16(g[32 * box + 2 * i], g[32 * box + 2 * i + 1]);
        wgmma::fence();
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            wgmma::mma_bf16_rs(sum, pairs[4 * i], pairs[4 * i + 1], pairs[4 * i + 2], pairs[4 * i + 3],
                               wgmma::k_major(down + box * DOWN_BYTES) + 2 * i, box + i > 0);
        }
        wgmma::commit();
        wgmma::wait<1>();
    }
    wgmma::wait<0>();
    wgmma::pin(sum);
}

// Where a thread adds up its sums. next_lora is [slots, ceil(m/8), rank/16, 8, 16]: what a warp adds at once, 16 ranks of
// 8 rows, lies together. Of 16 ranks a thread has 2t, 2t + 1, 2t + 8 and 2t + 9, in places 4t to 4t + 3.
// sum_low_rank_sm90 undoes all that.
struct Sums {
    float* rows[2];  // of its first row and the one 8 on, null past the last
    int rank;
    bool first;  // tile of a slot

    template <class Params>
    __device__ Sums(const Params& p, int n0, int row0) : rank(p.next_rank), first(n0 / 256 < p.next_slots) {
        const int blocks = ceil_div(p.m, 8), block = row0 / 8, slot = n0 / 256 % p.next_slots;
        float* const at =
            p.next_lora + (static_cast<long long>(slot) * blocks + block) * 8 * rank + 4 * (threadIdx.x % 32);
        rows[0] = block < blocks ? at : nullptr;
        rows[1] = block + 1 < blocks ? at + 8 * rank : nullptr;
    }

    // Adds those of 2 R ranks from `r` on.
    template <int R>
    __device__ __forceinline__ void add(const float (&sum)[R], int r) const {
#pragma unroll
        for (int i = 0; i < R / 8; ++i) {
            if (r + 16 * i >= rank) break;
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                if (!rows[half]) break;
                const float* s = &sum[8 * i + 2 * half];
                const float4 v = make_float4(s[0], s[1], s[4], s[5]);
                float* const to = rows[half] + 8 * (r + 16 * i);
                if (first) {
                    *reinterpret_cast<float4*>(to) = v;
                } else {
                    sm90::add_global(to, v);
                }
            }
        }
    }
};

// next_lora[slot, m, r] (+)= sum over this tile's 256 channels of bf16(g[m,n]) down[r,n], without the parts' strengths.
// A slot's sums of a row are added up by one thread, in the order of its tiles. `PIECE` ranks at once, 32 or 96: fewer
// where registers beside g are short.
template <int PIECE, class Params, class Consumer>
__device__ __forceinline__ void project_down(const float (&g)[128], Consumer& c, const Params& p, int n0, int row0) {
    const Sums sums(p, n0, row0);
    auto project = [&](auto& sum, u32 down, int r) {
        multiply_down(sum, g, down);
        sums.add(sum, r);
    };
#pragma unroll 1
    for (int begin = 0; begin < p.next_rank; begin += DOWN_RANKS) {
        const u32 down = c.slot_of(c.wait_x());
        const int end = min(begin + DOWN_RANKS, p.next_rank);
#pragma unroll 1
        for (int r = begin; r < end; r += PIECE) {
            const u32 at = down + (r - begin) * 128;
            if (PIECE == 96 && end - r > 64) {
                float sum[48];
                project(sum, at, r);
            } else if (PIECE == 96 && end - r > 32) {
                float sum[32];
                project(sum, at, r);
            } else {
                float sum[16];
                project(sum, at, r);
            }
        }
        c.release();
    }
}

}  // namespace low_rank
