// The first half of a low-rank branch on Hopper:
//   project_down       lora[m,r] = strength * sum_k h[m,k] down[r,k]    for the ranks r of every part
//   sum_low_rank_sm90  the same from what a linear before a GELU leaves: see low_rank_sm90.cuh
//
// A CTA of project_down multiplies a tile of 128 rows x up to BN ranks over a share of K: one warp keeps a ring of shared
// memory filled by the copy engine, two warpgroups multiply, 64 rows each. The CTAs of a cluster have the shares of one
// tile; each then adds up some of its rows through all their shared memories, in the order of K: results do not depend
// on timing.
//
// Launch with Shape<BN>::THREADS, Shape<BN>::SMEM_BYTES of shared memory, and as CTAs, along x, SHARES for every 128
// rows and, along y, one for every `tile` ranks, which cuts no box of a part. k is a multiple of 64, ranks of 16;
// pointers are aligned to 16 bytes.
#include "common/low_rank_sm90.cuh"

struct ProjectDownParams {
    TensorMap h;     // [m, k] bf16; box 128 rows x 64
    bf16* lora;      // [m, rank]
    int m, k, rank;  // rank: of all parts
    int tile;        // a multiple of 16, at most BN
    DownMap parts[MAX_PARTS];  // boxes of 16 or 32 ranks, without a rest
};

namespace project_down {

constexpr int BM = 128, CONSUMERS = 256;

template <int RANKS>
struct Shape {
    static constexpr int BN = RANKS;
    // A wide tile takes two products of half its ranks each, and more registers for sums than 288 threads can have.
    static constexpr bool WIDE = BN > 256;
    static constexpr int PRODUCTS = WIDE ? 2 : 1, N = BN / PRODUCTS;
    static constexpr int THREADS = WIDE ? 384 : CONSUMERS + 32;
    static constexpr int SLOT_BYTES = (BM + BN) * 128, STAGES = BN <= 64 || (BN > 128 && !WIDE) ? 4 : 3;
    static constexpr int CTAS = BN <= 128 ? 2 : 1;  // on an SM
    // Rows of sums, which take the ring's place, are padded against bank conflicts.
    static constexpr int PITCH = BN + 8, SUM_BYTES = BM * PITCH * 4;
    static constexpr int RING_BYTES = STAGES * SLOT_BYTES, TILE_BYTES = RING_BYTES > SUM_BYTES ? RING_BYTES : SUM_BYTES;
    // The ring or the sums, the ring's barriers, and the strengths of blocks of 16 ranks.
    static constexpr int SMEM_BYTES = TILE_BYTES + 2 * 8 * STAGES + BN / 16 * 4;
    static_assert(CTAS * (SMEM_BYTES + 1024) <= 233472, "shared memory of an SM");
};

// What a CTA works on.
struct Work {
    int m0, r0, ranks;  // its tile
    int first, last;    // its blocks of 64 channels

