// Low-rank branches in a linear on Hopper: up to 64 ranks of one part are a slot of its ring. Of
//   lora  [m, rank]         a slot holds a box of 128 rows x 64,
//   up    [columns, ranks]  of a part: boxes of BN/2 rows x 64,
//   down  [ranks, n]        of a part of the next layer: four boxes of 64 rows x 64.
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

constexpr int SLOT_RANKS = 64;

// Calls `slot(part, begin, r)` for every slot of the parts that `has`: their first rank, and the slot's.
template <class Part, class Has, class Slot>
__device__ __forceinline__ void for_slots(const Part* parts, int rank, Has has, Slot slot) {
    int begin = 0;
#pragma unroll 1
    for (; begin < rank; begin = parts++->end) {
        if (!has(*parts)) continue;
#pragma unroll 1
        for (int r = begin; r < parts->end; r += SLOT_RANKS) slot(*parts, begin, r);
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

// Bytes of 64 channels of a slot of `down`.
constexpr int DOWN_BYTES = SLOT_RANKS * 128;

// Loads the slots of `down` for 256 channels, `offset` bytes from their start; each CTA loads half of them, for both.
template <class Params, class Producer>
__device__ __forceinline__ void load_down(const Params& p, Producer& producer, u32 offset, int n0, u32 cta) {
    auto any = [](const DownMap&) { return true; };
    for_slots(p.next_parts, p.next_rank, any, [&](const DownMap& part, int begin, int r) {
        const u32 slot = producer.open() + offset;
        for (u32 box = 2 * cta; box < 2 * cta + 2; ++box) {
            sm90::load_2d_multicast(slot + box * DOWN_BYTES, part.down, producer.barrier(), n0 + 64 * box, r - begin,
                                    0b11);
        }
        producer.close(4 * DOWN_BYTES);
    });
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

// Four sums of a tile to where those of the tiles in its slot are added up: `first` begins a slot.
__device__ __forceinline__ void leave_sums(float* to, float4 sums, bool first) {
    if (first) {
        *reinterpret_cast<float4*>(to) = sums;
    } else {
        sm90::add_global(to, sums);
    }
}

// next_lora[slot, m, r] (+)= strength * sum over this tile's 256 channels of bf16(g[m,n]) down[r,n]
// A slot's sums of a row are added up by one thread, in the order of its tiles. `PIECE` ranks at once, 32 or 64: fewer
// where registers beside g are short. Of 16 ranks a thread has 2t, 2t + 1, 2t + 8 and 2t + 9; they lie side by side, in
// places 4t to 4t + 3, which sum_low_rank_sm90 undoes.
template <int PIECE, class Params, class Consumer>
__device__ __forceinline__ void project_down(const float (&g)[128], Consumer& c, const Params& p, int n0, int row0) {
    const int tile = n0 / 256;
    const bool first = tile < p.next_slots;
    float* const out = p.next_lora + (static_cast<long long>(tile % p.next_slots) * p.m + row0) * p.next_rank +
                       4 * (threadIdx.x % 4);
    auto project = [&](auto& sum, u32 down, const DownMap& part, int r) {
        multiply_down(sum, g, down);
#pragma unroll
        for (int i = 0; i < static_cast<int>(sizeof sum) / 32; ++i) {
            if (r + 16 * i >= part.end) break;
            const float* s = &sum[8 * i];
            float* to = out + r + 16 * i;
#pragma unroll
            for (int half = 0; half < 2; ++half, s += 2, to += 8 * p.next_rank) {
                if (row0 + 8 * half >= p.m) break;
                const float strength = part.strength;
                leave_sums(to, make_float4(strength * s[0], strength * s[1], strength * s[4], strength * s[5]), first);
            }
        }
    };
    auto any = [](const DownMap&) { return true; };
    for_slots(p.next_parts, p.next_rank, any, [&](const DownMap& part, int, int begin) {
        const u32 down = c.w_of(c.wait_x());
        for (int r = begin; r < min(begin + SLOT_RANKS, part.end); r += PIECE) {
            if (PIECE == 64 && part.end - r > 32) {
                float sum[32];
                project(sum, down, part, r);
            } else {
                float sum[16];
                project(sum, down + (r - begin) * 128, part, r);
            }
        }
        c.release();
    });
}

}  // namespace low_rank
