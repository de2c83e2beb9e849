// A linear with 4-bit operands and a low-rank branch, on the tensor cores' m16n8k64, whatever its numbers are:
//   y[m,n] = sum_k x[m,k] w[n,k] + sum_r lora[m,r] up[n,r] + bias[n], then one of four epilogues
// A CTA of 8 warps computes 128 x 128, a warp 16 rows of it, 64 channels of K a step, through a ring of shared memory.
//
// A `Format` says what the numbers are:
//   Params        see GemmW4A4Params for the members used here
//   Step          64 channels of K for a CTA, in shared memory
//   load_step     begins to copy one from global memory
//   multiply_step adds its products to the thread's 64 results, which lie as epilogue.cuh says
//   finish        what is left to do to the sums after the last step
//   quantise      codes results for the next linear
#pragma once

#include "epilogue.cuh"
#include "low_rank.cuh"
#include "mma.cuh"

enum Epilogue4 { STORE4, ADD4, QKV4, GELU4 };

namespace linear4 {

constexpr int BM = 128, BN = 128, GROUP = 64;

constexpr int STEPS = ARCH >= 800 ? 4 : 2;  // sm_75's copies are not asynchronous

// The codes of a step. Both operands lie in global memory in the order in which lanes want them, 16 bytes a lane:
//   x  [m/16][k/64][lane]: rows g and g + 8 at channels 8t..8t+7, then both at 32 + 8t.. (lane 4g + t)
//   w  Nunchaku's packing, [n/128][k/64][16 rows][lane]: row g at channels 8t.. and 32 + 8t.., then row g + 8
struct Codes {
    uint4 x[8][32];
    uint4 w[8][32];
};

template <class Params>
__device__ __forceinline__ void load_codes(Codes& to, const Params& p, int tile_m, int tile_n, int group) {
    const int groups = p.k / GROUP, rows = ceil_div(p.m, 16) * 16, thread = threadIdx.x;
    const int strip = thread / 32, lane = thread % 32;
    const bool in = tile_m * BM + strip * 16 < rows;
    const long long at = static_cast<long long>(in ? tile_m * 8 + strip : 0) * groups + group;
    mma::copy16(&to.x[strip][lane], p.x + at * 32 + lane, in);
    const long long tile = static_cast<long long>(tile_n) * groups + group;
    mma::copy16(&to.w[strip][lane], p.w + tile * 256 + thread, true);
}

// Four words of a step's activation scales, [k/64, rows], to where thread `i` of 32 holds them.
template <class Params>
__device__ __forceinline__ void load_row_scales(void* to, const Params& p, int tile_m, int group, int i) {
    const int rows = ceil_div(p.m, 16) * 16, row = tile_m * BM + 4 * i;
    const bool in = row < rows;
    mma::copy16(to, p.xs + static_cast<long long>(group) * rows + (in ? row : 0), in);
}

// v += lora up^T. The first part's `up` is in Nunchaku's packing, the others' are row by row: of each 16 ranks lane
// 4g + t takes 4t .. 4t+3 of both operands.
template <class Params>
__device__ __forceinline__ void add_low_rank(float (&v)[64], const Params& p, int row0, int tile_n) {
    const int lane = threadIdx.x % 32, t = lane % 4;
    auto lora = [&](int row, int r) { return p.lora + static_cast<long long>(row) * p.rank + r; };
    auto pair = [&](int row, int r) { return row < p.m ? __ldg(reinterpret_cast<const u32*>(lora(row, r))) : 0u; };
    auto tile = [&](int j) -> float(&)[4] { return *reinterpret_cast<float(*)[4]>(&v[4 * j]); };
    const int own = p.parts[0].end;
    for (int r = 0; r < own; r += 16) {
        const int at = r + 2 * t;
        const u32 a0 = pair(row0, at), a1 = pair(row0 + 8, at), a2 = pair(row0, at + 8), a3 = pair(row0 + 8, at + 8);
        const uint4* up = static_cast<const uint4*>(p.parts[0].up);
#pragma unroll
        for (int n = 0; n < 8; ++n) {
            const uint4 b = __ldg(up + (static_cast<long long>(tile_n * 8 + n) * (own / 16) + r / 16) * 32 + lane);
            mma::bf16_16x8x16(tile(2 * n), a0, a1, a2, a3, b.x, b.y);
            mma::bf16_16x8x16(tile(2 * n + 1), a0, a1, a2, a3, b.z, b.w);
        }
    }
    auto quad = [](const bf16* from, bool in) {
        return in ? __ldg(reinterpret_cast<const uint2*>(from)) : make_uint2(0, 0);
    };
    low_rank::Cursor cursor;
#pragma unroll 1
    for (int r = own; r < p.rank; r += 16) {
        const UpPart& part = cursor.at(p.parts, r);
        if (part.first >= (tile_n + 1) * BN || tile_n * BN >= part.last) continue;
        const uint2 a = quad(lora(row0, r + 4 * t), row0 < p.m), b = quad(lora(row0 + 8, r + 4 * t), row0 + 8 < p.m);
        const int ranks = part.end - cursor.begin;
        const bf16* up = static_cast<const bf16*>(part.up) + r - cursor.begin + 4 * t;
#pragma unroll
        for (int j = 0; j < 16; ++j) {
            const int n = tile_n * BN + 8 * j + lane / 4;
            const uint2 w = quad(up + static_cast<long long>(n - part.first) * ranks, part.first <= n && n < part.last);
            mma::bf16_16x8x16(tile(j), a.x, b.x, a.y, b.y, w.x, w.y);
        }
    }
}

// out = v, or out += v, in rows of 16 bytes: the lanes of a quad swap columns first.
template <bool ADD, class Params>
__device__ __forceinline__ void write(const float (&v)[64], const Params& p, int row0, int n0) {
    const int t = threadIdx.x % 4;
#pragma unroll
    for (int row = 0; row < 2; ++row) {
#pragma unroll
        for (int block = 0; block < 4; ++block) {
            u32 r[4];
            if constexpr (!ADD) {
#pragma unroll
                for (int j = 0; j < 4; ++j)
                    r[j] = pack_bf16(v[16 * block + 4 * j + 2 * row], v[16 * block + 4 * j + 2 * row + 1]);
                mma::quad_transpose(r);
            }
            float low[4], high[4];
            if constexpr (ADD) {
                u32 a[4], b[4];
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    a[j] = __float_as_uint(v[16 * block + 4 * j + 2 * row]);
                    b[j] = __float_as_uint(v[16 * block + 4 * j + 2 * row + 1]);
                }
                mma::quad_transpose(a), mma::quad_transpose(b);
#pragma unroll
                for (int j = 0; j < 4; ++j) low[j] = __uint_as_float(a[j]), high[j] = __uint_as_float(b[j]);
            }
            if (row0 + 8 * row >= p.m) continue;
            uint4* to = reinterpret_cast<uint4*>(p.out + static_cast<long long>(row0 + 8 * row) * p.n + n0 +
                                                 32 * block + 8 * t);
            if constexpr (ADD) {
                const uint4 old = *to;
                const u32 words[4] = {old.x, old.y, old.z, old.w};
#pragma unroll
                for (int j = 0; j < 4; ++j)
                    r[j] = pack_bf16(bf16_low(words[j]) + low[j], bf16_high(words[j]) + high[j]);
            }
            *to = make_uint4(r[0], r[1], r[2], r[3]);
        }
    }
}