    __device__ static Work make(const ProjectDownParams& p, int share, int shares) {
        const int r0 = blockIdx.y * p.tile, blocks = p.k / 64;
        return {static_cast<int>(blockIdx.x) / shares * BM, r0, min(p.tile, p.rank - r0), blocks * share / shares,
                blocks * (share + 1) / shares};
    }
};

// By all lanes of a warp: one loads rows of h, others a box of `down`.
template <class S>
__device__ __forceinline__ void produce(const ProjectDownParams& p, const Work& work, u32 slots, u32 full, u32 empty,
                                        float* strengths) {
    const int lane = threadIdx.x % 32, blocks = work.ranks / 16;
    const TensorMap* map = &p.h;
    int row = work.m0;
    u32 to = 0;
    bool loads = lane == blocks;
    if (lane < blocks) {
        low_rank::Cursor cursor;
        const DownMap& part = cursor.at(p.parts, work.r0 + 16 * lane);
        strengths[lane] = part.strength;
        map = &part.down;
        row = work.r0 + 16 * lane - cursor.begin;
        to = (BM + 16 * lane) * 128;
        loads = row % part.box == 0;
    }
    sm90::Ring<S::STAGES> ring;
    for (int block = work.first; block < work.last; ++block) {
        const u32 slot = slots + ring.stage * S::SLOT_BYTES, bar = full + 8 * ring.stage;
        sm90::barrier_wait(empty + 8 * ring.stage, ring.parity ^ 1);
        if (lane == 0) sm90::barrier_expect(bar, (BM + work.ranks) * 128);
        __syncwarp();
        if (loads) sm90::load_2d(slot + to, *map, bar, 64 * block, row);
        ring.advance();
    }
}

// A warpgroup's 64 rows of the tile, over the CTA's share of K.
template <class S>
__device__ __forceinline__ void multiply(float (&v)[S::PRODUCTS][S::N / 2], const Work& work, u32 slots, u32 full,
                                         u32 empty) {
    const int warpgroup = threadIdx.x / 128;
    sm90::Ring<S::STAGES> ring, held;
    auto release = [&] {
        if (threadIdx.x % 32 == 0) sm90::barrier_arrive(empty + 8 * held.stage);
        held.advance();
    };
#pragma unroll
    for (int n = 0; n < S::PRODUCTS; ++n)
#pragma unroll
        for (int i = 0; i < S::N / 2; ++i) v[n][i] = 0.0f;
    for (int block = work.first; block < work.last; ++block) {
        const u32 x = slots + ring.stage * S::SLOT_BYTES;
        sm90::barrier_wait(full + 8 * ring.stage, ring.parity);
        ring.advance();
        wgmma::fence();
#pragma unroll
        for (int n = 0; n < S::PRODUCTS; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                wgmma::mma_bf16(v[n], wgmma::k_major(x + warpgroup * 64 * 128) + 2 * i,
                                wgmma::k_major(x + (BM + n * S::N) * 128) + 2 * i, 1);
            }
        }
        wgmma::commit();
        if (block > work.first) {
            wgmma::wait<1>();
            release();
        }
    }
    wgmma::wait<0>();
#pragma unroll
    for (int n = 0; n < S::PRODUCTS; ++n) wgmma::pin(v[n]);
}

template <class S>
__device__ __forceinline__ void leave_sums(const float (&v)[S::PRODUCTS][S::N / 2], float* sums) {
    const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4;
    float* to = sums + row * S::PITCH + 2 * (threadIdx.x % 4);
#pragma unroll
    for (int j = 0; j < S::BN / 8; ++j) {
        const float* from = &v[j / (S::N / 8)][4 * (j % (S::N / 8))];
        *reinterpret_cast<float2*>(to + 8 * j) = make_float2(from[0], from[1]);
        *reinterpret_cast<float2*>(to + 8 * S::PITCH + 8 * j) = make_float2(from[2], from[3]);
    }
}

// This CTA's rows of the tile, eight ranks a thread, from the sums of all shares.
template <class S, int SHARES>
__device__ __forceinline__ void add_shares(const ProjectDownParams& p, const Work& work, int share, u32 sums,
                                           const float* strengths) {
    const int row0 = BM * share / SHARES, rows = min(BM * (share + 1) / SHARES, p.m - work.m0) - row0;
    const int pieces = work.ranks / 8;
    for (int i = threadIdx.x; i < rows * pieces; i += CONSUMERS) {
        const int row = row0 + i / pieces, piece = i % pieces;
        const u32 at = sums + (row * S::PITCH + 8 * piece) * 4;
        float total[8] = {};
#pragma unroll
        for (int from = 0; from < SHARES; ++from) {
            const u32 there = sm90::in_cluster(at, from);
            const float4 a = sm90::load_cluster(there), b = sm90::load_cluster(there + 16);
            const float v[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
            for (int c = 0; c < 8; ++c) total[c] += v[c];
        }
        const float s = strengths[piece / 2];
        const uint4 out = make_uint4(pack_bf16(s * total[0], s * total[1]), pack_bf16(s * total[2], s * total[3]),
                                     pack_bf16(s * total[4], s * total[5]), pack_bf16(s * total[6], s * total[7]));
        *reinterpret_cast<uint4*>(p.lora + static_cast<long long>(work.m0 + row) * p.rank + work.r0 + 8 * piece) = out;
    }
}

template <int BN, int SHARES>
__device__ __forceinline__ void run(const ProjectDownParams& p) {
    using S = Shape<BN>;
    extern __shared__ __align__(1024) unsigned char shared_bytes[];
    const u32 slots = sm90::smem_addr(shared_bytes);
    const u32 full = slots + S::TILE_BYTES, empty = full + 8 * S::STAGES;
    float* const sums = reinterpret_cast<float*>(shared_bytes);
    float* const strengths = sums + (empty + 8 * S::STAGES - slots) / 4;
    const int share = sm90::cluster_rank();
    const Work work = Work::make(p, share, SHARES);

    if (threadIdx.x == 0) {
        for (int s = 0; s < S::STAGES; ++s) {
            sm90::barrier_init(full + 8 * s, 1);
            sm90::barrier_init(empty + 8 * s, CONSUMERS / 32);
        }
        sm90::barrier_init_fence();
    }
    __syncthreads();
    if (threadIdx.x >= CONSUMERS) {
        if constexpr (S::WIDE) sm90::give_registers<24>();
        if (threadIdx.x < CONSUMERS + 32) produce<S>(p, work, slots, full, empty, strengths);
        __syncwarp();
        sm90::cluster_sync();
    } else {
        if constexpr (S::WIDE) sm90::take_registers<240>();
        float v[S::PRODUCTS][S::N / 2];
        multiply<S>(v, work, slots, full, empty);
        named_sync(1, CONSUMERS);  // both warpgroups are done with the ring
        leave_sums<S>(v, sums);
        sm90::cluster_sync();
        add_shares<S, SHARES>(p, work, share, slots, strengths);
    }
    // No CTA may leave while another still reads its sums.
    sm90::cluster_sync();
}

}  // namespace project_down

