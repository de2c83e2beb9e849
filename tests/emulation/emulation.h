// Runs a CUDA kernel on the CPU, a block at a time, with a fibre for each thread. A thread runs until it waits for
// others, so that runs repeat exactly; `launch` runs threads in ascending or descending order.
#pragma once

#include <ucontext.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size)
#define ASAN_UNPOISON_MEMORY_REGION(address, size)
#endif

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};
inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

constexpr int MAX_THREADS = 1024, STACK = 128 << 10;

// The dynamic shared memory of the block that runs; what the launch did not ask for is poisoned.
constexpr size_t MAX_SHARED = 227 << 10;
inline unsigned char* shared;

// What a thread waits for: `count` moves on when it happens.
struct Event {
    unsigned arrived = 0, count = 0;
};

struct Copy {
    void* to;
    const void* from;  // null for zeros
    int group;
};

struct Thread {
    ucontext_t context;
    std::unique_ptr<char[]> stack{new char[STACK]};
    bool done;
    const Event* event;  // waits until its count is no longer `seen`
    unsigned seen;
    int group;  // of copies, that is now open
    std::vector<Copy> copies;
};

// Registers that a lane gives to an operation of its warp, then what it gets.
using Words = std::array<unsigned, 12>;

struct Warp {
    Event event;
    const void* operation;
    std::array<Words, 32> lanes;
};

inline std::vector<Thread> threads(MAX_THREADS);
inline std::array<Warp, MAX_THREADS / 32> warps;
inline std::array<Event, 16> barriers;
inline ucontext_t scheduler;
inline std::function<void()> body;
inline unsigned self;  // the thread that runs

[[noreturn]] inline void fail(const char* what) {
    std::fprintf(stderr, "block %u,%u thread %u: %s\n", blockIdx.x, blockIdx.y, threadIdx.x, what);
    _exit(1);
}

// The last of `expected` threads to come lets all of them go on.
inline void wait(Event& event, unsigned expected, const std::function<void()>& last = [] {}) {
    if (++event.arrived == expected) {
        last();
        event.arrived = 0, ++event.count;
        return;
    }
    Thread& me = threads[self];
    me.event = &event, me.seen = event.count;
    swapcontext(&me.context, &scheduler);
}

// All lanes of the warp come with the same `operation`, and the last turns what they give into what they get.
inline Words exchange(const void* operation, const Words& mine,
                      const std::function<void(std::array<Words, 32>&)>& combine) {
    Warp& warp = warps[self / 32];
    if (warp.event.arrived && warp.operation != operation) fail("the lanes of a warp do different things");
    warp.operation = operation;
    warp.lanes[self % 32] = mine;
    wait(warp.event, 32, [&] { combine(warp.lanes); });
    return warp.lanes[self % 32];
}

inline void enter() {
    body();
    threads[self].done = true;
    swapcontext(&threads[self].context, &scheduler);
}

inline void run_block(bool ascending) {
    const unsigned count = blockDim.x;
    warps = {}, barriers = {};
    for (unsigned i = 0; i < count; ++i) {
        Thread& t = threads[i];
        t.done = false, t.event = nullptr, t.group = 0, t.copies.clear();
        getcontext(&t.context);
        t.context.uc_stack.ss_sp = t.stack.get(), t.context.uc_stack.ss_size = STACK;
        t.context.uc_link = nullptr;
        makecontext(&t.context, enter, 0);
    }
    for (unsigned left = count; left;) {
        bool moved = false;
        for (unsigned i = 0; i < count; ++i) {
            self = ascending ? i : count - 1 - i;
            Thread& t = threads[self];
            if (t.done || (t.event && t.event->count == t.seen)) continue;
            t.event = nullptr, moved = true;
            threadIdx.x = self;
            swapcontext(&scheduler, &t.context);
            left -= t.done;
        }
        if (!moved) fail("waits for threads that do not come");
    }
}

// Runs `kernel` for every block. Shared memory begins as NaN.
inline void launch(dim3 grid, unsigned block, size_t shared_bytes, bool ascending, std::function<void()> kernel) {
    if (!block || block > MAX_THREADS || block % 32 || shared_bytes > MAX_SHARED) fail("no such launch");
    gridDim = grid, blockDim = {block, 1, 1}, body = std::move(kernel);
    for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y)
        for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) {
            ASAN_UNPOISON_MEMORY_REGION(shared, MAX_SHARED);
            std::memset(shared, 0xff, MAX_SHARED);
            ASAN_POISON_MEMORY_REGION(shared + shared_bytes, MAX_SHARED - shared_bytes);
            run_block(ascending);
        }
}

}  // namespace emulation
