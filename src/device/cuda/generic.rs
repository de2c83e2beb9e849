//! Kernels for every GPU: dense and 4-bit-weight linears in bf16, convolutions, norms, attention.
//!
//! Parameters that are `repr(C)` are laid out as the structs of the same names in kernels/, where they are explained.

#![allow(unsafe_code, reason = "launches kernels")]

use std::ffi::c_void;
use std::ops::Range;
use std::sync::Arc;

use super::choice;
use super::driver::Context;
use super::kernels::{Grid, Kernel, Module, argument};
use super::tensor::Elements;
use crate::Result;
use crate::ops::{Activation, Work};

/// `product::Output`: `out = act(scale · sum + bias + before) · by · gate + add`, where 0 stands for what is absent.
/// Tensors have rows of `pitch` elements, `before` of `before_pitch`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Output {
    pub(super) out: Elements,
    pub(super) before: Elements,
    pub(super) add: Elements,
    pub(super) by: u64,
    pub(super) gate: u64,
    pub(super) bias: u64,
    pub(super) activation: i32,
    pub(super) pitch: i32,
    pub(super) before_pitch: i32,
    pub(super) scale: f32,
}

impl Output {
    pub(super) fn store(out: Elements, cols: usize, bias: u64, act: Activation) -> Self {
        Output {
            out,
            before: Elements::NONE,
            add: Elements::NONE,
            by: 0,
            gate: 0,
            bias,
            activation: activation(act),
            pitch: cols as i32,
            before_pitch: 0,
            scale: 1.0,
        }
    }
}

/// `LinearParams`
#[repr(C)]
pub(super) struct LinearParams {
    pub(super) x: u64,
    pub(super) w: u64,
    pub(super) m: i32,
    pub(super) n: i32,
    pub(super) k: i32,
    pub(super) output: Output,
}

/// `W4A16Params`
#[repr(C)]
pub(super) struct W4A16Params {
    pub(super) x: u64,
    pub(super) codes: u64,
    pub(super) scales: u64,
    pub(super) zeros: u64,
    pub(super) m: i32,
    pub(super) n: i32,
    pub(super) k: i32,
    pub(super) group: i32,
    pub(super) chunks: i32,
    pub(super) output: Output,
}

/// 4-bit weights `[n, k]` that become bf16 at `w`: packed codes and group scales, for NVFP4 the channels' scales, and
/// what channels of the input are multiplied with.
pub(super) struct UnpackParams {
    pub(super) codes: u64,
    pub(super) scales: u64,
    /// `[n]` f32. None: INT4.
    pub(super) channels: Option<u64>,
    /// `[k]` f32
    pub(super) reciprocal: u64,
    /// `[n, k]` bf16
    pub(super) w: u64,
    pub(super) n: usize,
    pub(super) k: usize,
}

/// `ConvParams`
#[repr(C)]
pub(super) struct ConvParams {
    pub(super) x: u64,
    pub(super) w: u64,
    pub(super) height: i32,
    pub(super) width: i32,
    pub(super) c: i32,
    pub(super) n: i32,
    pub(super) stride: i32,
    pub(super) upsample: i32,
    pub(super) output: Output,
}

/// `NormParams`
#[repr(C)]
pub(super) struct NormParams {
    pub(super) x: Elements,
    pub(super) out: Elements,
    pub(super) weight: Elements,
    /// [`Elements::NONE`]: RMSNorm.
    pub(super) bias: Elements,
    pub(super) cols: i32,
    pub(super) eps: f32,
}

/// `QkNormRopeParams`
#[repr(C)]
pub(super) struct QkNormRopeParams {
    pub(super) qkv: u64,
    pub(super) q: Elements,
    pub(super) k: Elements,
    pub(super) rope: u64,
    pub(super) rows: i32,
    pub(super) heads: i32,
    pub(super) dim: i32,
}

