// The tile that dense linears and convolutions are made of: 128 x 128 results of bf16 x bf16 in f32, by 128 threads.
// Operands come through a ring of pairs of panels, results leave through shared memory eight at a time.
// Sums run over the channels in a fixed order: the same input gives the same bits.
#pragma once

#include "async.cuh"
#include "elements.cuh"
#include "mma.cuh"
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#include "sm90.cuh"
#include "wgmma.cuh"
#endif

namespace product {

// sm_75 has 64 KB of shared memory, and nothing to gain from more stages.
constexpr int TILE = 128, DEPTH = 64, STAGES = ARCH >= 800 ? 3 : 2, THREADS = 128;
constexpr int PANEL_BYTES = TILE * 128;
// A row of results in shared memory, in floats: where there is room, eight more than the tile, so that rows begin in
// different banks.
constexpr int PITCH = ARCH >= 800 ? TILE + 8 : TILE;
constexpr int SMEM_BYTES = STAGES * 2 * PANEL_BYTES;
static_assert(TILE * PITCH * 4 <= SMEM_BYTES, "results take the place of the operands");

// y = act(scale * sum + bias + before) * by * gate + add, each of them optional; `add` may be `out` itself.
// Tensors [m, n] have rows of `pitch` elements, `before` of `before_pitch`, of which these are n.
struct Output {
    Elements out;       // [m, n]
    Elements before;    // [m, n] or null: what low-rank updates add
    Elements add;       // [m, n] or null
    const bf16* by;     // [m, n] or null
    const bf16* gate;   // [n] or null
    const float* bias;  // [n] or null
    int activation;     // enum Activation
    int pitch;
    int before_pitch;
    float scale = 1.0f;

    // `v` is the sum of row `m` and column `n`.
    __device__ __forceinline__ void finish(float v, int m, int n) const {
        const long long at = static_cast<long long>(m) * pitch + n;
        v *= scale;
        if (bias) v += bias[n];
        if (before.data) v += before.load(static_cast<long long>(m) * before_pitch + n);
        v = activate(v, activation);
        if (by) v *= __bfloat162float(by[at]);
        if (gate) v *= __bfloat162float(gate[n]);
        if (add.data) v += add.load(at);
        out.store(at, v);
    }

    // Eight columns from `n` on, where n and all pitches are multiples of eight.
    __device__ __forceinline__ void finish_8(float (&v)[8], int m, int n) const {
        const long long at = static_cast<long long>(m) * pitch + n;
        float other[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) v[i] *= scale;
        if (bias) {
            load_8(bias + n, other);
#pragma unroll
            for (int i = 0; i < 8; ++i) v[i] += other[i];
        }
        if (before.data) {
            load_8(before, static_cast<long long>(m) * before_pitch + n, other);
#pragma unroll
            for (int i = 0; i < 8; ++i) v[i] += other[i];
        }
        if (activation != ACT_NONE) {
#pragma unroll
            for (int i = 0; i < 8; ++i) v[i] = activate(v[i], activation);
        }
        if (by) {
            load_8(by + at, other);
#pragma unroll
            for (int i = 0; i < 8; ++i) v[i] *= other[i];
        }
        if (gate) {
            load_8(gate + n, other);
#pragma unroll
            for (int i = 0; i < 8; ++i) v[i] *= other[i];
        }
        if (add.data) {
            load_8(add, at, other);
#pragma unroll
            for (int i = 0; i < 8; ++i) v[i] += other[i];
        }
        store_8(out, at, v);
    }
};

// The tile's place. Tiles run down eight rows of tiles before they go to the next column: neighbours in time share both
// operands in the second-level cache.
struct Place {
    int m0, n0;

    __device__ __forceinline__ Place(int m, int n) {
        const int rows = ceil_div(m, TILE), columns = ceil_div(n, TILE), band = blockIdx.x / (8 * columns);
        const int height = min(8, rows - 8 * band), in_band = blockIdx.x - band * 8 * columns;
        m0 = (8 * band + in_band % height) * TILE;
        n0 = in_band / height * TILE;
    }
};

// Rows `first` .. first + 127 of a row-major matrix, 64 columns a step; zeros outside of it.
// Vectors: the rows' length is a multiple of eight.
template <bool Vectors, mma::Role ROLE>
struct MatrixRows {
    const bf16* matrix;
    int rows, columns, first;

    __device__ __forceinline__ void load(u32 panel, int step) const {
        const int row = threadIdx.x / 8, chunk = threadIdx.x % 8, column = step * DEPTH + 8 * chunk;
        const u32 to = panel + async::panel_offset(row, chunk);
        const bf16* from = matrix + static_cast<long long>(first + row) * columns + column;
#pragma unroll(Vectors ? TILE / 16 : 1)
        for (int i = 0; i < TILE / 16; ++i) {
            const bool inside = first + row + 16 * i < rows;
            if constexpr (Vectors) {
                const bool valid = inside && column < columns;
                async::copy_8<ROLE>(to + i * 16 * 128, valid ? from : matrix, valid);
            } else {
                async::store_each<ROLE>(to + i * 16 * 128, matrix, [&](int j) {
                    return inside && column + j < columns ? from - matrix + j : -1;
                });
            }
            from += 16ll * columns;
        }
    }
};

// Four warps of 64 x 64 results each: [i][j] is rows 16 i .., columns 8 j .. of a warp's part.
struct WarpTile {
    float sums[4][8][4] = {};

