// GroupNorm over an image with a pixel a row, then SiLU if asked:
//   out[p,c] = (x[p,c] - mean_g) / sqrt(var_g + 1e-6) * weight[c] + bias[c]
// with the statistics of a group of channels over all pixels: sums of parts of the image, their total as a factor and a
// summand for each channel, and the image once more. Nothing depends on the order in which blocks run.
#include "common/elements.cuh"
#include "common/reduce.cuh"

struct GroupNormParams {
    const bf16* x;    // [pixels, channels]
    bf16* out;        // the same; may be x
    Elements weight;  // [channels]
    Elements bias;    // [channels]
    float* sums;      // [groups, 2, ceil(pixels/128)], scratch
    float* affine;    // [2, channels], scratch
    int pixels, channels, groups;
    int silu;
};

namespace group_norm {

constexpr int PIXELS = 128, THREADS = 256;

// V neighbouring channels.
template <int V>
__device__ __forceinline__ void load(const bf16* from, float (&v)[V]) {
    if constexpr (V == 8) {
        load_8(from, v);
    } else {
        v[0] = __bfloat162float(*from);
    }
}

// Values are taken relative to the group's first one, so that a large mean does not swallow the variance.
__device__ __forceinline__ float pivot(const GroupNormParams& p, int group) {
    return __bfloat162float(p.x[group * (p.channels / p.groups)]);
}

// The threads of a block as lanes of `count` vectors: a thread has the same channels of every pixel it sees.
struct Lanes {
    int count, lanes, vector, lane;

    __device__ __forceinline__ Lanes(int vectors)
        : count(min(THREADS, vectors)),
          lanes(THREADS / count),
          vector(threadIdx.x % count),
          lane(threadIdx.x / count) {}
};

// Sums of x - pivot and of its square over 128 pixels, for each group.
template <int V>
__device__ __forceinline__ void sum_part(const GroupNormParams& p) {
    __shared__ float channel_sums[2 * V][THREADS];  // sums, then squares, of V channels of each thread
    const int vectors = p.channels / V, width = p.channels / p.groups, parts = ceil_div(p.pixels, PIXELS);
    const int first = blockIdx.x * PIXELS, last = min(p.pixels, first + PIXELS);
    for (int base = 0; base < vectors; base += THREADS) {
        const Lanes at(vectors - base);
        if (at.lane < at.lanes) {
            float sum[V] = {}, squares[V] = {}, pivots[V];
#pragma unroll
            for (int i = 0; i < V; ++i) pivots[i] = pivot(p, ((base + at.vector) * V + i) / width);
#pragma unroll 4
            for (int pixel = first + at.lane; pixel < last; pixel += at.lanes) {
                float v[V];
                load(p.x + static_cast<long long>(pixel) * p.channels + (base + at.vector) * V, v);
#pragma unroll
                for (int i = 0; i < V; ++i) {
                    v[i] -= pivots[i];
                    sum[i] += v[i];
                    squares[i] = fmaf(v[i], v[i], squares[i]);
                }
            }
#pragma unroll
            for (int i = 0; i < V; ++i) {
                channel_sums[i][threadIdx.x] = sum[i];
                channel_sums[V + i][threadIdx.x] = squares[i];
            }
        }
        __syncthreads();
        for (int i = threadIdx.x; i < 2 * V * at.count; i += THREADS) {
            float* lane = &channel_sums[i / at.count][i % at.count];
            for (int j = 1; j < at.lanes; ++j) lane[0] += lane[j * at.count];
        }
        __syncthreads();
        // A group may begin in one pass over the channels and end in the next.
        for (int i = threadIdx.x; i < 2 * p.groups; i += THREADS) {
            float& to = p.sums[static_cast<long long>(i) * parts + blockIdx.x];
            const int begin = max(i / 2 * width - base * V, 0), end = min((i / 2 + 1) * width - base * V, at.count * V);
            if (begin >= end) continue;
            float total = base * V > i / 2 * width ? to : 0.0f;
            for (int c = begin; c < end; ++c) total += channel_sums[i % 2 * V + c % V][c / V];
            to = total;
        }
        __syncthreads();
    }
}

template <int V>
__device__ __forceinline__ void apply(const GroupNormParams& p) {
    const int vectors = p.channels / V;
    for (int base = 0; base < vectors; base += THREADS) {
        const Lanes at(vectors - base);
        if (at.lane >= at.lanes) continue;
        const int channel = (base + at.vector) * V;
        float factor[V], summand[V];
#pragma unroll
        for (int i = 0; i < V; ++i) {
            factor[i] = p.affine[channel + i];
            summand[i] = p.affine[p.channels + channel + i];
        }
#pragma unroll 4
        for (long long pixel = blockIdx.x * at.lanes + at.lane; pixel < p.pixels; pixel += gridDim.x * at.lanes) {
            float v[V];
            load(p.x + pixel * p.channels + channel, v);
#pragma unroll
            for (int i = 0; i < V; ++i) {
                v[i] = fmaf(v[i], factor[i], summand[i]);
                if (p.silu) v[i] = gated(v[i], v[i]);
            }
            if constexpr (V == 8) {
                store_8(p.out + pixel * p.channels + channel, v);
            } else {
                p.out[pixel * p.channels + channel] = __float2bfloat16(v[0]);
            }
        }
    }
}

}  // namespace group_norm

// First: grid ceil(pixels/128), block 256. `_any`: channels not a multiple of 8.
extern "C" __global__ void __launch_bounds__(256) group_norm_sums(GroupNormParams p) {
    group_norm::sum_part<8>(p);
}
extern "C" __global__ void __launch_bounds__(256) group_norm_sums_any(GroupNormParams p) {
    group_norm::sum_part<1>(p);
}

// Second: grid groups, block 256.
extern "C" __global__ void __launch_bounds__(256) group_norm_affine(GroupNormParams p) {
    const int group = blockIdx.x, width = p.channels / p.groups, parts = ceil_div(p.pixels, group_norm::PIXELS);
    double sum = 0, squares = 0;
    const float* sums = p.sums + 2ll * group * parts;
#pragma unroll 8
    for (int part = threadIdx.x; part < parts; part += 256) {
        sum += sums[part];
        squares += sums[parts + part];
    }
    const double count = static_cast<double>(p.pixels) * width;
    const double mean = block_sum<256>(sum) / count, square = block_sum<256>(squares) / count;
    const float scale = inverse_sqrt(static_cast<float>(fmax(square - mean * mean, 0.0)) + 1e-6f);
    const float centre = group_norm::pivot(p, group) + static_cast<float>(mean);
    for (int c = group * width + threadIdx.x; c < (group + 1) * width; c += 256) {
        const float factor = scale * p.weight.load(c);
        p.affine[c] = factor;
        p.affine[p.channels + c] = p.bias.load(c) - centre * factor;
    }
}

// Third: grid any, a few blocks for each multiprocessor, block 256.
extern "C" __global__ void __launch_bounds__(256) group_norm_apply(GroupNormParams p) {
    group_norm::apply<8>(p);
}
extern "C" __global__ void __launch_bounds__(256) group_norm_apply_any(GroupNormParams p) {
    group_norm::apply<1>(p);
}
