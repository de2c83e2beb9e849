//! What was measured, as text and as JSON.

use std::fmt::Write;
use std::time::Duration;

use serde_json::{Value, json};
use svdq::engine::{Context, KernelTime, Model, StepTimes, Work};

/// What an H100 sustains, from kernels/MEASURED.md: operations a second of its tensor cores, bytes a second of its memory.
const INT8_CEILING: f64 = 1836e12;
const BF16_CEILING: f64 = 850e12;
const MEMORY_CEILING: f64 = 2.97e12;

/// Everything that was measured.
pub(super) struct Bench {
    device: String,
    model: String,
    profile: String,
    runs: usize,
    /// Making the context.
    pub(super) open: Duration,
    load: Duration,
    /// What it takes to read the model's files and to copy them to the device, and their bytes.
    pub(super) reading: Option<(Duration, u64)>,
    /// Loading the LoRAs, the first time and again.
    pub(super) lora_load: Option<[Duration; 2]>,
    /// Bytes of GPU memory after loading, and the most at any time.
    pub(super) memory: Option<[u64; 2]>,
    pub(super) sizes: Vec<Size>,
}

/// Images of one size.
pub(super) struct Size {
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) steps: u32,
    /// From the start of the command.
    pub(super) first_step: Duration,
    /// Text encoders, transformer, VAE, whole.
    pub(super) image: [Duration; 4],
    pub(super) step: StepTimes,
}

/// Durations of the parts of every timed run.
#[derive(Default)]
pub(super) struct Parts([Vec<Duration>; 4]);

impl Parts {
    pub(super) fn push(&mut self, durations: [Duration; 4]) {
        for (part, duration) in self.0.iter_mut().zip(durations) {
            part.push(duration);
        }
    }

    pub(super) fn medians(mut self) -> [Duration; 4] {
        self.0.each_mut().map(|part| {
            part.sort_unstable();
            part[part.len() / 2]
        })
    }
}

impl Bench {
    pub(super) fn new(context: &Context, model: &Model, name: &str, load: Duration, runs: usize) -> Self {
        Bench {
            device: context.device_name().into(),
            model: name.into(),
            profile: format!("{:?}", model.profile()),
            runs,
            open: Duration::ZERO,
            load,
            reading: None,
            lora_load: None,
            memory: None,
            sizes: vec![],
        }
    }

    pub(super) fn text(&self) -> String {
        let Bench { device, model, profile, runs, .. } = self;
        let mut text = format!("{model} on {device}, {profile}, medians of {runs}; milliseconds\n");
        line(&mut text, "open the device", self.open);
        line(&mut text, "load", self.load);
        if let Some((time, _)) = self.reading {
            line(&mut text, "  read and copy the same bytes", time);
        }
        if let Some([first, again]) = self.lora_load {
            line(&mut text, "load the LoRAs for the first time", first);
            line(&mut text, "load the LoRAs again", again);
        }
        if let Some([resident, peak]) = self.memory {
            let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
            let _ = writeln!(
                text,
                "GPU memory: {:.2} GiB after loading, {:.2} GiB at most",
                gib(resident),
                gib(peak)
            );
        }
        self.sizes.iter().for_each(|size| size.text(&mut text));
        text
    }

    pub(super) fn json(&self) -> String {
        let value = json!({
            "device": self.device,
            "model": self.model,
            "profile": self.profile,
            "runs": self.runs,
            "open_ms": milliseconds(self.open),
            "load_ms": milliseconds(self.load),
            "read_and_copy_ms": self.reading.map(|(time, _)| milliseconds(time)),
            "file_bytes": self.reading.map(|(_, bytes)| bytes),
            "lora_first_load_ms": self.lora_load.map(|[first, _]| milliseconds(first)),
            "lora_load_ms": self.lora_load.map(|[_, again]| milliseconds(again)),
            "resident_bytes": self.memory.map(|[resident, _]| resident),
            "peak_bytes": self.memory.map(|[_, peak]| peak),
            "sizes": self.sizes.iter().map(Size::json).collect::<Vec<_>>(),
        });
        format!("{value:#}\n")
    }
}

