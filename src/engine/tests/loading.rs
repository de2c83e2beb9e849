use std::io;
use std::sync::{Arc, Mutex};

use super::*;
use crate::Cancel;
use crate::memory::HostMemory;
use crate::weights::{Loading, ReadAt};

/// What to do before each read.
type Before = Box<dyn FnMut() -> io::Result<()> + Send>;

/// A file that is read from memory.
struct Calls {
    bytes: Vec<u8>,
    before: Arc<Mutex<Before>>,
}

impl ReadAt for Calls {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_at(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        (self.before.lock().unwrap())()?;
        to.copy_from_slice(&self.bytes[offset as usize..][..to.len()]);
        Ok(())
    }
}

/// The demo model's folder, and its 16-bit transformer read through calls.
fn options(before: impl FnMut() -> io::Result<()> + Send + 'static) -> ModelOptions {
    let bytes = std::fs::read(demo().join("transformer/diffusion_pytorch_model.safetensors")).unwrap();
    let before: Before = Box::new(before);
    let file = Arc::new(Calls { bytes, before: Arc::new(Mutex::new(before)) });
    let sources = vec![Source::from(&demo()), Source::Callbacks { name: None, file }];
    ModelOptions { sources, ..Default::default() }
}

fn context(memory: &HostMemory) -> Context {
    let memory = memory.clone();
    let options = ContextOptions { device: DeviceSelect::Cpu, threads: 1, memory, ..Default::default() };
    Context::new(options).unwrap()
}

#[test]
fn a_load_knows_how_far_it_is() {
    let memory = HostMemory::default();
    let loading = Loading::new(Cancel::default(), memory.clone());
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (asked, told) = (loading.clone(), seen.clone());
    let options = options(move || {
        told.lock().unwrap().push(asked.fraction());
        Ok(())
    });
    assert_eq!(loading.fraction(), 0.0);
    let model = Model::load_with(&context(&memory), &options, &loading).unwrap();
    assert_eq!((memory.used(), model.host_bytes() > 1 << 20), (model.host_bytes(), true));
    drop(model);
    assert_eq!(memory.used(), 0);
    let seen = seen.lock().unwrap();
    assert!(seen.is_sorted(), "{seen:?}");
    assert_eq!(seen[0], 0.0);
    // Reading and using it is most of the work, and goes on in small steps.
    let step = seen.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f32::max);
    assert!(step < 0.3 && seen[seen.len() - 1] > 0.5, "{step} {seen:?}");
    // The VAE's encoder is not used, and half of a percent of the rest.
    assert!(loading.fraction() > 0.9 && loading.fraction() <= 1.0, "{}", loading.fraction());
}

/// Whichever read fails, all memory is given back.
#[test]
fn a_load_that_fails_leaves_nothing() {
    let memory = HostMemory::default();
    let context = context(&memory);
    for fails in [0, 1, 2, 3, 4, 5, 9, 50, 101] {
        let mut reads = 0;
        let options = options(move || {
            reads += 1;
            if reads > fails { Err(io::Error::other("no")) } else { Ok(()) }
        });
        let loading = Loading::new(Cancel::default(), memory.clone());
        let error = Model::load_with(&context, &options, &loading).err().unwrap();
        assert!(matches!(error, Error::Io { .. }), "{error}");
        let text = error.to_string();
        assert!(text.starts_with("source 1: reading ") && text.ends_with(": no"), "{text}");
        assert_eq!(memory.used(), 0, "read {fails}");
    }
}

/// Whenever it is asked to, a load stops before the next tensor, and gives its memory back.
#[test]
fn a_load_can_be_cancelled() {
    for at in [0, 1, 2, 7, 40, 100] {
        let (cancel, memory) = (Cancel::default(), HostMemory::default());
        let reads = Arc::new(Mutex::new(0));
        let (count, asked) = (reads.clone(), cancel.clone());
        let options = options(move || {
            let mut count = count.lock().unwrap();
            if *count == at {
                asked.cancel();
            }
            *count += 1;
            Ok(())
        });
        let loading = Loading::new(cancel, memory.clone());
        let error = Model::load_with(&context(&memory), &options, &loading).err().unwrap();
        assert!(matches!(error, Error::Cancelled), "{error}");
        let reads = *reads.lock().unwrap();
        // Opening the file reads a header twice, in two pieces: which networks are in it, and then the one.
        let expected = if at < 4 { 4 } else { at + 1 };
        assert_eq!(reads, expected, "cancelled at read {at}");
        assert_eq!(memory.used(), 0);
    }
    let cancelled = Cancel::default();
    cancelled.cancel();
    let memory = HostMemory::default();
    let loading = Loading::new(cancelled, memory.clone());
    let options = ModelOptions { sources: vec![Source::from(&demo())], ..Default::default() };
    assert!(matches!(Model::load_with(&context(&memory), &options, &loading), Err(Error::Cancelled)));
}
