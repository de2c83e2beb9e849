// Inline PTX: `asm("text" : "=r"(a) : "r"(b))` in a kernel has become `emulation::ptx("text", {out(a), in(b)})`, and the
// text is interpreted here.
#pragma once

#include <map>
#include <string>

#include "cuda_bf16.h"

namespace emulation {

struct Operand {
    uint64_t value = 0;
    void* to = nullptr;
    size_t size = 0;
};
template <class T>
Operand in(T v) {
    Operand o;
    std::memcpy(&o.value, &v, sizeof v);
    return o;
}
template <class T>
Operand out(T& v) {
    return {0, &v, sizeof v};
}
template <class T>
Operand inout(T& v) {
    Operand o = in(v);
    o.to = &v, o.size = sizeof v;
    return o;
}

struct Registers;

struct Instruction {
    void (*run)(const Registers&) = nullptr;
    std::vector<int> operands;  // indices of registers
};

// A GPU has one NaN.
inline unsigned to_bits(float v) {
    return v == v ? __float_as_uint(v) : 0x7fffffff;
}
inline unsigned to_bits(int v) {
    return v;
}

// The registers of one asm statement, as an instruction names them.
struct Registers {
    std::vector<uint64_t>& values;
    const Instruction& instruction;

    unsigned u32(int i) const { return static_cast<unsigned>(values[instruction.operands[i]]); }
    float f32(int i) const { return __uint_as_float(u32(i)); }
    void* address(int i) const { return reinterpret_cast<void*>(values[instruction.operands[i]]); }
    void set(int i, unsigned v) const { values[instruction.operands[i]] = v; }
    void set(int i, float v) const { set(i, to_bits(v)); }
};

// ---- fp16

inline float from_half(unsigned h) {
    const int exponent = h >> 10 & 31, mantissa = h & 1023;
    const float v = exponent == 31 ? (mantissa ? NAN : INFINITY)
                                   : std::ldexp(exponent ? 1024.0f + mantissa : mantissa, max(exponent, 1) - 25);
    return h & 0x8000 ? -v : v;
}
// To nearest, ties to even.
inline unsigned to_half(float v) {
    const unsigned sign = __float_as_uint(v) >> 16 & 0x8000;
    if (!(std::fabs(v) < 65520)) return sign | (v == v ? 0x7c00 : 0x7fff);
    int exponent;
    std::frexp(v, &exponent);
    exponent = v == 0 ? -13 : max(exponent, -13);
    return sign | (((exponent + 13) << 10) + static_cast<int>(std::nearbyint(std::ldexp(std::fabs(v), 11 - exponent))));
}

// ---- mma

enum class Type { S4, U4, F16, BF16 };

// Element `i` of a register.
template <Type TYPE>
auto element(unsigned word, int i) {
    if constexpr (TYPE == Type::S4) return static_cast<int>(word << (28 - 4 * i)) >> 28;
    if constexpr (TYPE == Type::U4) return static_cast<int>(word >> (4 * i) & 15);
    if constexpr (TYPE == Type::F16) return from_half(word >> (16 * i) & 0xffff);
    if constexpr (TYPE == Type::BF16) return __uint_as_float(word >> (16 * i) << 16);
}

// mma.sync.aligned of ROWS x 8 and KS times 4 registers of K. As the PTX ISA lays out its fragments, lane 4g + t (g is
// its groupID, t its threadID_in_group) holds, with E elements a register:
//   A  register j: row g, or g + 8 for odd j of 16 rows; columns E t .. E t + E - 1 of the first 4E, or of the second
//      for the upper half of the registers
//   B  register j: column g; rows E t .. of the first or second 4E
//   C, D  elements 0, 1: row g, columns 2t and 2t + 1; 2, 3: row g + 8
// Sums are of increasing k, rounded at each step if they are floats.
template <int ROWS, int KS, Type A, Type B, class Sum>
void mma(const Registers& r) {
    constexpr int D = ROWS / 4, AS = ROWS / 8 * KS, E = A == Type::S4 || A == Type::U4 ? 8 : 2;
    Words mine{};
    for (int i = 0; i < AS + KS + D; ++i) mine[i] = r.u32(D + i);
    const Words got = exchange(&r.instruction, mine, [](std::array<Words, 32>& lanes) {
        const auto given = lanes;
        for (int lane = 0; lane < 32; ++lane)
            for (int d = 0; d < D; ++d) {
                const int row = lane / 4 + d / 2 * 8, column = lane % 4 * 2 + d % 2;
                Sum sum = bits<Sum>(given[lane][AS + KS + d]);
                for (int k = 0; k < KS * 4 * E; ++k) {
                    const int t = k / E % 4, part = k / (4 * E);
                    const unsigned a = given[row % 8 * 4 + t][part * (ROWS / 8) + row / 8];
                    const unsigned b = given[column * 4 + t][AS + part];
                    sum += element<A>(a, k % E) * element<B>(b, k % E);
                }
                lanes[lane][d] = to_bits(sum);
            }
    });
    for (int i = 0; i < D; ++i) r.set(i, got[i]);
}

// ---- shared memory

template <class T>
T& in_shared(unsigned at) {
    if (at % sizeof(T)) fail("an address in shared memory is not aligned");
    return *reinterpret_cast<T*>(shared + at);
}

// Four 8x8 matrices of 16-bit elements, of whose rows lane 8i + r names the r-th of the i-th. Lane 4g + t gets elements
// 2t and 2t + 1 of rows g or, transposed, of columns g.
template <bool TRANSPOSED>
void load_matrices(const Registers& r) {
    const Words got = exchange(&r.instruction, {r.u32(4)}, [](std::array<Words, 32>& lanes) {
        const auto rows = lanes;
        for (int lane = 0; lane < 32; ++lane)
            for (int i = 0; i < 4; ++i) {
                auto element = [&](int row, int column) {
                    return unsigned(in_shared<std::array<uint16_t, 8>>(rows[8 * i + row][0])[column]);
                };
                const int g = lane / 4, t = lane % 4;
                lanes[lane][i] = TRANSPOSED ? element(2 * t, g) | element(2 * t + 1, g) << 16
                                            : element(g, 2 * t) | element(g, 2 * t + 1) << 16;
            }
    });
    for (int i = 0; i < 4; ++i) r.set(i, got[i]);
}

// ---- instructions

// Copies happen as late as they may: in the wait for them.
inline void copy_async(const Registers& r) {
    if (r.u32(2) != 16 || (r.u32(3) != 16 && r.u32(3) != 0)) fail("cp.async of an unknown size");
    if (r.u32(0) % 16 || reinterpret_cast<uintptr_t>(r.address(1)) % 16) fail("cp.async is not aligned");
    Thread& me = threads[self];
    me.copies.push_back({shared + r.u32(0), r.u32(3) ? r.address(1) : nullptr, me.group});
}
inline void copy_wait(const Registers& r) {
    Thread& me = threads[self];
    std::vector<Copy> pending;
    for (const Copy& copy : me.copies) {
        if (copy.group + static_cast<int>(r.u32(0)) >= me.group) {
            pending.push_back(copy);
        } else if (copy.from) {
            std::memcpy(copy.to, copy.from, 16);
        } else {
            std::memset(copy.to, 0, 16);
        }
    }
    me.copies = std::move(pending);
}

inline const std::map<std::string, void (*)(const Registers&)> INSTRUCTIONS = {
    {".reg", [](const Registers&) {}},
    {"bar.sync", [](const Registers& r) { wait(barriers.at(r.u32(0)), r.u32(1)); }},
    {"cp.async.cg.shared.global", copy_async},
    {"cp.async.commit_group", [](const Registers&) { ++threads[self].group; }},
    {"cp.async.wait_group", copy_wait},
    {"cvt.f32.f16", [](const Registers& r) { r.set(0, from_half(r.u32(1))); }},
    {"cvt.rn.bf16x2.f32",
     [](const Registers& r) {
         r.set(0, unsigned(__float2bfloat16(r.f32(1)).bits) << 16 | __float2bfloat16(r.f32(2)).bits);
     }},
    {"cvt.rn.f16.f32", [](const Registers& r) { r.set(0, to_half(r.f32(1))); }},
    {"ex2.approx.ftz.f32", [](const Registers& r) { r.set(0, std::exp2(r.f32(1))); }},
    {"ldmatrix.sync.aligned.m8n8.x4.shared.b16", load_matrices<false>},
    {"ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16", load_matrices<true>},
    // Of a register to a pair.
    {"mov.b32", [](const Registers& r) { r.set(0, r.u32(2) & 0xffff), r.set(1, r.u32(2) >> 16); }},
    {"prmt.b32", [](const Registers& r) { r.set(0, prmt(r.u32(1), r.u32(2), r.u32(3))); }},
    {"rcp.approx.ftz.f32", [](const Registers& r) { r.set(0, 1.0f / r.f32(1)); }},
    {"rsqrt.approx.ftz.f32", [](const Registers& r) { r.set(0, 1.0f / std::sqrt(r.f32(1))); }},
    {"st.shared.u16", [](const Registers& r) { in_shared<uint16_t>(r.u32(0)) = r.u32(1); }},
    {"st.shared.u32", [](const Registers& r) { in_shared<unsigned>(r.u32(0)) = r.u32(1); }},
    {"st.shared.v4.u32",
     [](const Registers& r) { in_shared<uint4>(r.u32(0)) = {r.u32(1), r.u32(2), r.u32(3), r.u32(4)}; }},
    {"tanh.approx.f32", [](const Registers& r) { r.set(0, std::tanh(r.f32(1))); }},
    {"mma.sync.aligned.m16n8k64.row.col.s32.s4.s4.s32", mma<16, 2, Type::S4, Type::S4, int>},
    {"mma.sync.aligned.m16n8k64.row.col.s32.u4.s4.s32", mma<16, 2, Type::U4, Type::S4, int>},
    {"mma.sync.aligned.m8n8k32.row.col.s32.s4.s4.s32", mma<8, 1, Type::S4, Type::S4, int>},
    {"mma.sync.aligned.m8n8k32.row.col.s32.u4.s4.s32", mma<8, 1, Type::U4, Type::S4, int>},
    {"mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", mma<16, 2, Type::BF16, Type::BF16, float>},
    {"mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32", mma<16, 1, Type::F16, Type::F16, float>},
};

// ---- statements

struct Statement {
    std::vector<Instruction> instructions;
    std::vector<uint64_t> values;  // of registers: first the operands, then others and constants
};

inline Statement parse(const std::string& text, size_t operands) {
    Statement s{{}, std::vector<uint64_t>(operands)};
    std::map<std::string, int> names;
    for (size_t begin = 0, end; begin < text.size(); begin = end + 1) {
        end = min(text.find(';', begin), text.size());
        Instruction instruction;
        for (size_t at = begin; (at = text.find_first_not_of(" \n,{}[]", at)) < end;) {
            const size_t stop = min(text.find_first_of(" \n,{}[]", at), end);
            const std::string word = text.substr(at, stop - at);
            at = stop;
            if (!instruction.run) {
                const auto found = INSTRUCTIONS.find(word);
                if (found == INSTRUCTIONS.end()) fail(("unknown instruction " + word).c_str());
                instruction.run = found->second;
            } else if (word[0] == '%') {
                instruction.operands.push_back(std::stoi(word.substr(1)));
                if (instruction.operands.back() >= static_cast<int>(operands)) fail(text.c_str());
            } else {
                const auto [found, added] = names.emplace(word, static_cast<int>(s.values.size()));
                if (added) s.values.push_back(std::isdigit(word[0]) ? std::stoull(word, nullptr, 0) : 0);
                instruction.operands.push_back(found->second);
            }
        }
        if (instruction.run) s.instructions.push_back(instruction);
    }
    return s;
}

inline void ptx(const char* text, std::initializer_list<Operand> operands) {
    static std::map<const char*, Statement> parsed;
    auto found = parsed.find(text);
    if (found == parsed.end()) found = parsed.emplace(text, parse(text, operands.size())).first;
    const Statement& statement = found->second;
    auto values = statement.values;
    size_t i = 0;
    for (const Operand& o : operands) values[i++] = o.value;
    for (const Instruction& instruction : statement.instructions) instruction.run({values, instruction});
    i = 0;
    for (const Operand& o : operands) {
        if (o.to) std::memcpy(o.to, &values[i], o.size);
        ++i;
    }
}

}  // namespace emulation