impl Size {
    fn text(&self, text: &mut String) {
        let Size { width, height, steps, .. } = self;
        let _ = writeln!(text, "\n{width}x{height}, {steps} steps");
        let parts = ["text encoders", "transformer", "VAE", "whole image"];
        parts.into_iter().zip(self.image).for_each(|(name, time)| line(text, name, time));
        let StepTimes { step, asked, asked_anew, step_anew, condition, attach, ref kernels } = self.step;
        for (name, time) in [
            ("start of the command to its first step", self.first_step),
            ("attach LoRAs", attach),
            ("modulation of all steps", condition),
            ("a step", step),
            ("  of which the CPU asks for it", asked),
            ("a step that is not replayed", step_anew),
            ("  of which the CPU asks for it", asked_anew),
        ] {
            line(text, name, time);
        }
        table(text, kernels);
    }

    fn json(&self) -> Value {
        let [encode, transformer, decode, whole] = self.image.map(milliseconds);
        let all = total(&self.step.kernels);
        json!({
            "width": self.width,
            "height": self.height,
            "steps": self.steps,
            "first_step_ms": milliseconds(self.first_step),
            "text_encoders_ms": encode,
            "transformer_ms": transformer,
            "vae_ms": decode,
            "image_ms": whole,
            "attach_ms": milliseconds(self.step.attach),
            "modulation_ms": milliseconds(self.step.condition),
            "step_ms": milliseconds(self.step.step),
            "step_cpu_ms": milliseconds(self.step.asked),
            "step_not_replayed_ms": milliseconds(self.step.step_anew),
            "step_not_replayed_cpu_ms": milliseconds(self.step.asked_anew),
            "kernels": self.step.kernels.iter().map(|kernel| kernel_json(kernel, all)).collect::<Vec<_>>(),
        })
    }
}

fn line(text: &mut String, name: &str, time: Duration) {
    let _ = writeln!(text, "{name:<40}{:9.2}", milliseconds(time));
}

/// Kernels of a step, those that take most first.
fn table(text: &mut String, kernels: &[KernelTime]) {
    if kernels.is_empty() {
        return;
    }
    let all = total(kernels);
    let mut sorted: Vec<_> = kernels.iter().collect();
    sorted.sort_by_key(|kernel| std::cmp::Reverse(kernel.time));
    let _ = writeln!(
        text,
        "{:<26}{:<20}{:>8}{:>9}{:>9}{:>14}{:>9}",
        "kernel", "sizes", "launches", "ms", "of step", "speed", "of most"
    );
    for kernel in sorted {
        let sizes: Vec<_> = kernel.sizes.iter().filter(|&&size| size > 0).map(usize::to_string).collect();
        let speed = match speed(kernel) {
            Some(Speed { rate, ceiling, unit }) => {
                format!("{:7.0} {unit}{:7.0} %", rate, 100.0 * rate / ceiling)
            }
            None => String::new(),
        };
        let _ = writeln!(
            text,
            "{:<26}{:<20}{:>8}{:>9.3}{:>7.1} %  {speed}",
            kernel.name,
            sizes.join(" "),
            kernel.launches,
            milliseconds(kernel.time),
            100.0 * kernel.time.as_secs_f64() / all.as_secs_f64().max(1e-12),
        );
    }
    line(text, "all kernels, with the events between them", all);
}

fn kernel_json(kernel: &KernelTime, all: Duration) -> Value {
    let speed = speed(kernel);
    json!({
        "name": kernel.name,
        "sizes": kernel.sizes,
        "launches": kernel.launches,
        "ms": milliseconds(kernel.time),
        "share_of_step": kernel.time.as_secs_f64() / all.as_secs_f64().max(1e-12),
        "speed": speed.as_ref().map(|speed| speed.rate),
        "unit": speed.as_ref().map(|speed| speed.unit),
        "share_of_ceiling": speed.map(|speed| speed.rate / speed.ceiling),
    })
}

/// How fast a kernel is, in the unit that limits it.
struct Speed {
    rate: f64,
    ceiling: f64,
    unit: &'static str,
}

fn speed(kernel: &KernelTime) -> Option<Speed> {
    let (amount, ceiling, scale, unit) = match kernel.work {
        Work::Int8(operations) => (operations, INT8_CEILING, 1e12, "TF/s"),
        Work::Bf16(operations) => (operations, BF16_CEILING, 1e12, "TF/s"),
        Work::Bytes(bytes) => (bytes, MEMORY_CEILING, 1e9, "GB/s"),
        Work::Small => return None,
    };
    let seconds = kernel.time.as_secs_f64() / kernel.launches as f64;
    let rate = |amount: f64| amount / scale;
    (seconds > 0.0).then(|| Speed { rate: rate(amount / seconds), ceiling: rate(ceiling), unit })
}

fn total(kernels: &[KernelTime]) -> Duration {
    kernels.iter().map(|kernel| kernel.time).sum()
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
