// unpack_w4a8 against the formula, exactly, and its speed.
#pragma once

#include "../../kernels/unpack_w4a8.cu"
#include "gemm_w4a4.cuh"
#include "harness.cuh"

namespace test_unpack {

struct Packed {
    int n, k;
    Buffer<u32> codes;
    Buffer<bf16> scales;
    Buffer<float> ws;
    Buffer<u8> wq;

    Packed(int n, int k) : n(n), k(k), codes(size_t(n) * k / 8), scales(size_t(n) * k / 64), ws(n), wq(size_t(n) * k) {
        fill(scales, 1, 0.01f, 0.002f);
    }
    void fold() const {
        unpack_w4a8_scales<<<n / 128, 128>>>(reinterpret_cast<const uint4*>(codes.data), scales, ws, k);
        CUDA(cudaGetLastError());
    }
    void unpack() const {
        const uint4* from = reinterpret_cast<const uint4*>(codes.data);
        unpack_w4a8<<<dim3(k / 64, n / 128), 256>>>(from, scales, ws, wq, k);
        CUDA(cudaGetLastError());
    }
};

inline void check(int n, int k) {
    std::vector<int> q(size_t(n) * k);
    auto scales = test_gemm_w4a4::values(size_t(n) * k / 64, 2, 0.01f, 0.003f);
    for (size_t i = 0; i < q.size(); ++i) q[i] = i / k == 5 ? 0 : int(hash(i) % 16) - 8;  // row 5 is all zeros
    Packed p(n, k);
    test_gemm_w4a4::upload(p.codes, test_gemm_w4a4::pack_weights(q, n, k).data(), q.size() / 2);
    test_gemm_w4a4::upload(p.scales, test_gemm_w4a4::pack_scales(scales, n, k / 64).data(), scales.size() * 2);
    p.fold();
    p.unpack();
    CUDA(cudaDeviceSynchronize());
    auto ws = p.ws.host();
    auto wq = p.wq.host();
    size_t wrong = 0;
    for (int i = 0; i < n; ++i) {
        auto value = [&](int j) { return q[size_t(i) * k + j] * scales[size_t(i) * (k / 64) + j / 64]; };
        float largest = 0;
        for (int j = 0; j < k; ++j) largest = std::max(largest, std::abs(value(j)));
        float scale = largest / 127;
        wrong += ws[i] != scale;
        for (int j = 0; j < k; ++j) {
            int code = scale > 0 ? int(std::nearbyint(value(j) / scale)) : 0;
            wrong += static_cast<signed char>(wq[size_t(i) * k + j]) != code;
        }
    }
    char text[96];
    std::snprintf(text, sizeof text, "unpack w4a8 n%d k%d: %zu differ", n, k, wrong);
    report(wrong == 0, text);
}

inline void run() {
    check(128, 64);
    check(384, 832);
    if (checks_only) return;
    for (int n : {9216, 3072}) {
        Packed a(n, 3072), b(n, 3072), c(n, 3072);
        const Packed* sets[] = {&a, &b, &c};
        a.fold(), b.fold(), c.fold();
        double ms = time_ms([&](int i) { sets[i % 3]->unpack(); });
        std::printf("time   unpack w4a8 n%d k3072 %8.4f ms %7.1f GB/s\n", n, ms, n * 3072 * 1.5 / ms / 1e6);
    }
}

}  // namespace test_unpack
