//! The flow-matching Euler sampler: diffusers' `FlowMatchEulerDiscreteScheduler`, driven as
//! `FluxPipeline` drives it.
//!
//! A sigma is a share of noise: the latents at `sigma` are `sigma · noise + (1 - sigma) · image`, and a
//! step adds `(sigma[i + 1] - sigma[i]) · velocity`. The arithmetic, float32 and float64 alike, follows
//! numpy and torch operation by operation, so that the sigmas come out the same to the last bit.

use std::path::Path;

use crate::weights::{Location, read_json};
use crate::{Error, Result};

/// What `scheduler_config.json` says. A field left out has diffusers' default.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(default)]
pub struct SchedulerConfig {
    #[serde(rename = "_class_name")]
    class_name: String,
    num_train_timesteps: u32,
    shift: f64,
    use_dynamic_shifting: bool,
    base_shift: f64,
    max_shift: f64,
    base_image_seq_len: u32,
    max_image_seq_len: u32,
    time_shift_type: TimeShift,
    // Read only to be refused.
    shift_terminal: Option<f64>,
    invert_sigmas: bool,
    use_karras_sigmas: bool,
    use_exponential_sigmas: bool,
    use_beta_sigmas: bool,
    stochastic_sampling: bool,
}

/// How the sigmas of larger images are shifted towards noise, by a `mu` that grows with the image.
#[derive(Clone, Copy, Debug, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
enum TimeShift {
    /// `e^mu / (e^mu + 1/t - 1)`
    Exponential,
    /// `mu / (mu + 1/t - 1)`
    Linear,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        SchedulerConfig {
            class_name: CLASS.into(),
            num_train_timesteps: 1000,
            shift: 1.0,
            use_dynamic_shifting: false,
            base_shift: 0.5,
            max_shift: 1.15,
            base_image_seq_len: 256,
            max_image_seq_len: 4096,
            time_shift_type: TimeShift::Exponential,
            shift_terminal: None,
            invert_sigmas: false,
            use_karras_sigmas: false,
            use_exponential_sigmas: false,
            use_beta_sigmas: false,
            stochastic_sampling: false,
        }
    }
}

const CLASS: &str = "FlowMatchEulerDiscreteScheduler";

impl SchedulerConfig {
    /// Reads and checks the file `at`. Options that would change the result and are not
    /// implemented give [`Error::Unsupported`].
    pub fn load(at: impl Into<Location>) -> Result<Self> {
        let at = at.into();
        let config: Self = read_json(&at)?;
        config.check(at.path())?;
        Ok(config)
    }

    /// What FLUX.1's own pipelines say: dev, and models like it, shift the sigmas by the size of the image; schnell does not.
    pub fn flux_1(dev: bool) -> Self {
        let shift = if dev { 3.0 } else { 1.0 };
        SchedulerConfig { shift, use_dynamic_shifting: dev, ..SchedulerConfig::default() }
    }

    fn check(&self, path: &Path) -> Result<()> {
        let unsupported = |what: &str| Err(Error::Unsupported(format!("{}: {what}", path.display())));
        if self.class_name != CLASS {
            return unsupported(&format!("the scheduler is {}, only {CLASS} is supported", self.class_name));
        }
        let options = [
            ("shift_terminal", self.shift_terminal.is_some_and(|s| s != 0.0)),
            ("invert_sigmas", self.invert_sigmas),
            ("use_karras_sigmas", self.use_karras_sigmas),
            ("use_exponential_sigmas", self.use_exponential_sigmas),
            ("use_beta_sigmas", self.use_beta_sigmas),
            ("stochastic_sampling", self.stochastic_sampling),
        ];
        if let Some((name, _)) = options.iter().find(|(_, set)| *set) {
            return unsupported(&format!("{name} is not supported"));
        }
        if self.num_train_timesteps == 0 {
            return Err(Error::format(path, "num_train_timesteps is 0"));
        }
        if !(self.shift.is_finite() && self.shift > 0.0) {
            return Err(Error::format(path, format!("shift is {}, it has to be positive", self.shift)));
        }
        if self.use_dynamic_shifting && self.base_image_seq_len == self.max_image_seq_len {
            let both = self.base_image_seq_len;
            return Err(Error::format(
                path,
                format!("base_image_seq_len and max_image_seq_len are both {both}"),
            ));
        }
        Ok(())
    }

    /// The shift of an image of so many tokens: linear through `(base_image_seq_len, base_shift)` and
    /// `(max_image_seq_len, max_shift)`, also beyond them.
    fn mu(&self, image_tokens: usize) -> f64 {
        let [base, max] = [self.base_image_seq_len, self.max_image_seq_len].map(f64::from);
        let slope = (self.max_shift - self.base_shift) / (max - base);
        image_tokens as f64 * slope + (self.base_shift - slope * base)
    }

