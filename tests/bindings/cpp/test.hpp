// What the test programs share.

#ifndef TEST_HPP
#define TEST_HPP

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#define CHECK(condition)                                                            \
    do {                                                                            \
        if (!(condition)) {                                                         \
            std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);    \
            std::exit(EXIT_FAILURE);                                                \
        }                                                                           \
    } while (false)

typedef std::vector<unsigned char> Bytes;

/// What other translation units of the program say: one in the same mode, one in the other.
std::string loaded_elsewhere(const char* path);
std::string loaded_in_the_other_mode(const char* path);

#endif
