//! Work that is asked to stop.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::linear::Layer;
use super::*;
use crate::ops::{Activation, Attention, Mask, Norm};
use crate::{Cancel, Error, Result};

/// An operation leaves out the tasks that no thread has begun when it is asked to stop.
#[test]
fn tasks_are_left_out() {
    for threads in [1, 3] {
        let cpu = Cpu::with_level(threads, Profile::W4A8, Level::all()[0]).unwrap();
        let (cancel, done) = (Cancel::default(), AtomicUsize::new(0));
        cpu.set_cancel(cancel.clone());
        let result = cpu.on().run(1000, |i| {
            match i {
                10 => cancel.cancel(),
                // The others are still at work then.
                11.. => while cancel.check().is_ok() {},
                _ => {}
            }
            done.fetch_add(1, Ordering::Relaxed);
        });
        assert!(matches!(result, Err(Error::Cancelled)));
        let others = cpu.on().run(1000, |_| panic!("a task of an operation that was cancelled before"));
        assert!(matches!(others, Err(Error::Cancelled)));
        assert!((11..11 + threads).contains(&done.into_inner()), "{threads} threads");
    }
}

/// After the end of what was cancelled, the same operations give the same bits; loading is not affected at all.
#[test]
fn operations_end_and_work_again() {
    let cpu = Cpu::with_level(2, Profile::W4A8, Level::all()[0]).unwrap();
    let mut random = Random(3);
    let layer = Layer::random(&mut random, 384, 128, 32, false);
    let x = upload(&cpu, &random.activations(40, 128), 128);
    let run = || -> Result<Vec<f32>> {
        let w = layer.load(&cpu);
        let input = cpu.prepare(&x, 0..40, Norm::Silu, plain(&w))?;
        let y = cpu.linear(&input, plain(&w), Activation::None)?;
        let y = cpu.attention(&y, Attention { heads: 2, scale: 0.1, mask: Mask::None })?;
        Ok(cpu.download(&y)?.to_vec())
    };
    let before = run().unwrap();
    let cancel = Cancel::default();
    cpu.set_cancel(cancel.clone());
    assert!(run().unwrap() == before);
    cancel.cancel();
    assert!(matches!(run(), Err(Error::Cancelled)));
    cpu.set_cancel(Cancel::default());
    assert!(run().unwrap() == before);
}
