// 3x3 convolutions of an image with a pixel a row, as a product whose rows are gathered on the way:
//   out[p,n] = sum_{tap,c} x[pixel(p, tap), c] w[n, tap, c] + bias[n] + add[p,n]
// with zeros outside of the image. Stride 1 has one row and column of zeros around the image; stride 2 has them only
// below and right; `upsample` doubles the image by nearest neighbour before the taps. 1x1 convolutions are dense
// linears.
#include "common/product_bf16.cuh"

struct ConvParams {
    const bf16* x;  // [height * width, c]
    const bf16* w;  // [n, 9, c]
    int height, width, c, n;
    int stride;              // 1 or 2
    int upsample;            // 0 or 1
    product::Output output;  // [(height << upsample) / stride * ((width << upsample) / stride), n]
};

namespace conv3x3 {

// The rows of pixels that a thread loads, 16 apart, and where it is in the channels of the nine taps.
template <bool Vectors>
struct Gather {
    static constexpr int ROWS = product::TILE / 16;

    const ConvParams& p;
    int m, first;
    int corners[ROWS];        // as corner(i)
    long long offsets[ROWS];  // of the pixels under the tap, in elements
    int tap = 0, channel, loaded_tap = -1;

    __device__ __forceinline__ Gather(const ConvParams& p, int m, int tile)
        : p(p), m(m), first(tile + threadIdx.x / 8), channel(threadIdx.x % 8 * 8) {
#pragma unroll
        for (int i = 0; i < ROWS; ++i) corners[i] = corner(i);
    }

    // Top (high half) and left of the taps of row `i`, before the padding. Rows past the end lie below every image.
    __device__ __forceinline__ int corner(int i) const {
        const int pixel = first + 16 * i, out_width = (p.width << p.upsample) / p.stride;
        return pixel < m ? (pixel / out_width << 16 | pixel % out_width) * p.stride : 0x70000000;
    }

    // Where the pixel under `tap` begins, in elements, or -1 outside of the image.
    __device__ __forceinline__ long long pixel(int corner, int tap) const {
        const int before = p.stride == 1;
        const u32 y = (corner >> 16) + tap / 3 - before, x = (corner & 0xffff) + tap % 3 - before;
        const bool inside =
            tap < 9 && y < static_cast<u32>(p.height << p.upsample) && x < static_cast<u32>(p.width << p.upsample);
        return inside ? static_cast<long long>((y >> p.upsample) * p.width + (x >> p.upsample)) * p.c : -1;
    }

    __device__ __forceinline__ void load(u32 panel, int) {
        const u32 to = panel + async::panel_offset(threadIdx.x / 8, threadIdx.x % 8);
        while (channel >= p.c) {
            channel -= p.c;
            ++tap;
        }
        if constexpr (Vectors) {
            if (tap != loaded_tap) {
                loaded_tap = tap;
#pragma unroll
                for (int i = 0; i < ROWS; ++i) offsets[i] = pixel(corners[i], tap);
            }
#pragma unroll
            for (int i = 0; i < ROWS; ++i) {
                const bool inside = offsets[i] >= 0;
                async::copy_8<mma::ACTIVATION>(to + i * 16 * 128, inside ? p.x + offsets[i] + channel : p.x, inside);
            }
        } else {
#pragma unroll 1
            for (int i = 0; i < ROWS; ++i) {
                const int at = corner(i);
                async::store_each<mma::ACTIVATION>(to + i * 16 * 128, p.x, [&](int j) {
                    const int c = channel + j;
                    const long long from = pixel(at, tap + c / p.c);
                    return from < 0 ? from : from + c % p.c;
                });
            }
        }
        channel += product::DEPTH;
    }
};

template <class Tile, bool Vectors>
__device__ __forceinline__ void conv(const ConvParams& p) {
    const int m = ((p.height << p.upsample) / p.stride) * ((p.width << p.upsample) / p.stride);
    const product::Place place(m, p.n);
    Gather<Vectors> x(p, m, place.m0);
    product::MatrixRows<Vectors, mma::WEIGHT> w{p.w, p.n, 9 * p.c, place.n0};
    product::run<Tile>(x, w, 9 * p.c, m, p.n, place, p.output);
}

}  // namespace conv3x3

// All: with m = number of pixels of the result, grid ceil(m/128) * ceil(n/128), block 128, shared memory 98304 bytes,
// on sm_75 65536.
// Sides after upsampling below 28672. Alignment as in gemm_bf16.cu.

// c a multiple of 8.
extern "C" __global__ void __launch_bounds__(128, 2) conv3x3_bf16_c8(const __grid_constant__ ConvParams p) {
    conv3x3::conv<product::WarpTile, true>(p);
}

// Any c.
extern "C" __global__ void __launch_bounds__(128, 2) conv3x3_bf16_any_c(const __grid_constant__ ConvParams p) {
    conv3x3::conv<product::WarpTile, false>(p);
}

#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
// Hopper: as conv3x3_bf16_c8, by wgmma.
extern "C" __global__ void __launch_bounds__(128, 2) conv3x3_bf16_sm90(const __grid_constant__ ConvParams p) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    conv3x3::conv<product::WarpgroupTile, true>(p);
#endif
}
#endif
