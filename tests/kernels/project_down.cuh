// project_down_* against the formula, and its speed.
#pragma once

#include "../../kernels/project_down_sm90.cu"
#include "harness.cuh"
#include "parts.cuh"

namespace test_project_down {

// Columns of a tile, ranks of a tile, shares of K.
struct Grid {
    int bn, tile, shares;

    // What the library launches.
    static Grid of(int m, int rank) {
        const int tiles = (rank + 255) / 256, tile = ((rank + tiles - 1) / tiles + 31) / 32 * 32;
        return {(tile + 63) / 64 * 64, tile, (m + 127) / 128 * tiles * 8 <= 132 ? 8 : 3};
    }
};

inline void launch(ProjectDownParams p, const Grid& grid) {
    using Kernel = void (*)(ProjectDownParams);
    const struct {
        Kernel few, many;
        int smem;
    } kernels[] = {
        {project_down_64_8_sm90, project_down_64_3_sm90, project_down::Shape<64>::SMEM_BYTES},
        {project_down_128_8_sm90, project_down_128_3_sm90, project_down::Shape<128>::SMEM_BYTES},
        {project_down_192_8_sm90, project_down_192_3_sm90, project_down::Shape<192>::SMEM_BYTES},
        {project_down_256_8_sm90, project_down_256_3_sm90, project_down::Shape<256>::SMEM_BYTES},
    };
    const auto& entry = kernels[grid.bn / 64 - 1];
    const Kernel kernel = grid.shares == 8 ? entry.few : entry.many;
    p.tile = grid.tile;
    allow_smem(kernel, entry.smem);
    const dim3 blocks(grid.shares * ((p.m + 127) / 128), (p.rank + grid.tile - 1) / grid.tile);
    kernel<<<blocks, project_down::THREADS, entry.smem>>>(p);
    CUDA(cudaGetLastError());
}

struct Data {
    Buffer<bf16> h, down, lora;
    ProjectDownParams p{};

    Data(int m, int k, const Parts& parts)
        : h(size_t(m) * k), down(size_t(rank_of(parts)) * k), lora(size_t(m) * rank_of(parts)) {
        fill(h, 31, 0.3f, 1.0f, 97, k);
        fill(down, 33, 0, 0.05f);
        p.h = map_bf16(h, m, k, 128);
        p.lora = lora;
        p.m = m, p.k = k, p.rank = rank_of(parts);
        set_down(p.parts, parts, down.data, k, 0);
    }
};

inline void check(int m, int k, const Parts& parts, const Grid& grid) {
    Data d(m, k, parts);
    launch(d.p, grid);
    CUDA(cudaDeviceSynchronize());
    const int rank = d.p.rank, step = m > 400 ? 53 : 1;
    const auto h = d.h.host(), down = d.down.host(), lora = d.lora.host();
    const std::vector<float> strengths = strengths_of(parts);
    std::vector<float> got, expected;
    for (int i = 0; i < m; i += step) {
        for (int r = 0; r < rank; ++r) {
            double sum = 0;
            for (int j = 0; j < k; ++j) sum += double(to_float(h[size_t(i) * k + j])) * to_float(down[size_t(r) * k + j]);
            expected.push_back(strengths[r] * sum), got.push_back(to_float(lora[size_t(i) * rank + r]));
        }
    }
    const Difference diff = compare(got, expected);
    char text[200];
    std::snprintf(text, sizeof text, "project down m%d k%d %s, tiles of %d in %d, %d shares: relative %.1e", m, k,
                  text_of(parts).c_str(), grid.tile, grid.bn, grid.shares, diff.relative);
    report(diff.relative < 2.5e-3, text);  // bf16 results
    Bits first, second;
    first.add(d.lora);
    d.lora.poison();
    launch(d.p, grid);
    second.add(d.lora);
    same_bits(first, second);
}

// What a linear before a GELU leaves, added up.
inline void check_sums(int m, int rank, int slots) {
    Buffer<float> sums(size_t(slots) * m * rank);
    Buffer<bf16> lora(size_t(m) * rank);
    fill(sums, 36, 0, 1);
    sum_low_rank_sm90<<<(m * rank / 4 + 255) / 256, 256>>>(sums, lora, slots, m * rank);
    CUDA(cudaDeviceSynchronize());
    const auto all = sums.host();
    const auto found = lora.host();
    std::vector<float> got, expected;
    for (int i = 0; i < m * rank; ++i) {
        double sum = 0;
        for (int s = 0; s < slots; ++s) sum += all[size_t(s) * m * rank + i / rank * rank + place_sm90(i % rank)];
        expected.push_back(sum), got.push_back(to_float(found[i]));
    }
    const Difference diff = compare(got, expected);
    char text[100];
    std::snprintf(text, sizeof text, "sum low rank of %d slots, m%d r%d: relative %.1e", slots, m, rank, diff.relative);
    report(diff.relative < 2.5e-3, text);  // bf16 results
}

inline void run() {
    check_sums(7, 48, 5);
    for (int m : {1, 300}) {
        for (int shares : {3, 8}) {
            check(m, 64, {{16}}, {64, 16, shares});
            check(m, 832, {{32}, {16, -0.7f}}, {64, 48, shares});
            check(m, 1088, {{0}, {96, 0.3f}, {16, 2}}, {128, 112, shares});
            check(m, 320, {{32}, {128, 0.5f}}, {192, 160, shares});
            check(m, 512, {{32}, {128, 0.5f}, {64, -1}}, {256, 224, shares});
            check(m, 576, {{32}, {128, 0.5f}, {128, -1}, {112, 3}}, {256, 224, shares});
            check(m, 256, Parts(MAX_PARTS, {16, 0.5f}), {128, 128, shares});
        }
        check(m, 3072, {{32}}, Grid::of(m, 32));
    }
    if (checks_only) return;
    // The base alone, with one update of all outputs, and with one of q, k and v each.
    for (int m : {4608, 4096, 1536, 512}) {
        for (const Parts& parts : {Parts{{32}}, Parts{{32}, {32}}, Parts{{32}, {32}, {32}, {32}}, Parts{{32}, {128}},
                                   Parts{{32}, {128}, {128}, {128}}}) {
            const Grid grid = Grid::of(m, rank_of(parts));
            if (m == 4608) check(m, 3072, parts, grid);
            Data a(m, 3072, parts), b(m, 3072, parts), c(m, 3072, parts);
            const ProjectDownParams* sets[] = {&a.p, &b.p, &c.p};
            const double ms = time_ms([&](int i) { launch(*sets[i % 3], grid); });
            std::printf("time   project down m%d k3072 %s %8.4f ms %7.1f TF/s\n", m, text_of(parts).c_str(), ms,
                        2.0 * m * 3072 * rank_of(parts) / ms / 1e9);
        }
    }
    for (int rank : {32, 160}) {
        Buffer<float> sums(7ull * 4608 * rank);
        Buffer<bf16> lora(4608 * rank);
        fill(sums, 36, 0, 1);
        const int count = 4608 * rank;
        const double ms = time_ms([&](int) { sum_low_rank_sm90<<<count / 1024, 256>>>(sums, lora, 7, count); });
        std::printf("time   sum_low_rank_sm90 7 x 4608 x %d %8.4f ms\n", rank, ms);
    }
}

}  // namespace test_project_down
