//! One double and one single block of FLUX.1 at full width against PyTorch: what 4 bits cost.

use std::path::Path;

use svdq::device::cpu::Cpu;
use svdq::device::cuda::{Cuda, Gpu};
use svdq::lora::Run;
use svdq::models::flux::Flux;
use svdq::ops::{Device, Profile};
use svdq::weights::Checkpoint;
use svdq::weights::flux::FluxWeights;

/// What tests/golden/full_width.py wrote.
struct Golden {
    io: Checkpoint,
    patches: usize,
    text_rows: usize,
    grid: [usize; 2],
}

impl Golden {
    fn open(folder: &Path) -> Self {
        let io = Checkpoint::open(&folder.join("io.safetensors")).unwrap();
        let rows = |name| io.get(name).unwrap().shape[0];
        let (patches, text_rows) = (rows("img"), rows("txt"));
        let grid = io.f32("grid", &[2]).unwrap();
        Golden { patches, text_rows, grid: [grid[0] as usize, grid[1] as usize], io }
    }

    fn matrix(&self, name: &str, rows: usize) -> (Vec<f32>, usize) {
        let cols = self.io.get(name).unwrap().shape[1];
        (self.io.f32(name, &[rows, cols]).unwrap().to_vec(), cols)
    }

    fn run<D: Device>(&self, dev: &D, weights: &FluxWeights) -> Vec<f32> {
        let flux = Flux::load(dev, weights).unwrap();
        let run = Run::plain(dev);
        let upload = |(data, cols): (Vec<f32>, usize)| dev.upload(&data, cols).unwrap();
        let one = |name| self.io.f32(name, &[1]).unwrap()[0];
        let pooled = self.io.f32("pooled", &[weights.config().pooled_projection_dim]).unwrap();
        let mut conditioning = flux.condition(run, &[one("timestep")], one("guidance"), &pooled).unwrap();
        let text = upload(self.matrix("txt", self.text_rows));
        let sequence = flux.sequence(run, &text, self.text_rows, self.grid).unwrap();
        let latents = upload(self.matrix("img", self.patches));
        let mut velocity = dev.zeros(self.patches, weights.config().out_channels).unwrap();
        flux.velocity(run, &latents, &sequence, &mut conditioning, 0, &mut velocity).unwrap();
        dev.download(&velocity).unwrap().to_vec()
    }
}

/// Signal over noise in dB.
fn sqnr(want: &[f32], got: &[f32]) -> f64 {
    assert_eq!(want.len(), got.len());
    let power = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
    let error = power(&mut want.iter().zip(got).map(|(&w, &g)| f64::from(g) - f64::from(w)));
    10.0 * (power(&mut want.iter().map(|&w| f64::from(w))) / error).log10()
}

/// Prints the noise of every profile on both devices, in the folder that SVDQ_FULL_WIDTH names; see full_width.py for
/// what is in it.
///
/// The devices have the same noise, to 0.3 dB: they have the same integers, and bf16 is far below it.
pub(crate) fn full_width(gpu: &Gpu, folder: &Path) {
    let golden = Golden::open(folder);
    let (want, _) = golden.matrix("out", golden.patches);
    let (torch, _) = golden.matrix("out_bf16", golden.patches);
    println!("     PyTorch in bfloat16: {:.1} dB", sqnr(&want, &torch));
    let dense = FluxWeights::open(&folder.join("transformer")).unwrap();
    let cuda = |profile| Cuda::new(gpu.clone(), profile);
    println!(
        "     16-bit weights on the GPU: {:.1} dB",
        sqnr(&want, &golden.run(&cuda(Profile::W4A16), &dense))
    );
    let weights = FluxWeights::open(&folder.join("svdq.safetensors")).unwrap();
    for profile in [Profile::W4A16, Profile::W4A8, Profile::W4A4] {
        let cpu = sqnr(&want, &golden.run(&Cpu::new(0, profile).unwrap(), &weights));
        println!("     {profile:?} on the CPU: {cpu:.2} dB");
        if let Err(why) = gpu.check(weights.is_nvfp4(), profile) {
            println!("     {profile:?} on the GPU: {why}");
            continue;
        }
        let gpu = sqnr(&want, &golden.run(&cuda(profile), &weights));
        println!("     {profile:?} on the GPU: {gpu:.2} dB");
        assert!((cpu - gpu).abs() < 0.3, "{profile:?}");
    }
}
