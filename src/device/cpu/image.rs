//! GroupNorm, convolution and pixels: images are matrices with a pixel a row.

use super::gemm::{Epilogue, Panels, Target, Tile, product};
use super::math;
use super::on::On;
use super::simd::{Kernel, MAX_ROWS, Simd};
use super::tensor::Tensor;
use crate::Result;
use crate::memory::Buf;
use crate::ops::{Activation, ConvSource, Storage};

/// The weights of a convolution.
pub struct Conv {
    n: usize,
    c: usize,
    kernel: usize,
    stride: usize,
    upsample: bool,
    bias: Buf<f32>,
    /// `[n, tap · c]`
    weights: Panels,
    /// What lies outside of the image.
    zeros: Buf<f32>,
}

impl Conv {
    pub(super) fn new(on: &On<'_>, source: &ConvSource) -> Result<Conv> {
        let ConvSource { n, c, kernel, stride, upsample, ref weight, ref bias } = *source;
        let taps = kernel * kernel;
        let mut by_tap = on.zeros(weight.len(), "a convolution's weights")?;
        for (to, filter) in by_tap.chunks_exact_mut(taps * c).zip(weight.chunks_exact(taps * c)) {
            let from = (0..taps).flat_map(|tap| filter[tap..].iter().step_by(taps));
            to.iter_mut().zip(from).for_each(|(to, &v)| *to = v);
        }
        let weights = Panels::pack(on, [n, taps * c], Storage::F32, &by_tap)?;
        let (bias, zeros) = (on.copy(bias, "a convolution's bias")?, on.zeros(c, "a row of zeros")?);
        Ok(Conv { n, c, kernel, stride, upsample, bias, weights, zeros })
    }

    /// `y[p,n] = Σ_{tap,c} x[pixel(p, tap), c] · W[n, c, tap] + b[n] + add[p,n]`
    pub(super) fn apply(
        &self,
        on: &On<'_>,
        x: &Tensor,
        [height, width]: [usize; 2],
        add: Option<&Tensor>,
    ) -> Result<Tensor> {
        assert_eq!([x.rows, x.cols], [height * width, self.c], "the image has another shape");
        let zoom = if self.upsample { 2 } else { 1 };
        let (zoomed_height, zoomed_width) = (height * zoom, width * zoom);
        let [out_height, out_width] = [zoomed_height / self.stride, zoomed_width / self.stride];
        // With stride 2 the zeros come after the image only.
        let before = if self.stride == 1 { self.kernel / 2 } else { 0 };
        let mut y = Tensor::zeros(on, out_height * out_width, self.n)?;
        let sums = |tile: &mut Tile<'_>| {
            let start = tile.rows.start;
            let mut corners = [[0; 2]; 12 * MAX_ROWS];
            for (corner, p) in corners.iter_mut().zip(tile.rows.clone()) {
                *corner = [p / out_width * self.stride, p % out_width * self.stride];
            }
            self.weights.multiply(on.level, tile, self.kernel * self.kernel, |p, tap| {
                let [top, left] = corners[p - start];
                // Above and left of the image these wrap to huge numbers.
                let row = (top + tap / self.kernel).wrapping_sub(before);
                let column = (left + tap % self.kernel).wrapping_sub(before);
                if row < zoomed_height && column < zoomed_width {
                    x.row(row / zoom * width + column / zoom)
                } else {
                    &self.zeros
                }
            });
        };
        let target = add.map_or(Target::Store, |add| Target::Plus(&add.data));
        let epilogue = Epilogue { bias: &self.bias, act: Activation::None, target };
        product(on, &mut y.data, self.n, sums, &epilogue)?;
        Ok(y)
    }
}

/// Pixels whose moments are taken together.
const PIXELS: usize = 128;

/// GroupNorm with the statistics of each group over its channels and all pixels, then SiLU if `silu`.
pub(super) fn group_norm(
    on: &On<'_>,
    x: &Tensor,
    groups: usize,
    [weight, bias]: [&[f32]; 2],
    silu: bool,
) -> Result<Tensor> {
    let c = x.cols;
    let [scale, shift] = scale_and_shift(on, x, groups, [weight, bias])?;
    let mut y = Tensor::zeros(on, x.rows, c)?;
    on.chunks(&mut y.data, PIXELS * c, |i, to| {
        let from = &x.data[i * PIXELS * c..][..to.len()];
        on.level.run(Affine { from, to, scale: &scale, shift: &shift, silu });
    })?;
    Ok(y)
}

