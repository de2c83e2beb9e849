// What the kernel tests share: device buffers, random data with outlier channels, tensor maps, comparisons, timing.
#pragma once

#include <cuda.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "common/types.cuh"

#define CUDA(call)                                                                                   \
    do {                                                                                             \
        cudaError_t e_ = (call);                                                                     \
        if (e_ != cudaSuccess) {                                                                     \
            std::printf("FAILED %s:%d %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(e_)); \
            std::exit(1);                                                                            \
        }                                                                                            \
    } while (0)

inline int failures = 0;
inline bool checks_only = false;  // nothing large, no timing: for compute-sanitizer

inline void report(bool ok, const char* what) {
    std::printf("%s %s\n", ok ? "ok    " : "FAILED", what);
    std::fflush(stdout);
    failures += !ok;
}

// ---- device memory --------------------------------------------------------------------------------------------------

// Begins poisoned: NaN as floats, 0xff as codes.
template <class T>
struct Buffer {
    T* data = nullptr;
    size_t count = 0;

    explicit Buffer(size_t n) : count(n) {
        CUDA(cudaMalloc(&data, n * sizeof(T)));
        poison();
    }
    Buffer(const Buffer&) = delete;
    ~Buffer() { cudaFree(data); }
    operator T*() const { return data; }
    void poison() { CUDA(cudaMemset(data, 0xff, count * sizeof(T))); }
    std::vector<T> host() const {
        std::vector<T> out(count);
        CUDA(cudaMemcpy(out.data(), data, count * sizeof(T), cudaMemcpyDeviceToHost));
        return out;
    }
};

// ---- random data
// ------------------------------------------------------------------------------------------------------

__host__ __device__ inline u32 hash(u32 x) {
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15;
    x *= 0x846ca68bu;
    return x ^ (x >> 16);
}

// Roughly normal, in -3.5 .. 3.5.
__host__ __device__ inline float gauss(u32 seed, size_t i) {
    u32 a = hash(static_cast<u32>(i) * 2654435761u + seed * 977u + 12345u + static_cast<u32>(i >> 32)),
        b = hash(a + 77u);
    float sum = (a & 0xffff) + (a >> 16) + (b & 0xffff) + (b >> 16);
    return (sum / 65536.0f - 2.0f) * 1.7320508f;
}

template <class T>
__device__ T from_float(float v) {
    return static_cast<T>(v);
}
template <>
__device__ inline bf16 from_float<bf16>(float v) {
    return __float2bfloat16(v);
}
template <>
__device__ inline __half from_float<__half>(float v) {
    return __float2half(v);
}
template <>
__device__ inline signed char from_float<signed char>(float v) {
    return static_cast<signed char>(rintf(fminf(fmaxf(v, -127.0f), 127.0f)));
}
template <>
__device__ inline u8 from_float<u8>(float v) {
    return static_cast<u8>(rintf(fminf(fabsf(v), 255.0f)));
}

template <class T>
__global__ void fill_kernel(T* out, size_t n, u32 seed, float mean, float deviation, int outlier_period, int columns) {
    for (size_t i = blockIdx.x * 256ull + threadIdx.x; i < n; i += gridDim.x * 256ull) {
        float v = mean + deviation * gauss(seed, i);
        if (outlier_period && (i % columns) % outlier_period == 5) v *= 20.0f;
        out[i] = from_float<T>(v);
    }
}

// Normal values; every `outlier_period`-th column is 20 times as large.
template <class T>
void fill(const Buffer<T>& b, u32 seed, float mean, float deviation, int outlier_period = 0, int columns = 1) {
    fill_kernel<<<1024, 256>>>(b.data, b.count, seed, mean, deviation, outlier_period, columns);
    CUDA(cudaGetLastError());
}

// ---- tensor maps
// ------------------------------------------------------------------------------------------------------

// Of a tensor of `sizes` elements, the innermost first, with `strides` bytes between those of each other dimension.
inline TensorMap tensor_map(CUtensorMapDataType type, const void* data, const std::vector<cuuint64_t>& sizes,
                            const std::vector<cuuint64_t>& strides, const std::vector<cuuint32_t>& box,
                            CUtensorMapSwizzle swizzle = CU_TENSOR_MAP_SWIZZLE_128B) {
    static auto encode = [] {
        void* f = nullptr;
        cudaDriverEntryPointQueryResult found;
        CUDA(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &f, 12000, cudaEnableDefault, &found));
        return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(f);
    }();
    TensorMap map;
    static_assert(sizeof(map) == sizeof(CUtensorMap));
    const std::vector<cuuint32_t> step(sizes.size(), 1);
    CUresult r = encode(reinterpret_cast<CUtensorMap*>(&map), type, sizes.size(), const_cast<void*>(data), sizes.data(),
                        strides.data(), box.data(), step.data(), CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
                        CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (r != CUDA_SUCCESS) {
        std::printf("FAILED cuTensorMapEncodeTiled: %d (%llu x %llu, box %u x %u)\n", r, u64(sizes[1]), u64(sizes[0]),
                    box[1], box[0]);
        std::exit(1);
    }
    return map;
}

inline TensorMap map_bf16(const void* data, u64 rows, u64 columns, u32 box_rows) {
    return tensor_map(CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, data, {columns, rows}, {2 * columns}, {64, box_rows});
}
inline TensorMap map_bytes(const void* data, u64 rows, u64 columns, u32 box_rows) {
    return tensor_map(CU_TENSOR_MAP_DATA_TYPE_UINT8, data, {columns, rows}, {columns}, {128, box_rows});
}

// ---- determinism
// ------------------------------------------------------------------------------------------------------

// What a kernel wrote, to compare runs bit for bit.
struct Bits {
    std::vector<u8> bytes;

    template <class T>
    void add(const Buffer<T>& b) {
        size_t at = bytes.size(), size = b.count * sizeof(T);
        bytes.resize(at + size);
        CUDA(cudaMemcpy(bytes.data() + at, b.data, size, cudaMemcpyDeviceToHost));
    }
};

inline void same_bits(const Bits& first, const Bits& second) {
    if (first.bytes != second.bytes) report(false, "the second run differs");
}

// ---- comparison and timing
// ----------------------------------------------------------------------------------------------

inline float to_float(float v) {
    return v;
}
inline float to_float(bf16 v) {
    u16 bits;
    std::memcpy(&bits, &v, 2);
    u32 wide = static_cast<u32>(bits) << 16;
    float out;
    std::memcpy(&out, &wide, 4);
    return out;
}

// Largest |a - b| / (|b| + floor * rms(b)) and |a-b|_2 / |b|_2. NaN counts as infinite.
struct Difference {
    double worst = 0, relative = 0;
};

template <class A, class B>
Difference compare(const std::vector<A>& a, const std::vector<B>& b, double floor = 0.05) {
    double square = 0, error = 0;
    for (const B& v : b) square += double(to_float(v)) * to_float(v);
    double rms = std::sqrt(square / std::max<size_t>(1, b.size()));
    Difference d;
    for (size_t i = 0; i < a.size(); ++i) {
        double delta = std::abs(double(to_float(a[i])) - to_float(b[i]));
        if (!(delta == delta)) delta = INFINITY;
        error += delta * delta;
        d.worst = std::max(d.worst, delta / (std::abs(double(to_float(b[i]))) + floor * rms + 1e-30));
    }
    d.relative = std::sqrt(error / (square + 1e-30));
    return d;
}

// Milliseconds a launch: median over batches of several, after a warm-up.
inline double time_ms(const std::function<void(int)>& launch, int batch = 8, int batches = 12) {
    cudaEvent_t begin, end;
    CUDA(cudaEventCreate(&begin));
    CUDA(cudaEventCreate(&end));
    std::vector<double> times;
    for (int b = -3; b < batches; ++b) {
        CUDA(cudaEventRecord(begin));
        for (int i = 0; i < batch; ++i) launch(i);
        CUDA(cudaEventRecord(end));
        CUDA(cudaEventSynchronize(end));
        float ms;
        CUDA(cudaEventElapsedTime(&ms, begin, end));
        if (b >= 0) times.push_back(ms / batch);
    }
    CUDA(cudaGetLastError());
    CUDA(cudaEventDestroy(begin));
    CUDA(cudaEventDestroy(end));
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
}

template <class Kernel>
void allow_smem(Kernel kernel, int bytes) {
    if (ARCH < 800 && bytes > 65536) report(false, "a block of sm_75 has no more than 64 KB of shared memory");
    CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
}