// Codes of 64 channels of the next linear's input, the `at`-th such group. Byte 0 of codes[j] are those of this
// thread's two columns of tile j in row g, byte 1 in row g + 8; bytes 2 and 3 are the same of tile j + 4.
template <class Params>
__device__ __forceinline__ void write_codes(u32 (&codes)[4], const Params& p, int row0, int at) {
    const int lane = threadIdx.x % 32;
    mma::quad_transpose(codes);
    // Byte i of every one makes word i.
    const u32 even = __byte_perm(codes[0], codes[1], 0x5140), odd = __byte_perm(codes[2], codes[3], 0x5140);
    const u32 even2 = __byte_perm(codes[0], codes[1], 0x7362), odd2 = __byte_perm(codes[2], codes[3], 0x7362);
    const uint4 words = make_uint4(__byte_perm(even, odd, 0x5410), __byte_perm(even, odd, 0x7632),
                                   __byte_perm(even2, odd2, 0x5410), __byte_perm(even2, odd2, 0x7632));
    if (row0 - lane / 4 < p.m) {
        p.next_x[(static_cast<long long>(row0 / 16) * (p.n / 64) + at) * 32 + lane] = words;
    }
}

// next_lora[tile_n, m, r] = strength * sum over this tile's 128 channels of bf16(g[m,n]) down[r,n]. The first part's
// `down` is in Nunchaku's packing, the others' are row by row.
template <class Params>
__device__ __forceinline__ void project_down(const float (&g)[64], const Params& p, int row0, int tile_n) {
    const int lane = threadIdx.x % 32, t = lane % 4, own = p.next_parts[0].end;
    low_rank::Cursor cursor;
#pragma unroll 1
    for (int r = 0; r < p.next_rank; r += 16) {
        const DownPart& part = cursor.at(p.next_parts, r);
        const uint4* packed = static_cast<const uint4*>(part.down) + r / 16 * 32 + lane;
        const bf16* row = static_cast<const bf16*>(part.down) +
                          static_cast<long long>(r - cursor.begin + lane / 4) * p.n + tile_n * BN + 2 * t;
        auto pair = [&](int rank, int n) { return __ldg(reinterpret_cast<const u32*>(row + 1ll * rank * p.n + n)); };
        float sum[2][4] = {};
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const u32 a0 = pack_bf16(g[8 * i], g[8 * i + 1]), a1 = pack_bf16(g[8 * i + 2], g[8 * i + 3]);
            const u32 a2 = pack_bf16(g[8 * i + 4], g[8 * i + 5]), a3 = pack_bf16(g[8 * i + 6], g[8 * i + 7]);
            const uint4 b = r < own ? __ldg(packed + static_cast<long long>(tile_n * 8 + i) * (own / 16) * 32)
                                    : make_uint4(pair(0, 16 * i), pair(0, 16 * i + 8), pair(8, 16 * i),
                                                 pair(8, 16 * i + 8));
            mma::bf16_16x8x16(sum[0], a0, a1, a2, a3, b.x, b.y);
            mma::bf16_16x8x16(sum[1], a0, a1, a2, a3, b.z, b.w);
        }
        float* out = p.next_lora + (static_cast<long long>(tile_n) * p.m + row0) * p.next_rank + r + 2 * t;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float(&s)[4] = sum[half];
#pragma unroll
            for (int i = 0; i < 4; ++i) s[i] *= part.strength;
            if (row0 < p.m) *reinterpret_cast<float2*>(out + 8 * half) = make_float2(s[0], s[1]);
            if (row0 + 8 < p.m) *reinterpret_cast<float2*>(out + 8 * p.next_rank + 8 * half) = make_float2(s[2], s[3]);
        }
    }
}