    /// The function from evenly spaced sigmas to shifted ones.
    fn shift(&self, image_tokens: usize) -> impl Fn(f32) -> f32 {
        let weight = match (self.use_dynamic_shifting, self.time_shift_type) {
            (false, _) => self.shift,
            (true, TimeShift::Exponential) => self.mu(image_tokens).exp(),
            (true, TimeShift::Linear) => self.mu(image_tokens),
        };
        let (dynamic, less_one, weight) = (self.use_dynamic_shifting, (weight - 1.0) as f32, weight as f32);
        // Two ways to write the same function, which round differently.
        move |t: f32| match dynamic {
            true => weight / (weight + (1.0 / t - 1.0)),
            false => weight * t / (1.0 + less_one * t),
        }
    }
}

/// The sigmas of one image.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    /// `steps + 1` of them, falling from 1 to 0.
    pub sigmas: Vec<f32>,
    train_timesteps: f32,
}

impl Schedule {
    /// The schedule for `steps` (1 to 1000) steps of an image of `image_tokens` tokens.
    pub fn new(config: &SchedulerConfig, steps: usize, image_tokens: usize) -> Result<Self> {
        if !(1..=1000).contains(&steps) {
            return Err(Error::InvalidArgument(format!("steps is {steps}, it has to be from 1 to 1000")));
        }
        let shift = config.shift(image_tokens);
        let mut sigmas: Vec<f32> =
            linspace(1.0, 1.0 / steps as f64, steps).map(|t| shift(t as f32)).collect();
        if let Some(bad) = sigmas.iter().find(|s| !(s.is_finite() && **s >= 0.0)) {
            let what =
                format!("the scheduler's shift gives sigma {bad} for an image of {image_tokens} tokens");
            return Err(Error::Unsupported(what));
        }
        sigmas.push(0.0);
        Ok(Schedule { sigmas, train_timesteps: config.num_train_timesteps as f32 })
    }

    /// The same schedule without its first steps; one step is left at least.
    pub fn starting_at(mut self, step: usize) -> Self {
        self.sigmas.drain(..step.min(self.steps() - 1));
        self
    }

    /// The number of steps.
    pub fn steps(&self) -> usize {
        self.sigmas.len() - 1
    }

    /// What the transformer's [`sinusoidal`] embedding gets at step `i`. FluxPipeline casts
    /// the timestep to the model's dtype (`round`) and divides it by 1000 there, and the
    /// transformer multiplies by 1000 again.
    pub fn timestep(&self, i: usize, round: impl Fn(f32) -> f32) -> f32 {
        let timestep = round(self.sigmas[i] * self.train_timesteps);
        round(round(timestep / 1000.0) * 1000.0)
    }

    /// `sigma[i + 1] - sigma[i]`: the negative step length of Euler's method.
    pub fn dt(&self, i: usize) -> f32 {
        self.sigmas[i + 1] - self.sigmas[i]
    }
}

/// numpy's `linspace`: `count` values from `start` to `stop`, both included.
fn linspace(start: f64, stop: f64, count: usize) -> impl Iterator<Item = f64> {
    let last = count - 1;
    let step = (stop - start) / last as f64;
    (0..count).map(move |i| {
        if i == last && last > 0 {
            stop
        } else if i == 0 {
            start
        } else {
            i as f64 * step + start
        }
    })
}

