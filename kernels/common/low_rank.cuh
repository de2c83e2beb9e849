// The low-rank branches of a linear, side by side: its own, and the updates attached to it (LoRAs), each a part.
//   lora[m,r]  = strength * sum_k h[m,k] down[r,k]    for the ranks r of the part
//   y[m,n]    += sum_r lora[m,r] up[n,r]              for the columns n that the part covers
// The ranks of a part are a multiple of 16 and follow those of the part before.
#pragma once

#include "types.cuh"

constexpr int MAX_PARTS = 16;

// How a part projects down.
struct DownPart {
    const void* down;  // [ranks, k] bf16
    float strength;
    int end;  // the rank after its last
};

// How it projects up.
struct UpPart {
    const void* up;   // [last - first, ranks] bf16
    int end;          // the rank after its last
    int first, last;  // columns that it covers
};

namespace low_rank {

// Finds the part of a block of 16 ranks, for blocks in ascending order.
struct Cursor {
    int part = 0, begin = 0;  // the part, and its first rank

    template <class Part>
    __device__ __forceinline__ const Part& at(const Part* parts, int rank) {
        while (rank >= parts[part].end) begin = parts[part++].end;
        return parts[part];
    }
};

}  // namespace low_rank