template <class Format, Epilogue4 E>
__device__ __forceinline__ void gemm(const typename Format::Params& p) {
    extern __shared__ __align__(1024) unsigned char shared_bytes[];
    auto* steps = reinterpret_cast<typename Format::Step*>(shared_bytes);
    const int tile_m = blockIdx.x, tile_n = blockIdx.y, n0 = tile_n * BN, groups = p.k / GROUP;
    const int row0 = tile_m * BM + threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4;

    float v[64] = {};
#pragma unroll
    for (int i = 0; i < STEPS - 1; ++i) {
        if (i < groups) Format::load_step(steps[i], p, tile_m, tile_n, i);
        mma::copy_commit();
    }
    for (int group = 0; group < groups; ++group) {
        mma::copy_wait<STEPS - 2>();
        __syncthreads();  // this step has arrived everywhere, and everyone is done with the one before
        const int next = group + STEPS - 1;
        if (next < groups) Format::load_step(steps[next % STEPS], p, tile_m, tile_n, next);
        mma::copy_commit();
        Format::multiply_step(v, steps[group % STEPS]);
    }

    Format::finish(v, p, n0);
    const epilogue::Columns<bf16> biases{p.bias, n0, p.n};
#pragma unroll
    for (int j = 0; j < 16; ++j) {
        const float2 bias = biases[j];
        v[4 * j] += bias.x, v[4 * j + 1] += bias.y;
        v[4 * j + 2] += bias.x, v[4 * j + 3] += bias.y;
    }
    add_low_rank(v, p, row0, tile_n);

    if constexpr (E == STORE4) {
        write<false>(v, p, row0, n0);
    } else if constexpr (E == ADD4) {
        const epilogue::Columns<bf16> gates{p.columns, n0, p.n};
#pragma unroll
        for (int j = 0; j < 16; ++j) {
            const float2 gate = gates[j];
            v[4 * j] *= gate.x, v[4 * j + 1] *= gate.y;
            v[4 * j + 2] *= gate.x, v[4 * j + 3] *= gate.y;
        }
        write<true>(v, p, row0, n0);
    } else if constexpr (E == QKV4) {
        const int third = 3 * n0 / p.n;
        if (third < 2) {
            epilogue::Rope rope;
            rope.load(p.rope + 64ll * min(row0, p.m - 1), p.rope + 64ll * min(row0 + 8, p.m - 1));
            epilogue::norm_rope(v, p.columns + 128 * third, rope);
        }
        write<false>(v, p, row0, n0);
    } else {
#pragma unroll
        for (int i = 0; i < 64; ++i) v[i] = epilogue::gelu_tanh(v[i]);
        Format::quantise(v, p, row0, n0);
        project_down(v, p, row0, tile_n);
    }
}

}  // namespace linear4
