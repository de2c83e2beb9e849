// Low-rank branches of a linear under test: its own, then updates.
#pragma once

#include <numeric>

#include "common/low_rank_sm90.cuh"
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

// How many clusters of a GELU linear on Hopper are launched, of 66 at most, and the slots of what it projects down: as few
// of these as can be without one more tile for any cluster.
struct GeluGrid {
    int clusters, slots;

    static GeluGrid of(int m, int n) {
        const int pairs = (m + 255) / 256, across = (n + 255) / 256, tiles = pairs * across;
        const int rounds = (tiles + 65) / 66;
        GeluGrid best{0, tiles + 1};
        for (int c = (tiles + rounds - 1) / rounds; c <= std::min(66, tiles); ++c) {
            if (slots_of(c, m, n) <= best.slots) best = {c, slots_of(c, m, n)};
        }
        return best;
    }
    static int slots_of(int clusters, int m, int n) {
        return std::min(clusters / std::gcd(clusters, (m + 255) / 256), (n + 255) / 256);
    }
};

// Where a linear on Hopper leaves the sum of (row, rank) in a slot, and the floats of a slot, as low_rank_sm90.cuh has them.
inline size_t place_sm90(int row, int r, int rank) {
    const int in_block = r % 8 / 2 * 4 + r % 16 / 8 * 2 + r % 2;
    return size_t(row / 8) * 8 * rank + r / 16 * 128 + row % 8 * 16 + in_block;
}
inline size_t slot_sm90(int m, int rank) {
    return size_t((m + 7) / 8) * 8 * rank;
}

// The same through maps, for Hopper.
inline void set_down(DownMap (&to)[MAX_PARTS], const Parts& parts, const bf16* down, int k) {
    DownPart plain[MAX_PARTS] = {};
    set_down(plain, parts, down, k);
    for (size_t i = 0; i < parts.size(); ++i) {
        to[i].box = plain[i].end % 32 == 0 && parts[i].rank % 32 == 0 ? 32 : 16;
        if (parts[i].rank) to[i].down = map_bf16(plain[i].down, parts[i].rank, k, to[i].box);
        to[i].strength = plain[i].strength, to[i].end = plain[i].end;
    }
}

inline void set_up(UpMap (&to)[MAX_PARTS], const Parts& parts, const bf16* up, int n, int box_rows) {
    UpPart plain[MAX_PARTS] = {};
    set_up(plain, parts, up, n);
    for (size_t i = 0; i < parts.size(); ++i) {
        const UpPart& part = plain[i];
        if (parts[i].rank) to[i].up = map_bf16(part.up, part.last - part.first, parts[i].rank, box_rows);
        to[i].end = part.end, to[i].first = part.first, to[i].last = part.last;
    }
}
