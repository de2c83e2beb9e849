//! A device without numbers: it checks that the shapes of every operation fit. With it, networks of any
//! size are walked without weights.

use std::ops::Range;
use std::sync::LazyLock;

use super::*;

pub(crate) struct Shapes;

static MEMORY: LazyLock<HostMemory> = LazyLock::new(HostMemory::default);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
}

pub(crate) struct Linear {
    n: usize,
    k: usize,
}

/// The shape of the linear that it updates.
pub(crate) struct LowRank {
    n: usize,
    k: usize,
}

pub(crate) struct Conv {
    n: usize,
    c: usize,
    stride: usize,
    upsample: bool,
}

impl Shape {
    fn assert(self, rows: usize, cols: usize) {
        assert_eq!(self, Shape { rows, cols });
    }
}

impl Shapes {
    fn check_norm(&self, cols: usize, norm: &Norm<'_, Self>) {
        match norm {
            Norm::None | Norm::Silu => {}
            Norm::Layer { weight, bias, .. } => {
                weight.assert(1, cols);
                bias.assert(1, cols);
            }
            Norm::Rms { weight, .. } => weight.assert(1, cols),
            Norm::Modulate { scale, shift } => {
                self.check_chunk(cols, scale);
                self.check_chunk(cols, shift);
            }
        }
    }

    fn check_layer(&self, w: Layer<'_, Self>) {
        for (update, _) in w.updates {
            assert_eq!([update.n, update.k], [w.weights.n, w.weights.k]);
        }
    }

    fn check_chunk(&self, cols: usize, chunk: &Chunk<'_, Self>) {
        assert!(chunk.row < chunk.table.rows && chunk.start + cols <= chunk.table.cols);
    }
}

impl Device for Shapes {
    type Tensor = Shape;
    type Linear = Linear;
    type LowRank = LowRank;
    /// Rows that are ready for a linear of so many input features.
    type Input = Shape;
    type Conv = Conv;

    fn load_linear(&self, source: &LinearSource<'_>) -> Result<Linear> {
        let [n, k] = source.shape();
        Ok(Linear { n, k })
    }

    fn load_low_ranks(&self, sources: &[LowRankSource<'_>]) -> Result<Vec<LowRank>> {
        let check = |source: &LowRankSource<'_>| {
            let LowRankSource { n, k, ref rows, rank, .. } = *source;
            assert!(rows.end <= n);
            assert_eq!([source.down.count(), source.up.count()], [rank * k, rows.len() * rank]);
            assert!([0, rows.len()].contains(&source.bias.len()));
            LowRank { n, k }
        };
        Ok(sources.iter().map(check).collect())
    }

    fn load_conv(&self, source: &ConvSource) -> Result<Conv> {
        assert_eq!(source.weight.len(), source.n * source.c * source.kernel * source.kernel);
        Ok(Conv { n: source.n, c: source.c, stride: source.stride, upsample: source.upsample })
    }

    fn upload(&self, data: &[f32], cols: usize) -> Result<Shape> {
        assert_eq!(data.len() % cols, 0);
        self.zeros(data.len() / cols, cols)
    }

    fn zeros(&self, rows: usize, cols: usize) -> Result<Shape> {
        assert!(rows > 0 && cols > 0);
        Ok(Shape { rows, cols })
    }

    fn empty(&self, rows: usize, cols: usize) -> Result<Shape> {
        self.zeros(rows, cols)
    }

    fn upload_rope(&self, data: &[f32], head_dim: usize) -> Result<Shape> {
        self.upload(data, head_dim)
    }

    fn download(&self, x: &Shape) -> Result<Buf<f32>> {
        Buf::zeroed(&MEMORY, x.rows * x.cols, "numbers")
    }

    fn prepare(
        &self,
        x: &Shape,
        rows: Range<usize>,
        norm: Norm<'_, Self>,
        w: Layer<'_, Self>,
    ) -> Result<Shape> {
        assert_eq!(x.cols, w.weights.k);
        self.check_layer(w);
        assert!(rows.end <= x.rows);
        self.check_norm(x.cols, &norm);
        self.zeros(rows.len(), w.weights.k)
    }

    fn linear(&self, x: &Shape, w: Layer<'_, Self>, _: Activation) -> Result<Shape> {
        assert_eq!(x.cols, w.weights.k);
        self.zeros(x.rows, w.weights.n)
    }

