// Numbers and speed of the kernels on the GPU at hand: `kernels [--checks] [NAME]...`, all by default, with NAME one of
// ceiling, step, unpack, w4a4, w4a4_sm90, nvfp4, w4a8, project, attention, quantize, norms, w4a16, masked, dense, vae. --checks
// leaves out timing and large shapes. Every check is against plain code on random data with outlier channels; exit
// status 1 if one fails.
//
// Built with SVDQ_HOST_ARCH=750 for compute_75, as PTX, it runs sm_75's kernels on any GPU: `kernels-sm75 --checks` with
// quantize, unpack, w4a4, norms, w4a16, masked, dense.
#include "dense.cuh"
#include "gemm_w4a4.cuh"
#include "masked_attention.cuh"
#include "norms.cuh"
#include "quantize.cuh"
#include "unpack.cuh"
#include "w4a16.cuh"
#if SVDQ_HOST_ARCH >= 900
#include "attention.cuh"
#include "ceiling.cuh"
#include "gemm_nvfp4.cuh"
#include "gemm_w4a4_sm90.cuh"
#include "gemm_w4a8.cuh"
#include "project_down.cuh"
#include "step.cuh"
#include "vae.cuh"
#endif

int main(int argc, char** argv) {
    cudaDeviceProp device;
    CUDA(cudaGetDeviceProperties(&device, 0));
    std::printf("%s, %d multiprocessors\n", device.name, device.multiProcessorCount);
    checks_only = argc > 1 && !std::strcmp(argv[1], "--checks");
    const int first = checks_only ? 2 : 1;
    auto wanted = [&](const char* name) {
        bool found = argc == first;
        for (int i = first; i < argc; ++i) found |= !std::strcmp(argv[i], name);
        return found;
    };
    // TF/s that the tensor cores of an H100 sustain on operands at hand, as `ceiling` measures them.
    [[maybe_unused]] constexpr double INT8 = 1837, E4M3 = 1657, BF16 = 838;
    if (wanted("quantize")) test_quantize::run();
    if (wanted("unpack")) test_unpack::run();
    if (wanted("w4a4")) test_gemm_w4a4::run();
    if (wanted("norms")) test_norms::run();
    if (wanted("w4a16")) test_w4a16::run();
    if (wanted("masked")) test_masked_attention::run(BF16);
    if (wanted("dense")) test_dense::run(BF16);
#if SVDQ_HOST_ARCH >= 900
    if (wanted("w4a4_sm90")) test_gemm_w4a4_sm90::run(E4M3);
    if (wanted("nvfp4")) test_gemm_nvfp4::run();
    if (wanted("w4a8")) test_gemm::run(INT8);
    if (wanted("project")) test_project_down::run();
    if (wanted("attention")) test_attention::run(BF16);
    if (wanted("step") && !checks_only) {
        // The base alone, and with a LoRA of rank 32 and of rank 128 on every linear.
        for (const Parts& parts : {Parts{{32}}, Parts{{32}, {32, 0.7f}}, Parts{{32}, {128, 0.7f}}})
            test_step::run(1024, 3, parts), test_step::run(512, 2, parts);
    }
    if (wanted("vae") && !checks_only) test_vae::run();
    if (wanted("ceiling") && !checks_only) ceiling::run(1.5);
#endif
    std::printf("%d failed\n", failures);
    return failures != 0;
}
