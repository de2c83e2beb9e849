// The kernels of one FLUX.1-dev step in their order, over and over for seconds: what the chip sustains
// when it is warm and at its power limit. Data are random and each kernel has its own; modulation, embeddings and the
// last layer (under one percent of the work) are left out.
#pragma once

#include "attention.cuh"
#include "gemm_w4a8.cuh"
#include "quantize.cuh"

namespace test_step {

// One stream of tokens through the linears of a block.
struct Stream {
    test_quantize::Data normed, plain;
    test_gemm::Data qkv, out, fc1, fc2;
    GemmParams p_qkv, p_out, p_fc1, p_fc2;
    Buffer<bf16> lora;

    explicit Stream(int m)
        : normed(m, 3072, 32, true),
          plain(m, 3072, 32, false),
          qkv({m, 9216, 3072, 32, QKV, false, 0}),
          out({m, 3072, 3072, 32, ADD, false, 0}),
          fc1({m, 12288, 3072, 32, GELU, false, 32}),
          fc2({m, 3072, 12288, 32, ADD, true, 0}),
          p_qkv(qkv.params()),
          p_out(out.params()),
          p_fc1(fc1.params()),
          p_fc2(fc2.params()),
          lora(size_t(m) * 32) {}

    void before_attention() {
        test_quantize::launch(normed.p);
        test_gemm::launch(qkv.c, p_qkv);
    }
    void after_attention() {
        test_quantize::launch(plain.p);
        test_gemm::launch(out.c, p_out);
        test_quantize::launch(normed.p);
        test_gemm::launch(fc1.c, p_fc1);
        const int count = fc1.c.m * 32;
        sum_low_rank<<<(count / 4 + 255) / 256, 256>>>(fc1.next_lora, lora, 48, count);
        test_gemm::launch(fc2.c, p_fc2);
    }
};

inline void run(int pixels, double seconds) {
    const int patches = pixels / 16 * (pixels / 16), tokens = patches + 512;
    Stream image(patches), text(512), both(tokens);
    Buffer<bf16> qkv(size_t(tokens) * 9216), attended(size_t(tokens) * 3072);
    fill(qkv, 41, 0, 1.0f);
    AttentionParams p = test_attention::params(qkv, attended, tokens, 24);
    auto step = [&](int) {
        for (int block = 0; block < 19; ++block) {
            image.before_attention(), text.before_attention();
            test_attention::launch(p);
            image.after_attention(), text.after_attention();
        }
        for (int block = 0; block < 38; ++block) {
            both.before_attention();
            test_attention::launch(p);
            both.after_attention();
        }
    };
    const double first = time_ms(step, 1, 3);
    const int batch = std::max(1, int(seconds * 1000 / 6 / first));
    std::printf("time   a step's kernels at %d x %d, %.1f s on end: %.2f ms a step, at first %.2f\n", pixels, pixels,
                seconds, time_ms(step, batch, 3), first);
    std::fflush(stdout);
}

}  // namespace test_step
