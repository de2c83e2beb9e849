// What happens to a warpgroup's 64 x BN tile of results after the last product: from accumulators in registers,
// through swizzled shared memory, to global memory by the copy engine, which clips at the tensor's edges.
#pragma once

#include "epilogue.cuh"
#include "sm90.cuh"

namespace epilogue {

// A warpgroup's staging buffer: two slices of 64 rows x 128 bytes.
constexpr int SLICE_BYTES = 64 * 128;
constexpr int STAGING_BYTES = 2 * SLICE_BYTES;

// Writes the tile as bf16, 64 columns at a time, to columns `n0 ..` and rows `m0 ..` of `out`, or adds it there.
// Slices go through two buffers, at `staging` and `stride` bytes on. `warpgroup` (from 0) owns named barrier 1 +
// warpgroup.
template <bool Add, int R>
__device__ __forceinline__ void write_bf16(const float (&v)[R], const TensorMap& out, u32 staging, int stride, int n0,
                                           int m0, int columns, int warpgroup) {
    const int thread = threadIdx.x % 128, lane = threadIdx.x % 32, warp = thread / 32;
    const int row = 16 * warp + lane % 16;
#pragma unroll
    for (int slice = 0; slice < R / 32; ++slice) {
        if (n0 + 64 * slice >= columns) break;
        u32 base = staging + (slice % 2) * stride;
        if (thread == 0) sm90::store_wait_read<1>();
        named_sync(1 + warpgroup, 128);
#pragma unroll
        for (int pair = 0; pair < 4; ++pair) {
            const float* d = &v[32 * slice + 8 * pair];
            int chunk = (2 * pair + lane / 16) ^ (row % 8);
            sm90::store_matrix_x4(base + 128 * row + 16 * chunk, pack_bf16(d[0], d[1]), pack_bf16(d[2], d[3]),
                                  pack_bf16(d[4], d[5]), pack_bf16(d[6], d[7]));
        }
        sm90::fence_async();
        named_sync(1 + warpgroup, 128);
        if (thread == 0) {
            if constexpr (Add) {
                sm90::add_2d(out, base, n0 + 64 * slice, m0);
            } else {
                sm90::store_2d(out, base, n0 + 64 * slice, m0);
            }
            sm90::store_commit();
        }
    }
}

// One byte a result in staging, as two slices of 128 columns, on its way to `out`.
struct Bytes {
    u32 staging;
    int row;  // of this thread: this one and 8 on

