// What is done to a tensor element by element. All: grid ceil(count/256), block 256.
#include "common/elements.cuh"

// to = act(from); converts between bf16 and f32 on the way.
extern "C" __global__ void __launch_bounds__(256) convert(Elements from, Elements to, long long count, int activation) {
    const long long i = blockIdx.x * 256ll + threadIdx.x;
    if (i < count) to.store(i, activate(from.load(i), activation));
}

// latents += dt * velocity
extern "C" __global__ void __launch_bounds__(256)
    euler_step(Elements latents, Elements velocity, long long count, float dt) {
    const long long i = blockIdx.x * 256ll + threadIdx.x;
    if (i < count) latents.store(i, fmaf(dt, velocity.load(i), latents.load(i)));
}

// to = round(255 clamp(from / 2 + 1/2, 0, 1)), half to even; NaN gives 0.
extern "C" __global__ void __launch_bounds__(256) to_rgb8(Elements from, u8* to, long long count) {
    const long long i = blockIdx.x * 256ll + threadIdx.x;
    if (i < count) to[i] = static_cast<u8>(rintf(255.0f * fminf(fmaxf(fmaf(from.load(i), 0.5f, 0.5f), 0.0f), 1.0f)));
}

// to[i] = (from[i] or 0) + strength * update[i - first], the last for first <= i < last only
extern "C" __global__ void __launch_bounds__(256)
    add_bias(Elements from, Elements to, const float* update, int count, int first, int last, float strength) {
    const int i = blockIdx.x * 256 + threadIdx.x;
    if (i >= count) return;
    const float v = from.data ? from.load(i) : 0.0f;
    to.store(i, first <= i && i < last ? fmaf(strength, update[i - first], v) : v);
}
