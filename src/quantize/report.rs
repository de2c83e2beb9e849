//! What [`quantize`](super::quantize) says about its work.

use std::fmt;

/// One linear that was quantised.
#[derive(Clone, Debug)]
pub struct LayerReport {
    /// Its name in the output.
    pub name: String,
    /// Output features.
    pub n: usize,
    /// Input features.
    pub k: usize,
    /// Power of the outputs over power of their errors, in dB, when only the weights are quantised: for modulation with
    /// sampled conditioning, for the others with uncorrelated inputs of the sizes that the quantiser assumes.
    pub sqnr_db: f64,
    /// How many linears are done, with this one.
    pub done: usize,
    /// How many there are in the model.
    pub total: usize,
}

/// All linears, and the size of the file. Displayed, it is a table.
#[derive(Clone, Debug)]
pub struct Report {
    /// In the order of the file.
    pub layers: Vec<LayerReport>,
    /// Size of the file.
    pub bytes: u64,
}

impl fmt::Display for LayerReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<50} {:>6} x {:<6} {:>6.2} dB", self.name, self.n, self.k, self.sqnr_db)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<50} {:>6} x {:<6} {:>6}", "linear", "out", "in", "SQNR")?;
        for layer in &self.layers {
            writeln!(f, "{layer}")?;
        }
        let weights: usize = self.layers.iter().map(|l| l.n * l.k).sum();
        let worst = self.layers.iter().map(|l| l.sqnr_db).fold(f64::INFINITY, f64::min);
        let mean = self.layers.iter().map(|l| l.sqnr_db).sum::<f64>() / self.layers.len().max(1) as f64;
        write!(
            f,
            "{} linears, {:.1} M weights: mean {mean:.2} dB, worst {worst:.2} dB; file {:.1} MB",
            self.layers.len(),
            weights as f64 / 1e6,
            self.bytes as f64 / 1e6,
        )
    }
}