    __device__ __forceinline__ void begin(u32, u32) {}
    __device__ __forceinline__ void end(u32 x, u32 w) {
        const int warp = threadIdx.x / 32, row = warp / 2 * 64, column = warp % 2 * 64;
#pragma unroll
        for (int step = 0; step < DEPTH / 16; ++step) {
            u32 a[4][4], b[4][4];
#pragma unroll
            for (int i = 0; i < 4; ++i) async::load_a(a[i], x, row + 16 * i, step);
#pragma unroll
            for (int j = 0; j < 4; ++j) async::load_b(b[j], w, column + 16 * j, step);
#pragma unroll
            for (int i = 0; i < 4; ++i)
#pragma unroll
                for (int j = 0; j < 8; ++j)
                    mma::multiply_16x8x16(sums[i][j], a[i][0], a[i][1], a[i][2], a[i][3], b[j / 2][j % 2 * 2],
                                          b[j / 2][j % 2 * 2 + 1]);
        }
    }

    __device__ __forceinline__ void spill(float* results) const {
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        float* to = results + (warp / 2 * 64 + lane / 4) * PITCH + warp % 2 * 64 + 2 * (lane % 4);
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                *reinterpret_cast<float2*>(to + 16 * i * PITCH + 8 * j) = make_float2(sums[i][j][0], sums[i][j][1]);
                *reinterpret_cast<float2*>(to + (16 * i + 8) * PITCH + 8 * j) =
                    make_float2(sums[i][j][2], sums[i][j][3]);
            }
    }
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
// The same tile by one warpgroup: [i] is rows 64 i ...
struct WarpgroupTile {
    float sums[2][64];

    __device__ __forceinline__ WarpgroupTile() {
#pragma unroll
        for (int i = 0; i < 128; ++i) sums[i / 64][i % 64] = 0.0f;
    }
    // Starts the products and returns; until end() they read the panels.
    __device__ __forceinline__ void begin(u32 x, u32 w) {
        wgmma::fence();
#pragma unroll
        for (int step = 0; step < DEPTH / 16; ++step) {
            wgmma::mma_bf16(sums[0], wgmma::k_major(x) + 2 * step, wgmma::k_major(w) + 2 * step, 1);
            wgmma::mma_bf16(sums[1], wgmma::k_major(x + 64 * 128) + 2 * step, wgmma::k_major(w) + 2 * step, 1);
        }
        wgmma::commit();
    }
    __device__ __forceinline__ void end(u32, u32) {
        wgmma::wait<0>();
        wgmma::pin(sums[0]);
        wgmma::pin(sums[1]);
    }

    __device__ __forceinline__ void spill(float* results) const {
        const int lane = threadIdx.x % 32;
        float* to = results + (threadIdx.x / 32 * 16 + lane / 4) * PITCH + 2 * (lane % 4);
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
            for (int j = 0; j < 16; ++j) {
                const float* v = sums[i] + 4 * j;
                *reinterpret_cast<float2*>(to + 64 * i * PITCH + 8 * j) = make_float2(v[0], v[1]);
                *reinterpret_cast<float2*>(to + (64 * i + 8) * PITCH + 8 * j) = make_float2(v[2], v[3]);
            }
    }
};
#endif

// results[m0 .., n0 ..] = X Wᵀ over `columns` channels, then `output`. X and W load panels of rows, step by step in
// order.
template <class Tile, class X, class W>
__device__ __forceinline__ void run(X& x, W& w, int columns, int m, int n, Place place, const Output& output) {
    extern __shared__ __align__(1024) u8 shared[];
    const u32 panels = async::shared_address(shared);
    const int steps = ceil_div(columns, DEPTH);
    auto load = [&](int step) {
        if (step < steps) {
            const u32 to = panels + step % STAGES * 2 * PANEL_BYTES;
            x.load(to, step);
            w.load(to + PANEL_BYTES, step);
        }
        async::commit();
    };
    for (int step = 0; step < STAGES - 1; ++step) load(step);

    Tile tile;
    for (int step = 0; step < steps; ++step) {
        async::wait<STAGES - 2>();
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
        sm90::fence_async();
#endif
        __syncthreads();
        const u32 at = panels + step % STAGES * 2 * PANEL_BYTES;
        tile.begin(at, at + PANEL_BYTES);
        // Into the panels of the step before, whose products ended ahead of the barrier.
        load(step + STAGES - 1);
        tile.end(at, at + PANEL_BYTES);
    }

    async::wait<0>();
    __syncthreads();
    float* results = reinterpret_cast<float*>(shared);
    tile.spill(results);
    __syncthreads();
    const int column = place.n0 + threadIdx.x % 16 * 8;
    if (column >= n) return;
    for (int row = threadIdx.x / 16; row < min(TILE, m - place.m0); row += THREADS / 16) {
        const float* from = results + row * PITCH + threadIdx.x % 16 * 8;
        if ((n | output.pitch | output.before_pitch) % 8 == 0) {
            float v[8];
            load_8(from, v);
            output.finish_8(v, place.m0 + row, column);
        } else {
            for (int i = 0; i < min(8, n - column); ++i) output.finish(from[i], place.m0 + row, column + i);
        }
    }
}

}  // namespace product