// For up to BN ranks a tile, and so many shares: fewer where there are many tiles.
#define SVDQ_PROJECT_DOWN(NAME, BN, SHARES)                                                \
    extern "C" __global__ void __cluster_dims__(SHARES)                                    \
        __launch_bounds__(project_down::Shape<BN>::THREADS, project_down::Shape<BN>::CTAS) \
            NAME(const __grid_constant__ ProjectDownParams p) {                            \
        project_down::run<BN, SHARES>(p);                                                  \
    }

SVDQ_PROJECT_DOWN(project_down_64_2_sm90, 64, 2)
SVDQ_PROJECT_DOWN(project_down_64_3_sm90, 64, 3)
SVDQ_PROJECT_DOWN(project_down_64_8_sm90, 64, 8)
SVDQ_PROJECT_DOWN(project_down_128_2_sm90, 128, 2)
SVDQ_PROJECT_DOWN(project_down_128_3_sm90, 128, 3)
SVDQ_PROJECT_DOWN(project_down_192_2_sm90, 192, 2)
SVDQ_PROJECT_DOWN(project_down_192_3_sm90, 192, 3)
SVDQ_PROJECT_DOWN(project_down_256_2_sm90, 256, 2)
SVDQ_PROJECT_DOWN(project_down_256_3_sm90, 256, 3)
SVDQ_PROJECT_DOWN(project_down_416_3_sm90, 416, 3)

struct SumLowRankParams {
    const float* sums;  // of every slot, as low_rank::Sums has them
    bf16* lora;         // [m, rank]
    int slots, m, rank;
    DownPart parts[MAX_PARTS];
};

// lora[m,r] = strength * sum_s sums[s,m,r], four of them a thread.
extern "C" __global__ void __launch_bounds__(256) sum_low_rank_sm90(const __grid_constant__ SumLowRankParams p) {
    const int count = ceil_div(p.m, 8) * 8 * p.rank, i = 4 * (blockIdx.x * 256 + threadIdx.x);
    if (i >= count) return;
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    for (int s = 0; s < p.slots; ++s) {
        const float4 v = __ldg(reinterpret_cast<const float4*>(p.sums + static_cast<long long>(s) * count + i));
        sum = make_float4(sum.x + v.x, sum.y + v.y, sum.z + v.z, sum.w + v.w);
    }
    const int block = i / (8 * p.rank), place = i % (8 * p.rank), row = 8 * block + place % 128 / 16;
    if (row >= p.m) return;
    const int r = place / 128 * 16;
    const float strength = low_rank::Cursor{}.at(p.parts, r).strength;
    u32* const to = reinterpret_cast<u32*>(p.lora + static_cast<long long>(row) * p.rank + r) + place % 16 / 4;
    to[0] = pack_bf16(strength * sum.x, strength * sum.y);
    to[4] = pack_bf16(strength * sum.z, strength * sum.w);
}