/// `GroupNormParams`
#[repr(C)]
pub(super) struct GroupNormParams {
    pub(super) x: u64,
    pub(super) out: u64,
    pub(super) weight: Elements,
    pub(super) bias: Elements,
    pub(super) sums: u64,
    pub(super) affine: u64,
    pub(super) pixels: i32,
    pub(super) channels: i32,
    pub(super) groups: i32,
    pub(super) silu: i32,
}

/// `MaskedAttentionParams`
#[repr(C)]
pub(super) struct MaskedAttentionParams {
    pub(super) qkv: u64,
    pub(super) out: u64,
    pub(super) bias: u64,
    pub(super) tokens: i32,
    pub(super) heads: i32,
    pub(super) dim: i32,
    pub(super) causal: i32,
    pub(super) scale: f32,
}

/// Pixels of a part of `group_norm_sums`.
const GROUP_NORM_PIXELS: usize = 128;
/// Dynamic shared memory of the attention kernels.
const ATTENTION_SHARED: [u32; 2] = [40960, 65536];

/// Dynamic shared memory of the dense product; queries of a block of `attention_wide`, and its shared memory.
const fn shared_memory(compute_capability: u32) -> (u32, (u32, u32)) {
    match compute_capability {
        ..80 => (65536, (32, 53888)),
        90 => (98304, (64, 123648)),
        _ => (98304, (32, 86656)),
    }
}

/// The functions that every GPU has.
pub(super) struct Kernels {
    context: Arc<Context>,
    _modules: [Module; 10],
    product_shared: u32,
    /// For rows of a multiple of eight elements, and of any number.
    linear: [Kernel; 2],
    conv: [Kernel; 2],
    /// For blocks of 8 and of 16 rows.
    w4a16: [Kernel; 2],
    unpack_int4: Kernel,
    unpack_nvfp4: Kernel,
    unpack_awq: Kernel,
    layer_norm: Kernel,
    rms_norm: Kernel,
    qk_norm_rope: Kernel,
    group_norm_sums: [Kernel; 2],
    group_norm_affine: Kernel,
    group_norm_apply: [Kernel; 2],
    /// Heads of 64 and of 128 channels.
    attention: [Kernel; 2],
    /// Heads of any number of channels: the kernel, its queries and shared memory.
    attention_wide: (Kernel, (u32, u32)),
    convert: Kernel,
    add_bias: Kernel,
    euler_step: Kernel,
    to_rgb8: Kernel,
    rope_pairs: Kernel,
    qk_norms: Kernel,
}

