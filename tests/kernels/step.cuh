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

    Stream(int m, const Parts& parts)
        : normed(m, 3072, parts, true),
          plain(m, 3072, parts, false),
          qkv({m, 9216, 3072, parts, QKV, false, {}}),
          out({m, 3072, 3072, parts, ADD, false, {}}),
          fc1({m, 12288, 3072, parts, GELU, false, parts}),
          fc2({m, 3072, 12288, parts, ADD, true, {}}),
          p_qkv(qkv.params()),
          p_out(out.params()),
          p_fc1(fc1.params()),
          p_fc2(fc2.params()),
          lora(size_t(m) * rank_of(parts)) {}

    void before_attention() {
        test_quantize::launch(normed.p);
        test_gemm::launch(qkv.c, p_qkv);
    }
    void after_attention() {
        test_quantize::launch(plain.p);
        test_gemm::launch(out.c, p_out);
        test_quantize::launch(normed.p);
        test_gemm::launch(fc1.c, p_fc1);
        const int count = fc1.c.m * fc1.c.next_rank();
        sum_low_rank<<<(count / 4 + 255) / 256, 256>>>(fc1.next_lora, lora, 48, count);
        test_gemm::launch(fc2.c, p_fc2);
    }
};

// With these parts in every linear.
inline void run(int pixels, double seconds, const Parts& parts) {
    const int patches = pixels / 16 * (pixels / 16), tokens = patches + 512;
    Stream image(patches, parts), text(512, parts), both(tokens, parts);
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
    std::printf("time   a step's kernels at %d x %d, %s, %.1f s on end: %.2f ms a step, at first %.2f\n", pixels, pixels,
                text_of(parts).c_str(), seconds, time_ms(step, batch, 3), first);
    std::fflush(stdout);
}

}  // namespace test_step
