// 4-bit codes, eight a word, as bytes.
#pragma once

#include "types.cuh"

namespace codes {

// Four bytes for the low four nibbles of `selector`, whose bits 3 are clear, out of eight.
__device__ __forceinline__ u32 pick(uint2 table, u32 selector) {
    return __byte_perm(table.x, table.y, selector);
}

// What each code becomes: `positive` for 0 .. 7, `negative` for -8 .. -1.
struct Table {
    uint2 positive, negative;

    // The eight codes of a word, as bytes in the same order.
    __device__ __forceinline__ uint2 operator()(u32 word) const {
        const u32 low = word & 0x77777777, shifted = word << 4;
        // Bytes of ones where the sign bit of a nibble is set: even nibbles are at the top of a byte of `shifted`, and
        // bit 3 of a selector spreads the top bit of its byte.
        u32 first, second;
        asm("prmt.b32 %0, %1, %2, 0xd9c8;" : "=r"(first) : "r"(shifted), "r"(word));
        asm("prmt.b32 %0, %1, %2, 0xfbea;" : "=r"(second) : "r"(shifted), "r"(word));
        auto select = [](u32 mask, u32 yes, u32 no) { return (mask & yes) | (~mask & no); };
        return make_uint2(select(first, pick(negative, low & 0xffff), pick(positive, low & 0xffff)),
                          select(second, pick(negative, low >> 16), pick(positive, low >> 16)));
    }
};

// Codes as e4m3 numbers, which hold them exactly.
__device__ __forceinline__ Table e4m3() {
    return {make_uint2(0x44403800, 0x4e4c4a48), make_uint2(0xcaccced0, 0xb8c0c4c8)};
}

}  // namespace codes
