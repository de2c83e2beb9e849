// The time of a whole VAE decode of FLUX.1 at 1024 x 1024: every launch, in order, on random weights.
#pragma once

#include "dense.cuh"
#include "masked_attention.cuh"
#include "norms.cuh"

namespace test_vae {

struct Decoder {
    const test_dense::ConvEntry& conv_entry;
    const test_dense::LinearEntry& linear_entry;
    Buffer<bf16> weights{512 * 9 * 512}, qkv{16384 * 3 * 512};
    Buffer<float> bias{512}, sums{8192 * 64}, affine{1024};
    Buffer<bf16> x{size_t(1) << 28}, h{size_t(1) << 28}, g{size_t(1) << 28};
    Buffer<u8> rgb{3 << 20};

    Decoder(int entry) : conv_entry(test_dense::CONVS[entry]), linear_entry(test_dense::LINEARS[entry]) {
        fill(weights, 71, 0, 0.015f);
        fill(bias, 72, 1, 0.1f);
        fill(x, 73, 0, 1);
    }
    void norm(const bf16* from, bf16* to, int pixels, int c, int silu) {
        GroupNormParams p{from, to, {bias.data, 1}, {bias.data, 1}, sums, affine, pixels, c, 32, silu};
        group_norm_sums<<<(pixels + 127) / 128, 256>>>(p);
        group_norm_affine<<<32, 256>>>(p);
        group_norm_apply<<<132 * 8, 256>>>(p);
    }
    void conv(const bf16* from, bf16* to, int side, int c, int n, const bf16* add = nullptr, int upsample = 0) {
        ConvParams p{from, weights, side, side, c, n, 1, upsample, {}};
        p.output.bias = bias;
        p.output.add = {const_cast<bf16*>(add), 0};
        p.output.out = {to, 0};
        p.output.pitch = n;
        test_dense::launch(conv_entry, p);
    }
    void linear(const bf16* from, bf16* to, int pixels, int c, int n, const bf16* add = nullptr) {
        LinearParams p{from, weights, pixels, n, c, {}};
        p.output.bias = bias;
        p.output.add = {const_cast<bf16*>(add), 0};
        p.output.out = {to, 0};
        p.output.pitch = n;
        test_dense::launch(linear_entry, p);
    }
    void resnet(int side, int c, int n) {
        norm(x, h, side * side, c, 1);
        conv(h, g, side, c, n);
        norm(g, h, side * side, n, 1);
        if (c != n) {
            linear(x, g, side * side, c, n);
            conv(h, x, side, n, n, g);
        } else {
            conv(h, x, side, n, n, x);
        }
    }
    void upsample(int side, int c) {
        conv(x, h, side, c, c, nullptr, 1);
        std::swap(x.data, h.data);
    }
    void attention() {
        norm(x, h, 16384, 512, 0);
        linear(h, qkv, 16384, 512, 1536);
        test_masked_attention::launch(test_masked_attention::WIDE_Q64, {qkv, h, nullptr, 16384, 1, 512, 0, 0.0441942f});
        linear(h, x, 16384, 512, 512, x);
    }
    void run() {
        conv(x, h, 128, 16, 512);
        std::swap(x.data, h.data);
        resnet(128, 512, 512);
        attention();
        resnet(128, 512, 512);
        for (int i = 0; i < 3; ++i) resnet(128, 512, 512);
        upsample(128, 512);
        for (int i = 0; i < 3; ++i) resnet(256, 512, 512);
        upsample(256, 512);
        for (int i = 0; i < 3; ++i) resnet(512, i ? 256 : 512, 256);
        upsample(512, 256);
        for (int i = 0; i < 3; ++i) resnet(1024, i ? 128 : 256, 128);
        norm(x, h, 1 << 20, 128, 1);
        conv(h, g, 1024, 128, 3);
        to_rgb8<<<(3 << 20) / 256, 256>>>({g.data, 0}, rgb, 3 << 20);
        CUDA(cudaGetLastError());
    }
};

inline void run() {
    for (int entry : {0, 1}) {
        Decoder decoder(entry);
        std::printf("time   VAE decode 1024 x 1024 %s %8.3f ms\n", decoder.conv_entry.name,
                    time_ms([&](int) { decoder.run(); }, 1, 8));
    }
}

}  // namespace test_vae
