// The kernels of one FLUX.1-dev step in their order, over and over for seconds: what the chip sustains
// when it is warm and at its power limit. Data are random and each kernel has its own; modulation, embeddings and the
// last layer (under one percent of the work) are left out.
#pragma once

#include "attention.cuh"
#include "gemm_w4a8.cuh"
#include "project_down.cuh"
#include "quantize.cuh"

namespace test_step {

// One stream of tokens through the linears of a block.
struct Stream {
    test_quantize::Data normed, plain;
    test_project_down::Data down;
    ProjectDownParams p_normed, p_plain;
    test_project_down::Grid down_grid;
    test_gemm::Data qkv, out, fc1, fc2;
    GemmParams p_qkv, p_out, p_fc1, p_fc2;
    Buffer<bf16> lora;

    Stream(int m, const Parts& parts)
        : normed(m, 3072, parts, true),
          plain(m, 3072, parts, false),
          down(m, 3072, parts),
          p_normed(down.p),
          p_plain(down.p),
          down_grid(test_project_down::Grid::of(m, rank_of(parts))),
          qkv({m, 9216, 3072, parts, QKV, false, {}}),
          out({m, 3072, 3072, parts, ADD, false, {}}),
          fc1({m, 12288, 3072, parts, GELU, false, parts}),
          fc2({m, 3072, 12288, parts, ADD, true, {}}),
          p_qkv(qkv.params()),
          p_out(out.params()),
          p_fc1(fc1.params()),
          p_fc2(fc2.params()),
          lora(size_t(m) * rank_of(parts)) {
        p_normed.h = map_bf16(normed.h, m, 3072, 128);
        p_plain.h = map_bf16(plain.x, m, 3072, 128);
    }

    void quantise(const test_quantize::Data& x, const ProjectDownParams& p) {
        test_quantize::launch(x.p);
        test_project_down::launch(p, down_grid);
    }
    void before_attention() {
        quantise(normed, p_normed);
        test_gemm::launch(qkv.c, p_qkv);
    }
    void after_attention() {
        quantise(plain, p_plain);
        test_gemm::launch(out.c, p_out);
        quantise(normed, p_normed);
        test_gemm::launch(fc1.c, p_fc1);
        test_project_down::launch_sums(fc1.next_lora, lora, fc1.c.grid().slots, fc1.c.m, fc1.c.next_parts);
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
