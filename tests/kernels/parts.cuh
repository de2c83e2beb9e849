// Low-rank branches of a linear under test: its own, then updates.
#pragma once

#include "common/low_rank.cuh"
#include "harness.cuh"

// One part: its rank, its strength, and the columns that it covers, all by default.
struct TestPart {
    int rank;
    float strength = 1;
    int first = 0, last = 1 << 30;
};
using Parts = std::vector<TestPart>;

inline int rank_of(const Parts& parts) {
    int rank = 0;
    for (const TestPart& part : parts) rank += part.rank;
    return rank;
}

// Of every rank of all parts.
inline std::vector<float> strengths_of(const Parts& parts) {
    std::vector<float> out;
    for (const TestPart& part : parts) out.insert(out.end(), part.rank, part.strength);
    return out;
}

inline std::string text_of(const Parts& parts) {
    std::string text;
    for (const TestPart& part : parts) text += (text.empty() ? "r" : "+") + std::to_string(part.rank);
    return text;
}

// The parts of `down`, [rank of all, k] one after the other.
inline void set_down(DownPart (&to)[MAX_PARTS], const Parts& parts, const bf16* down, int k) {
    int end = 0;
    for (size_t i = 0; i < parts.size(); ++i) {
        to[i].down = down + size_t(end) * k;
        to[i].strength = parts[i].strength;
        to[i].end = end += parts[i].rank;
    }
}

// The parts of `up`, [n, rank] of one after the other, each with the rows that it covers.
inline void set_up(UpPart (&to)[MAX_PARTS], const Parts& parts, const bf16* up, int n) {
    int end = 0;
    for (size_t i = 0; i < parts.size(); ++i) {
        to[i].first = parts[i].first, to[i].last = std::min(parts[i].last, n);
        to[i].up = up + size_t(end) * n + size_t(to[i].first) * parts[i].rank;
        to[i].end = end += parts[i].rank;
    }
}

// Element (column, rank among all) of such an `up`, 0 where its part does not cover the column.
template <class T>
float up_at(const Parts& parts, const std::vector<T>& up, int n, int column, int r) {
    size_t end = 0;
    for (const TestPart& part : parts) {
        if (r < part.rank) {
            const bool covered = part.first <= column && column < std::min(part.last, n);
            return covered ? to_float(up[end * n + size_t(column) * part.rank + r]) : 0.0f;
        }
        r -= part.rank, end += part.rank;
    }
    return 0;
}

// Parts of linears on Hopper, which read up and down through maps in global memory, 2 * MAX_PARTS of them.
template <class Params>
void set_parts_sm90(Params& p, const Buffer<TensorMap>& maps, const Parts& parts, const bf16* up, const Parts& next,
                    const bf16* down, int n, int box_rows) {
    set_up(p.parts, parts, up, n);
    set_down(p.next_parts, next, down, n);
    std::vector<TensorMap> host(2 * MAX_PARTS);
    for (size_t i = 0; i < parts.size(); ++i) {
        UpPart& part = p.parts[i];
        if (parts[i].rank) host[i] = map_up(part.up, part.last - part.first, parts[i].rank, box_rows);
        part.up = maps + i;
    }
    for (size_t i = 0; i < next.size(); ++i) {
        DownPart& part = p.next_parts[i];
        if (next[i].rank) host[MAX_PARTS + i] = map_bf16(part.down, next[i].rank, n, 16);
        part.down = maps + MAX_PARTS + i;
    }
    CUDA(cudaMemcpy(maps, host.data(), host.size() * sizeof(TensorMap), cudaMemcpyHostToDevice));
    p.rank = rank_of(parts), p.next_rank = rank_of(next);
}