/// diffusers' `get_timestep_embedding` as FLUX uses it: `cos(t f[j])` for `j < dim/2`, then
/// `sin(t f[j])`, with the frequencies `f[j] = 10000^(-j / (dim/2))`. `dim` is even.
pub fn sinusoidal(timestep: f32, dim: usize) -> Vec<f32> {
    let half = dim / 2;
    let log_period = -(10_000f64.ln()) as f32;
    let angles = (0..half).map(|j| {
        let exponent = log_period * j as f32 / half as f32;
        // Rounded once. torch's float32 exp is a bit off at 2 of 128, which is 3e-5 at t = 1000.
        f64::from(timestep * f64::from(exponent).exp() as f32)
    });
    let (sin, mut cos): (Vec<f32>, Vec<f32>) = angles.map(|a| (a.sin() as f32, a.cos() as f32)).unzip();
    cos.extend(sin);
    cos
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::weights::testing::TempDir;

    const DEV: &str = r#"{"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0,
        "use_dynamic_shifting": true, "shift_terminal": null, "an option of the future": 1}"#;

    fn load(json: &str) -> Result<SchedulerConfig> {
        let dir = TempDir::new();
        SchedulerConfig::load(&dir.write("scheduler_config.json", json.as_bytes()))
    }

    fn bf16(x: f32) -> f32 {
        half::bf16::from_f32(x).to_f32()
    }

    #[test]
    fn schedules_equal_diffusers() {
        #[derive(serde::Deserialize)]
        struct Case {
            name: String,
            config: serde_json::Value,
            image_tokens: usize,
            steps: usize,
            sigmas: Vec<f32>,
            timesteps: Vec<f32>,
        }
        let cases: Vec<Case> = serde_json::from_str(include_str!("../../tests/golden/sampler.json")).unwrap();
        assert!(!cases.is_empty());
        for case in cases {
            let config = load(&case.config.to_string()).unwrap();
            let schedule = Schedule::new(&config, case.steps, case.image_tokens).unwrap();
            assert_eq!(schedule.sigmas, case.sigmas, "{}", case.name);
            let timesteps: Vec<f32> = schedule.sigmas.iter().map(|s| s * schedule.train_timesteps).collect();
            assert_eq!(timesteps[..case.steps], case.timesteps, "{}", case.name);
        }
    }

    #[test]
    fn schnell_is_evenly_spaced() {
        let schedule = Schedule::new(&load("{}").unwrap(), 4, 4096).unwrap();
        assert_eq!(schedule.sigmas, [1.0, 0.75, 0.5, 0.25, 0.0]);
        assert_eq!(schedule.dt(3), -0.25);
        assert_eq!(schedule.steps(), 4);
    }

    #[test]
    fn larger_images_keep_more_noise() {
        let dev = load(DEV).unwrap();
        let [small, large] = [256, 4096].map(|tokens| Schedule::new(&dev, 20, tokens).unwrap().sigmas);
        assert!(small[1..20].iter().zip(&large[1..20]).all(|(s, l)| s < l));
        assert!(large.is_sorted_by(|a, b| a > b));
        let fixed = load(r#"{"shift": 3.0}"#).unwrap();
        assert_eq!(Schedule::new(&fixed, 2, 1).unwrap().sigmas, [1.0, 0.75, 0.0]);
        let linear = load(r#"{"use_dynamic_shifting": true, "time_shift_type": "linear"}"#).unwrap();
        assert_eq!(Schedule::new(&linear, 2, 256).unwrap().sigmas, [1.0, 0.5 / 1.5, 0.0]);
    }

    #[test]
    fn timesteps_are_rounded_where_diffusers_rounds() {
        let schedule = Schedule::new(&load("{}").unwrap(), 3, 64).unwrap();
        // From torch: (sigma * 1000).to(bfloat16) / 1000 * 1000, and in float32.
        assert_eq!([0, 1, 2].map(|i| schedule.timestep(i, bf16)), [1000.0, 668.0, 334.0]);
        assert_eq!([0, 1, 2].map(|i| schedule.timestep(i, |x| x)), [1000.0, 666.666_7, 333.333_34]);
    }

    #[test]
    fn sinusoidal_is_cosine_then_sine() {
        assert_eq!(sinusoidal(0.0, 4), [1.0, 1.0, 0.0, 0.0]);
        let e = sinusoidal(1.0, 4);
        assert_eq!(e, [1f32.cos(), 0.01f32.cos(), 1f32.sin(), 0.01f32.sin()]);
    }

    #[test]
    fn what_is_not_implemented_is_refused_by_name() {
        for option in [
            "\"shift_terminal\": 0.1",
            "\"invert_sigmas\": true",
            "\"use_karras_sigmas\": true",
            "\"use_exponential_sigmas\": true",
            "\"use_beta_sigmas\": true",
            "\"stochastic_sampling\": true",
            "\"_class_name\": \"EulerDiscreteScheduler\"",
        ] {
            let error = load(&format!("{{{option}}}")).unwrap_err();
            assert!(matches!(error, Error::Unsupported(_)), "{error}");
            let name = option.split('"').nth(if option.contains("Euler") { 3 } else { 1 }).unwrap();
            assert!(error.to_string().contains(name), "{error}");
            assert!(error.to_string().contains("scheduler_config.json"), "{error}");
        }
    }

    #[test]
    fn bad_configs_and_arguments_are_errors() {
        for bad in [
            "{",
            "7",
            r#"{"shift": 0}"#,
            r#"{"shift": "3"}"#,
            r#"{"num_train_timesteps": 0}"#,
            r#"{"time_shift_type": "cubic"}"#,
            r#"{"use_dynamic_shifting": true, "base_image_seq_len": 4096}"#,
        ] {
            let error = load(bad).unwrap_err();
            assert!(matches!(error, Error::BadFormat { .. }), "{bad}: {error}");
        }
        let config = load(DEV).unwrap();
        for steps in [0, 1001, usize::MAX] {
            assert!(matches!(Schedule::new(&config, steps, 64), Err(Error::InvalidArgument(_))));
        }
        for (max_shift, tokens) in [("1e9", 4096), ("-1e3", 1 << 40), ("1e308", usize::MAX)] {
            let config =
                load(&format!(r#"{{"use_dynamic_shifting": true, "max_shift": {max_shift}}}"#)).unwrap();
            assert!(Schedule::new(&config, 2, tokens).is_err(), "{max_shift}");
        }
    }
}
