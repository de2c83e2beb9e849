// Includes svdq.hpp again; linked twice into the program, compiled with exceptions and without.

#include "svdq.hpp"

#include "test.hpp"

std::string ELSEWHERE(const char* path) {
    const svdq::Result<svdq::Context> context = svdq::Context::create(svdq::ContextParams().use_cpu());
    CHECK(context);
    return context->load(path).text();
}
