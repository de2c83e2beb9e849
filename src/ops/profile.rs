//! What the parts of some work took.

use std::time::Duration;

/// What a kernel does, of the kind that limits its speed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Work {
    /// Nothing worth counting.
    #[default]
    Small,
    /// Operations of 8-bit tensor cores, two a multiply-add.
    Int8(f64),
    /// Operations of 16-bit tensor cores, two a multiply-add.
    Bf16(f64),
    /// Bytes read and written.
    Bytes(f64),
}

impl Work {
    /// `[m, k] · [k, n]` on 8-bit tensor cores.
    pub fn int8(m: usize, n: usize, k: usize) -> Self {
        Work::Int8(2.0 * m as f64 * n as f64 * k as f64)
    }

    /// `[m, k] · [k, n]` on 16-bit tensor cores.
    pub fn bf16(m: usize, n: usize, k: usize) -> Self {
        Work::Bf16(2.0 * m as f64 * n as f64 * k as f64)
    }
}

/// All launches of one kernel with the same sizes.
#[derive(Clone, Debug)]
pub struct KernelTime {
    /// The kernel's name.
    pub name: String,
    /// What it worked on: of a product M, N and K, else what says most; 0 where there is nothing to say.
    pub sizes: [usize; 3],
    /// How often it ran.
    pub launches: usize,
    /// Of all launches: from the end of what ran before each to its own end.
    pub time: Duration,
    /// Of one launch.
    pub work: Work,
}