impl Kernels {
    /// # Errors
    /// [`Error::DeviceUnsupported`](crate::Error::DeviceUnsupported) when this build lacks the kernels.
    pub(super) fn load(context: &Arc<Context>) -> Result<Self> {
        let module = |name| Module::load(context, name);
        let (gemm, conv, w4a16) = (module("gemm_bf16")?, module("conv3x3_bf16")?, module("gemm_w4a16")?);
        let (norm, group_norm, attention) = (module("norm")?, module("group_norm")?, module("attention")?);
        let (elementwise, constants) = (module("elementwise")?, module("constants")?);
        let (wide, unpack) = (module("attention_wide")?, module("unpack_bf16")?);
        let capability = context.info.compute_capability;
        let hopper = choice::is_hopper(capability);
        let (product_shared, wide_shape) = shared_memory(capability);
        let fast = |hopper_name, name| if hopper { hopper_name } else { name };
        Ok(Kernels {
            context: context.clone(),
            product_shared,
            linear: [
                gemm.kernel(fast(c"gemm_bf16_sm90", c"gemm_bf16_k8"), product_shared)?,
                gemm.kernel(c"gemm_bf16_any_k", product_shared)?,
            ],
            conv: [
                conv.kernel(fast(c"conv3x3_bf16_sm90", c"conv3x3_bf16_c8"), product_shared)?,
                conv.kernel(c"conv3x3_bf16_any_c", product_shared)?,
            ],
            w4a16: [w4a16.kernel(c"gemm_w4a16_m8", 0)?, w4a16.kernel(c"gemm_w4a16_m16", 0)?],
            unpack_int4: unpack.kernel(c"unpack_int4_bf16", 0)?,
            unpack_nvfp4: unpack.kernel(c"unpack_nvfp4_bf16", 0)?,
            unpack_awq: unpack.kernel(c"unpack_awq_bf16", 0)?,
            layer_norm: norm.kernel(c"layer_norm", 0)?,
            rms_norm: norm.kernel(c"rms_norm", 0)?,
            qk_norm_rope: norm.kernel(c"qk_norm_rope", 0)?,
            group_norm_sums: [
                group_norm.kernel(c"group_norm_sums", 0)?,
                group_norm.kernel(c"group_norm_sums_any", 0)?,
            ],
            group_norm_affine: group_norm.kernel(c"group_norm_affine", 0)?,
            group_norm_apply: [
                group_norm.kernel(c"group_norm_apply", 0)?,
                group_norm.kernel(c"group_norm_apply_any", 0)?,
            ],
            attention: [
                attention.kernel(c"attention_d64", ATTENTION_SHARED[0])?,
                attention.kernel(c"attention_d128", ATTENTION_SHARED[1])?,
            ],
            attention_wide: (
                wide.kernel(fast(c"attention_wide_q64", c"attention_wide"), wide_shape.1)?,
                wide_shape,
            ),
            convert: elementwise.kernel(c"convert", 0)?,
            add_bias: elementwise.kernel(c"add_bias", 0)?,
            euler_step: elementwise.kernel(c"euler_step", 0)?,
            to_rgb8: elementwise.kernel(c"to_rgb8", 0)?,
            rope_pairs: constants.kernel(c"rope_pairs", 0)?,
            qk_norms: constants.kernel(c"qk_norms", 0)?,
            _modules: [gemm, conv, w4a16, norm, group_norm, attention, wide, elementwise, constants, unpack],
        })
    }

    /// A dense linear.
    pub(super) fn linear(&self, params: &LinearParams) -> Result<()> {
        let [m, n, k] = [params.m, params.n, params.k].map(|size| size as usize);
        let kernel = self.linear[usize::from(k % 8 != 0)].doing([m, n, k], Work::bf16(m, n, k));
        self.run(kernel, [tiles(m, n), 1, 1], 128, self.product_shared, params)
    }

    /// A linear with 4-bit weights in AWQ's layout.
    pub(super) fn linear_w4a16(&self, params: &W4A16Params) -> Result<()> {
        let (kernel, rows) = if params.m <= 8 { (self.w4a16[0], 8) } else { (self.w4a16[1], 16) };
        let blocks = [(params.m as u32).div_ceil(rows), (params.n as u32).div_ceil(64), 1];
        let [m, n, k] = [params.m, params.n, params.k].map(|size| size as usize);
        let kernel = kernel.doing([m, n, k], Work::Bytes(n as f64 * k as f64 / 2.0));
        self.run(kernel, blocks, 256, 0, params)
    }

    /// The weights of such a linear as bf16, `[n, k]` in the order of its results.
    pub(super) fn unpack_awq(&self, params: &W4A16Params, w: u64) -> Result<()> {
        let &W4A16Params { codes, scales, zeros, n, k, group, chunks, .. } = params;
        let shift = group.ilog2() as i32;
        let [rows, cols] = [n, k].map(|size| size as usize);
        let kernel = self.unpack_awq.doing([rows, cols, 0], Work::Bytes(2.5 * rows as f64 * cols as f64));
        let mut arguments = [&codes, &scales, &zeros, &w].map(argument).to_vec();
        arguments.extend([&n, &k, &shift, &chunks].map(argument));
        self.launch(kernel, [(rows * cols).div_ceil(8192) as u32, 1, 1], 256, 0, &mut arguments)
    }

