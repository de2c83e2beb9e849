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
        const int down = (m + 127) / 128;
        auto tile_of = [&](int across) { return ((rank + across - 1) / across + 31) / 32 * 32; };
        auto grid = [](int tile, int shares) { return Grid{tile > 256 ? 416 : (tile + 63) / 64 * 64, tile, shares}; };
        for (int shares : {3, 2}) {
            const int across = 132 / (down * shares);
            if (across == 0 || tile_of(across) > 256) continue;
            const int tile = std::max(tile_of(across), std::min(64, tile_of(1)));
            const bool many = tile <= 64 && down * ((rank + tile - 1) / tile) * 8 <= 132;
            return grid(tile, many ? 8 : shares);
        }
        return grid(tile_of((rank + 415) / 416), 3);
    }
};

struct Entry {
    void (*kernel)(ProjectDownParams);
    int smem, threads;
};

template <int BN>
Entry entry(void (*kernel)(ProjectDownParams)) {
    using Shape = project_down::Shape<BN>;
    return {kernel, Shape::SMEM_BYTES, Shape::THREADS};
}

inline Entry entry(const Grid& grid) {
    switch (10 * grid.bn + grid.shares) {
        case 642:
            return entry<64>(project_down_64_2_sm90);
        case 643:
            return entry<64>(project_down_64_3_sm90);
        case 648:
            return entry<64>(project_down_64_8_sm90);
        case 1282:
            return entry<128>(project_down_128_2_sm90);
        case 1283:
            return entry<128>(project_down_128_3_sm90);
        case 1922:
            return entry<192>(project_down_192_2_sm90);
        case 1923:
            return entry<192>(project_down_192_3_sm90);
        case 2562:
            return entry<256>(project_down_256_2_sm90);
        case 2563:
            return entry<256>(project_down_256_3_sm90);
        default:
            return entry<416>(project_down_416_3_sm90);
    }
}

inline void launch(ProjectDownParams p, const Grid& grid) {
    const Entry e = entry(grid);
    p.tile = grid.tile;
    allow_smem(e.kernel, e.smem);
    const dim3 blocks(grid.shares * ((p.m + 127) / 128), (p.rank + grid.tile - 1) / grid.tile);
    e.kernel<<<blocks, e.threads, e.smem>>>(p);
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
        set_down(p.parts, parts, down.data, k);
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

inline void launch_sums(const float* sums, bf16* lora, int slots, int m, const Parts& parts) {
    SumLowRankParams p{sums, lora, slots, m, rank_of(parts), {}};
    set_down(p.parts, parts, nullptr, 0);
    const int threads = slot_sm90(m, p.rank) / 4;
    sum_low_rank_sm90<<<(threads + 255) / 256, 256>>>(p);
    CUDA(cudaGetLastError());
}

// What a linear before a GELU leaves, added up.
inline void check_sums(int m, const Parts& parts, int slots) {
    const int rank = rank_of(parts);
    Buffer<float> sums(slots * slot_sm90(m, rank));
    Buffer<bf16> lora(size_t(m) * rank);
    fill(sums, 36, 0, 1);
    launch_sums(sums, lora, slots, m, parts);
    CUDA(cudaDeviceSynchronize());
    const auto all = sums.host();
    const auto found = lora.host();
    const std::vector<float> strengths = strengths_of(parts);
    std::vector<float> got, expected;
    for (int i = 0; i < m * rank; ++i) {
        double sum = 0;
        for (int s = 0; s < slots; ++s) sum += all[s * slot_sm90(m, rank) + place_sm90(i / rank, i % rank, rank)];
        expected.push_back(strengths[i % rank] * sum), got.push_back(to_float(found[i]));
    }
    const Difference diff = compare(got, expected);
    char text[100];
    std::snprintf(text, sizeof text, "sum low rank of %d slots, m%d %s: relative %.1e", slots, m,
                  text_of(parts).c_str(), diff.relative);
    report(diff.relative < 2.5e-3, text);  // bf16 results
}

inline void run() {
    check_sums(7, {{32}, {16, -0.6f}}, 5);
    check_sums(24, {{0}, {16, 3}}, 1);
    for (int m : {1, 300}) {
        for (int shares : {2, 3}) {
            check(m, 832, {{32}, {16, -0.7f}}, {64, 48, shares});
            check(m, 1088, {{0}, {96, 0.3f}, {16, 2}}, {128, 112, shares});
            check(m, 320, {{32}, {128, 0.5f}}, {192, 160, shares});
            check(m, 512, {{32}, {128, 0.5f}, {64, -1}}, {256, 224, shares});
            check(m, 576, {{32}, {128, 0.5f}, {128, -1}, {112, 3}}, {256, 224, shares});
            check(m, 256, Parts(MAX_PARTS, {16, 0.5f}), {128, 128, shares});
        }
        check(m, 64, {{16}}, {64, 32, 8});
        check(m, 1088, {{32}, {16, -0.7f}, {128, 2}}, {64, 64, 8});
        check(m, 640, {{32}, {128, 0.5f}, {128, -1}, {112, 3}}, {416, 416, 3});
        check(m, 640, {{32}, {128, 0.5f}, {128, -1}, {128, 3}, {256, 1.5f}}, {416, 352, 3});
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
    for (const Parts& parts : {Parts{{32}}, Parts{{32}, {128}}}) {
        const int rank = rank_of(parts);
        Buffer<float> sums(7 * slot_sm90(4608, rank));
        Buffer<bf16> lora(4608 * rank);
        fill(sums, 36, 0, 1);
        const double ms = time_ms([&](int) { launch_sums(sums, lora, 7, 4608, parts); });
        std::printf("time   sum_low_rank_sm90 7 x 4608 x %d %8.4f ms\n", rank, ms);
    }
}

}  // namespace test_project_down