    fn linear_into(&self, x: &Shape, w: Layer<'_, Self>, into: &mut Shape, column: usize) -> Result<()> {
        assert!(x.rows == into.rows && column + w.weights.n <= into.cols);
        self.linear(x, w, Activation::None).map(drop)
    }

    fn linear_mul(&self, x: &Shape, w: Layer<'_, Self>, act: Activation, by: &Shape) -> Result<Shape> {
        by.assert(x.rows, w.weights.n);
        self.linear(x, w, act)
    }

    fn linear_add(
        &self,
        x: &Shape,
        w: Layer<'_, Self>,
        gate: Option<Chunk<'_, Self>>,
        into: &mut Shape,
        row: usize,
    ) -> Result<()> {
        assert_eq!((x.cols, into.cols), (w.weights.k, w.weights.n));
        assert!(row + x.rows <= into.rows);
        if let Some(gate) = gate {
            self.check_chunk(w.weights.n, &gate);
        }
        Ok(())
    }

    fn linear_qkv(
        &self,
        x: &Shape,
        w: Layer<'_, Self>,
        norm: QkNormRope<'_, Self>,
        into: &mut Shape,
        row: usize,
    ) -> Result<()> {
        let head_dim = norm.rope.cols;
        norm.q.assert(1, head_dim);
        norm.k.assert(1, head_dim);
        norm.rope.assert(into.rows, head_dim);
        assert_eq!(w.weights.n % (3 * head_dim), 0);
        self.linear_add(x, w, None, into, row)
    }

    fn linear_gelu(&self, x: &Shape, w: Layer<'_, Self>, next: Layer<'_, Self>) -> Result<Shape> {
        let hidden = self.linear(x, w, Activation::GeluTanh)?;
        self.prepare(&hidden, 0..hidden.rows, Norm::None, next)
    }

    fn norm(&self, x: &Shape, norm: Norm<'_, Self>) -> Result<Shape> {
        self.check_norm(x.cols, &norm);
        Ok(*x)
    }

    fn attention(&self, qkv: &Shape, spec: Attention<'_, Self>) -> Result<Shape> {
        assert_eq!(qkv.cols % (3 * spec.heads), 0);
        if let Mask::Bias(bias) = spec.mask {
            bias.assert(spec.heads, 2 * qkv.rows - 1);
        }
        self.zeros(qkv.rows, qkv.cols / 3)
    }

    fn group_norm(&self, x: &Shape, groups: usize, weight: &Shape, bias: &Shape, _: bool) -> Result<Shape> {
        assert_eq!(x.cols % groups, 0);
        weight.assert(1, x.cols);
        bias.assert(1, x.cols);
        Ok(*x)
    }

    fn conv(&self, x: &Shape, size: [usize; 2], w: &Conv, add: Option<&Shape>) -> Result<Shape> {
        x.assert(size[0] * size[1], w.c);
        let side = |side: usize| if w.upsample { 2 * side } else { side / w.stride };
        let y = self.zeros(side(size[0]) * side(size[1]), w.n)?;
        if let Some(add) = add {
            add.assert(y.rows, y.cols);
        }
        Ok(y)
    }

    fn copy_rows(&self, from: &Shape, rows: Range<usize>, into: &mut Shape, row: usize) -> Result<()> {
        assert_eq!(from.cols, into.cols);
        assert!(rows.end <= from.rows && row + rows.len() <= into.rows);
        Ok(())
    }

    fn repeat(&self, _: &[u64], step: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        step()
    }

    fn place(&self, x: &Shape) -> u64 {
        std::ptr::from_ref(x) as u64
    }

    fn euler_step(&self, latents: &mut Shape, velocity: &Shape, _: f32) -> Result<()> {
        latents.assert(velocity.rows, velocity.cols);
        Ok(())
    }

    fn to_rgb8(&self, x: &Shape) -> Result<Buf<u8>> {
        x.assert(x.rows, 3);
        Buf::zeroed(&MEMORY, x.rows * 3, "pixels")
    }

    fn memory(&self) -> &HostMemory {
        &MEMORY
    }

    fn measure(&self, work: impl FnOnce(&Self) -> Result<()>) -> Result<Cost> {
        work(self).map(|()| Cost::default())
    }
}