/// The norm as a factor and a summand for each channel.
fn scale_and_shift(
    on: &On<'_>,
    x: &Tensor,
    groups: usize,
    [weight, bias]: [&[f32]; 2],
) -> Result<[Buf<f32>; 2]> {
    let c = x.cols;
    let parts = x.rows.div_ceil(PIXELS);
    // mean and sum of squared distances from it, of each channel in each part
    let mut moments = on.zeros(parts * 2 * c, "the moments of an image's channels")?;
    let [mut scale, mut shift] = [on.zeros(c, "a norm's scale")?, on.zeros(c, "a norm's shift")?];
    if on.is_idle {
        return Ok([scale, shift]);
    }
    on.chunks(&mut moments, 2 * c, |i, moments| {
        let x = &x.data[i * PIXELS * c..x.data.len().min((i + 1) * PIXELS * c)];
        let (mean, squares) = moments.split_at_mut(c);
        on.level.run(Moments { x, mean, squares });
    })?;
    let pixels = |part: usize| (x.rows - part * PIXELS).min(PIXELS) as f64;
    let width = c / groups;
    for g in 0..groups {
        let all = || {
            moments.chunks_exact(2 * c).enumerate().flat_map(move |(part, m)| {
                (g * width..(g + 1) * width)
                    .map(move |i| (pixels(part), f64::from(m[i]), f64::from(m[c + i])))
            })
        };
        let count = (x.rows * width) as f64;
        let mean = all().map(|(n, mean, _)| n * mean).sum::<f64>() / count;
        let squares = all().map(|(n, m, squares)| squares + n * (m - mean) * (m - mean)).sum::<f64>();
        let r = 1.0 / (squares / count + 1e-6).sqrt();
        for i in g * width..(g + 1) * width {
            let factor = r * f64::from(weight[i]);
            scale[i] = factor as f32;
            shift[i] = (f64::from(bias[i]) - mean * factor) as f32;
        }
    }
    Ok([scale, shift])
}

/// The moments of each channel over the pixels `x`.
struct Moments<'a> {
    x: &'a [f32],
    mean: &'a mut [f32],
    squares: &'a mut [f32],
}

impl Kernel for Moments<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let c = self.mean.len();
        let count = s.splat((self.x.len() / c) as f32);
        for start in (0..c).step_by(S::LANES) {
            let end = c.min(start + S::LANES);
            let mut sum = s.splat(0.0);
            for x in self.x.chunks_exact(c) {
                sum = s.add(sum, s.load(&x[start..end]));
            }
            let mean = s.div(sum, count);
            let mut squares = s.splat(0.0);
            for x in self.x.chunks_exact(c) {
                let d = s.sub(s.load(&x[start..end]), mean);
                squares = s.fma(d, d, squares);
            }
            s.store(mean, &mut self.mean[start..end]);
            s.store(squares, &mut self.squares[start..end]);
        }
    }
}

/// `to = from · scale + shift`, then SiLU if `silu`; whole pixels.
struct Affine<'a> {
    from: &'a [f32],
    to: &'a mut [f32],
    scale: &'a [f32],
    shift: &'a [f32],
    silu: bool,
}

impl Kernel for Affine<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let c = self.scale.len();
        for (x, y) in self.from.chunks_exact(c).zip(self.to.chunks_exact_mut(c)) {
            let (x, y) = (x.chunks(S::LANES), y.chunks_mut(S::LANES));
            for (((x, y), a), b) in x.zip(y).zip(self.scale.chunks(S::LANES)).zip(self.shift.chunks(S::LANES))
            {
                let v = s.fma(s.load(x), s.load(a), s.load(b));
                s.store(if self.silu { math::silu(s, v) } else { v }, y);
            }
        }
    }
}

/// `round(255 · clamp(x/2 + 1/2, 0, 1))`, half to even.
pub(super) struct ToBytes<'a> {
    pub(super) from: &'a [f32],
    pub(super) to: &'a mut [u8],
}

impl Kernel for ToBytes<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let half = s.splat(0.5);
        for (x, y) in self.from.chunks(S::LANES).zip(self.to.chunks_mut(S::LANES)) {
            // In this order the maximum of NaN and 0 is 0.
            let v = s.min(s.max(s.fma(s.load(x), half, half), s.splat(0.0)), s.splat(1.0));
            s.store_bytes(s.round(s.mul(v, s.splat(255.0))), y);
        }
    }
}
