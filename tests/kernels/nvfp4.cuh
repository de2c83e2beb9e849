// The numbers of NVFP4, in plain code.
#pragma once

#include <cmath>

namespace test_nvfp4 {

inline double e2m1(unsigned code) {
    const double numbers[] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
    return code & 8 ? -numbers[code & 7] : numbers[code & 7];
}

inline double e4m3(unsigned code) {
    const int exponent = code >> 3 & 15, mantissa = code & 7;
    return exponent ? std::ldexp(8 + mantissa, exponent - 10) : std::ldexp(mantissa, -9);
}

// Place of the nearest e2m1 number among -6, -4, .. 4, 6, and that of a code.
inline int place(double v) {
    int best = 0;
    for (int i = 1; i < 8; ++i)
        if (std::abs(std::abs(v) - e2m1(i)) < std::abs(std::abs(v) - e2m1(best))) best = i;
    return v < 0 ? -best : best;
}
inline int place_of(unsigned code) {
    return code & 8 ? -int(code & 7) : int(code & 7);
}

}  // namespace test_nvfp4