    /// 4-bit weights as bf16.
    pub(super) fn unpack(&self, params: &UnpackParams) -> Result<()> {
        let UnpackParams { codes, scales, ref channels, reciprocal, w, n, k } = *params;
        let (blocks, k) = ([k as u32 / 64, n as u32 / 128, 1], k as i32);
        let (from, to) = ([argument(&codes), argument(&scales)], [argument(&w), argument(&k)]);
        let kernel = if channels.is_some() { self.unpack_nvfp4 } else { self.unpack_int4 };
        let kernel = kernel.doing([n, k as usize, 0], Work::Bytes(2.5 * n as f64 * f64::from(k)));
        let middle = channels.iter().map(argument).chain([argument(&reciprocal)]);
        let mut arguments: Vec<_> = from.into_iter().chain(middle).chain(to).collect();
        self.launch(kernel, blocks, 256, 0, &mut arguments)
    }

    /// A 3x3 convolution.
    pub(super) fn conv(&self, params: &ConvParams, pixels: usize) -> Result<()> {
        let [n, k] = [params.n as usize, 9 * params.c as usize];
        let kernel =
            self.conv[usize::from(params.c % 8 != 0)].doing([pixels, n, k], Work::bf16(pixels, n, k));
        self.run(kernel, [tiles(pixels, n), 1, 1], 128, self.product_shared, params)
    }

    /// LayerNorm or RMSNorm of `rows` rows.
    pub(super) fn norm(&self, params: &NormParams, rows: usize) -> Result<()> {
        let kernel = if params.bias.data == 0 { self.rms_norm } else { self.layer_norm };
        let (cols, bytes) = (params.cols as usize, params.x.bytes() + params.out.bytes());
        let kernel = kernel.doing([rows, cols, 0], Work::Bytes((rows * cols * bytes) as f64));
        self.run(kernel, [rows as u32, 1, 1], 256, 0, params)
    }

    /// RMSNorm and rotation of the heads of q and k.
    pub(super) fn qk_norm_rope(&self, params: &QkNormRopeParams) -> Result<()> {
        let heads = params.rows as u32 * 2 * params.heads as u32;
        self.run(self.qk_norm_rope, [heads.div_ceil(8), 1, 1], 256, 0, params)
    }

    /// `sums` is for [`Kernels::group_norm_scratch`] floats, `affine` for twice the channels.
    pub(super) fn group_norm(&self, params: &GroupNormParams) -> Result<()> {
        let any = usize::from(params.channels % 8 != 0);
        let [pixels, channels] = [params.pixels, params.channels].map(|size| size as usize);
        let moving = |kernel: Kernel, times: usize| {
            kernel.doing([pixels, channels, 0], Work::Bytes((times * 2 * pixels * channels) as f64))
        };
        let parts = (params.pixels as usize).div_ceil(GROUP_NORM_PIXELS) as u32;
        self.run(moving(self.group_norm_sums[any], 1), [parts, 1, 1], 256, 0, params)?;
        self.run(self.group_norm_affine, [params.groups as u32, 1, 1], 256, 0, params)?;
        let blocks = parts.min(8 * self.context.multiprocessors);
        self.run(moving(self.group_norm_apply[any], 2), [blocks, 1, 1], 256, 0, params)
    }

    /// Floats that [`Kernels::group_norm`] needs for its sums.
    pub(super) fn group_norm_scratch(pixels: usize, groups: usize) -> usize {
        pixels.div_ceil(GROUP_NORM_PIXELS) * groups * 2
    }

    /// Softmax attention. Heads have a multiple of 16 channels, at most 512.
    pub(super) fn attention(&self, params: &MaskedAttentionParams) -> Result<()> {
        let (kernel, queries, threads, shared_bytes) = match (params.dim, self.attention_wide) {
            (64, _) => (self.attention[0], 64, 128, ATTENTION_SHARED[0]),
            (128, _) => (self.attention[1], 128, 128, ATTENTION_SHARED[1]),
            (_, (kernel, (queries, shared_bytes))) => (kernel, queries, 256, shared_bytes),
        };
        let blocks = [(params.tokens as u32).div_ceil(queries), params.heads as u32, 1];
        let [tokens, heads, dim] = [params.tokens, params.heads, params.dim].map(|size| size as usize);
        let kernel = kernel.doing([tokens, heads, dim], Work::bf16(2 * tokens, tokens, heads * dim));
        self.run(kernel, blocks, threads, shared_bytes, params)
    }