    // Of columns 8j + 2 (lane % 4) and the next: `first` of the first row, `second` of the second.
    __device__ __forceinline__ void put(int j, u32 first, u32 second) const {
        // Row `row` and `row + 8` have the same place in the swizzle.
        const u32 chunk = ((j % 16) / 2) ^ (row % 8);
        const u32 at = staging + (j / 16) * SLICE_BYTES + 128 * row + 16 * chunk + 8 * (j % 2) + 2 * (threadIdx.x % 4);
        asm volatile("st.shared.u16 [%0], %1;" ::"r"(at), "h"(static_cast<u16>(first)) : "memory");
        asm volatile("st.shared.u16 [%0], %1;" ::"r"(at + 8 * 128), "h"(static_cast<u16>(second)) : "memory");
    }
    // Waits until staging may be written to.
    __device__ static void begin(int warpgroup) {
        if (threadIdx.x % 128 == 0) sm90::store_wait_read<0>();
        named_sync(1 + warpgroup, 128);
    }
    __device__ void store(const TensorMap& out, int n0, int m0, int columns, int warpgroup) const {
        sm90::fence_async();
        named_sync(1 + warpgroup, 128);
        if (threadIdx.x % 128 == 0) {
            sm90::store_2d(out, staging, n0, m0);
            if (n0 + 128 < columns) sm90::store_2d(out, staging + SLICE_BYTES, n0 + 128, m0);
            sm90::store_commit();
        }
    }
};

// g[4j ..] = (g + shift) * reciprocal of this thread's columns of tile j; 0 past the last column.
__device__ __forceinline__ void smooth(float* g, const Columns<float>& reciprocals, int j) {
    float2 r = reciprocals[j];
    if (reciprocals.n0 + j / 8 * 64 >= reciprocals.count) r = make_float2(0.0f, 0.0f);
    g[4 * j] = fmaf(g[4 * j], r.x, SHIFT * r.x);
    g[4 * j + 1] = fmaf(g[4 * j + 1], r.y, SHIFT * r.y);
    g[4 * j + 2] = fmaf(g[4 * j + 2], r.x, SHIFT * r.x);
    g[4 * j + 3] = fmaf(g[4 * j + 3], r.y, SHIFT * r.y);
}

// Adding 1.5 * 2^23 rounds to an integer, half to even, in the low bits.
constexpr float TO_INTEGER = 12582912.0f;

// Quantises x = (g + shift) * reciprocal[n] to 0..255 with one scale a row over the tile's 256 columns; `g` is used up.
// Writes codes by the copy engine to `out` and scales to `scales[m]`:
// scale = absmax / 255; code = round half even (x / scale).
template <int R>
__device__ __forceinline__ void quantise_u8(float (&g)[R], const TensorMap& out, float* scales, const float* reciprocal,
                                            u32 staging, int n0, int m0, int rows, int columns, int warpgroup) {
    static_assert(R == 128, "a block is 256 channels");
    const int lane = threadIdx.x % 32, row = 16 * (threadIdx.x % 128 / 32) + lane / 4;

    const Columns<float> reciprocals{reciprocal, n0, columns};
    float max0 = 0.0f, max1 = 0.0f;
#pragma unroll
    for (int j = 0; j < 32; ++j) {
        if (j % 16 == 0) asm volatile("" ::: "memory");  // bounds how many of these loads are under way: registers
        smooth(g, reciprocals, j);
        max0 = fmaxf(max0, fmaxf(g[4 * j], g[4 * j + 1]));
        max1 = fmaxf(max1, fmaxf(g[4 * j + 2], g[4 * j + 3]));
    }
    max0 = quad_max(max0);
    max1 = quad_max(max1);
    if (lane % 4 == 0) {
        if (m0 + row < rows) scales[m0 + row] = max0 * (1.0f / 255);
        if (m0 + row + 8 < rows) scales[m0 + row + 8] = max1 * (1.0f / 255);
    }
    const float inverse0 = code_scale(max0, 255.0f), inverse1 = code_scale(max1, 255.0f);

    const Bytes bytes{staging, row};
    Bytes::begin(warpgroup);
#pragma unroll
    for (int j = 0; j < 32; ++j) {
        auto code = [](float x, float inverse) { return __float_as_uint(fmaf(x, inverse, TO_INTEGER)); };
        bytes.put(j, __byte_perm(code(g[4 * j], inverse0), code(g[4 * j + 1], inverse0), 0x0040),
                  __byte_perm(code(g[4 * j + 2], inverse1), code(g[4 * j + 3], inverse1), 0x0040));
    }
    bytes.store(out, n0, m0, columns, warpgroup);
}

// Quantises x = bf16((g + shift) * reciprocal[n]) to 0..15 with one scale a row and 64 columns; `g` is used up. Writes
// codes, as e4m3 numbers, by the copy engine to `out`, and the scales of columns n0 .. to `scales[group, m]`:
// scale = bf16(absmax / 15); code = round half even (x / (absmax / 15)).
template <int R>
__device__ __forceinline__ void quantise_u4(float (&g)[R], const TensorMap& out, float* scales, const float* reciprocal,
                                            u32 staging, int n0, int m0, int rows, int columns, int warpgroup) {
    const int lane = threadIdx.x % 32, row = 16 * (threadIdx.x % 128 / 32) + lane / 4;
    const Columns<float> reciprocals{reciprocal, n0, columns};
    const Bytes bytes{staging, row};
    Bytes::begin(warpgroup);
#pragma unroll
    for (int group = 0; group < R / 32; ++group) {
        if (n0 + 64 * group >= columns) break;
        float* x = &g[32 * group];
        float top[2] = {};
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            smooth(g, reciprocals, 8 * group + j);
#pragma unroll
            for (int i = 0; i < 4; i += 2) {
                const u32 pair = pack_bf16(x[4 * j + i], x[4 * j + i + 1]);
                x[4 * j + i] = bf16_low(pair), x[4 * j + i + 1] = bf16_high(pair);
                top[i / 2] = fmaxf(top[i / 2], fmaxf(x[4 * j + i], x[4 * j + i + 1]));
            }
        }
        float inverse[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            top[i] = quad_max(top[i]);
            inverse[i] = code_scale(top[i], 15.0f);
            const int m = m0 + row + 8 * i;
            if (lane % 4 == 0 && m < rows) {
                scales[static_cast<long long>(group) * rows + m] = bf16_low(pack_bf16(top[i] * (1.0f / 15), 0.0f));
            }
        }
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            auto code = [](float x, float inverse) { return fminf(fmaf(x, inverse, TO_INTEGER) - TO_INTEGER, 15.0f); };
            bytes.put(8 * group + j, sm90::pack_e4m3(code(x[4 * j], inverse[0]), code(x[4 * j + 1], inverse[0])),
                      sm90::pack_e4m3(code(x[4 * j + 2], inverse[1]), code(x[4 * j + 3], inverse[1])));
        }
    }
    bytes.store(out, n0, m0, columns, warpgroup);
}

}  // namespace epilogue