    /// `to = act(from)`, element by element.
    pub(super) fn convert(&self, from: Elements, to: Elements, count: usize, act: Activation) -> Result<()> {
        let (elements, act) = (count as i64, activation(act));
        let mut arguments = [argument(&from), argument(&to), argument(&elements), argument(&act)];
        let kernel =
            self.convert.doing([count, 0, 0], Work::Bytes((count * (from.bytes() + to.bytes())) as f64));
        self.each(kernel, count, &mut arguments)
    }

    /// `to[i] = from[i] + strength · update[i - rows.start]` for `i` in `rows`, and `from[i]`, `count` of them; no `from`
    /// is zeros. `update` is f32.
    pub(super) fn add_bias(
        &self,
        [from, to]: [Elements; 2],
        update: u64,
        count: usize,
        rows: &Range<usize>,
        strength: f32,
    ) -> Result<()> {
        let [elements, first, last] = [count, rows.start, rows.end].map(|n| n as i32);
        let mut arguments = [
            argument(&from),
            argument(&to),
            argument(&update),
            argument(&elements),
            argument(&first),
            argument(&last),
            argument(&strength),
        ];
        self.each(self.add_bias, count, &mut arguments)
    }

    /// `latents += dt · velocity`
    pub(super) fn euler_step(
        &self,
        latents: Elements,
        velocity: Elements,
        count: usize,
        dt: f32,
    ) -> Result<()> {
        let elements = count as i64;
        let mut arguments = [argument(&latents), argument(&velocity), argument(&elements), argument(&dt)];
        self.each(self.euler_step, count, &mut arguments)
    }

    /// 8-bit values of an image.
    pub(super) fn to_rgb8(&self, from: Elements, to: u64, count: usize) -> Result<()> {
        let elements = count as i64;
        self.each(self.to_rgb8, count, &mut [argument(&from), argument(&to), argument(&elements)])
    }

    /// `count` floats as fp16.
    pub(super) fn rope_pairs(&self, from: u64, to: u64, count: usize) -> Result<()> {
        let elements = count as i32;
        self.each(self.rope_pairs, count, &mut [argument(&from), argument(&to), argument(&elements)])
    }

    /// `dim` floats of q and of k, one after the other, as bf16.
    pub(super) fn qk_norms(&self, q: u64, k: u64, to: u64, dim: usize) -> Result<()> {
        let dim = dim as i32;
        let mut arguments = [argument(&q), argument(&k), argument(&to), argument(&dim)];
        self.launch(self.qk_norms, [1, 1, 1], 256, 0, &mut arguments)
    }

    fn each(&self, kernel: Kernel, count: usize, arguments: &mut [*const c_void]) -> Result<()> {
        self.launch(kernel, [count.div_ceil(256) as u32, 1, 1], 256, 0, arguments)
    }

    /// Launches a kernel that takes one struct.
    fn run<P>(
        &self,
        kernel: Kernel,
        blocks: [u32; 3],
        threads: u32,
        shared_bytes: u32,
        params: &P,
    ) -> Result<()> {
        self.launch(kernel, blocks, threads, shared_bytes, &mut [argument(params)])
    }

    fn launch(
        &self,
        kernel: Kernel,
        blocks: [u32; 3],
        threads: u32,
        shared_bytes: u32,
        arguments: &mut [*const c_void],
    ) -> Result<()> {
        // SAFETY: every caller above passes what the kernel takes.
        unsafe { kernel.launch(&self.context, Grid { blocks, threads, shared_bytes }, arguments) }
    }
}

/// Tiles of 128 x 128 results.
fn tiles(m: usize, n: usize) -> u32 {
    (m.div_ceil(128) * n.div_ceil(128)) as u32
}

/// `enum Activation` of kernels/common/elements.cuh.
fn activation(act: Activation) -> i32 {
    match act {
        Activation::None => 0,
        Activation::Silu => 1,
        Activation::GeluTanh => 2,
        Activation::QuickGelu => 3,
    }
}
