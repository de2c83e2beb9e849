//! T5 v1.1's encoder: an embedding a token.

use std::path::Path;

use serde::Deserialize;

use super::embedding::{Embedding, fuse_rows};
use crate::lora::{Linear, Run, Sites};
use crate::ops::{Activation, Attention, Device, LinearSource, Mask, Norm};
use crate::weights::{Checkpoint, read_json};
use crate::{Error, Result};

/// The keys of config.json that the network depends on.
#[derive(Deserialize)]
struct Config {
    vocab_size: usize,
    d_model: usize,
    d_kv: usize,
    d_ff: usize,
    num_layers: usize,
    num_heads: usize,
    relative_attention_num_buckets: usize,
    relative_attention_max_distance: usize,
    layer_norm_epsilon: f32,
    feed_forward_proj: String,
    dense_act_fn: Option<String>,
}

impl Config {
    fn check(&self, path: &Path) -> Result<()> {
        let wrong = |what: String| Err(Error::format(path, what));
        if [self.d_model, self.num_heads, self.d_kv, self.d_ff].contains(&0) {
            return wrong("d_model, num_heads, d_kv and d_ff have to be at least 1".into());
        }
        let (buckets, far) = (self.relative_attention_num_buckets, self.relative_attention_max_distance);
        if buckets < 4 || far <= buckets / 4 {
            return wrong(format!(
                "relative_attention_num_buckets {buckets} and relative_attention_max_distance {far}: \
                 the first has to be at least 4, the second greater than a quarter of it"
            ));
        }
        let act = self.dense_act_fn.as_deref().unwrap_or("gelu_new");
        if self.feed_forward_proj != "gated-gelu" || act != "gelu_new" {
            return Err(Error::Unsupported(format!(
                "{}: feed_forward_proj {:?} with dense_act_fn {act:?}; T5 v1.1 has \"gated-gelu\" with \"gelu_new\"",
                path.display(),
                self.feed_forward_proj
            )));
        }
        Ok(())
    }
}

/// T5EncoderModel, v1.1: pre-norm blocks with RMSNorm, no biases, and a learned bias on attention
/// scores that depends on the distance of query and key and is the same in all layers.
pub struct T5<D: Device> {
    sites: Sites,
    tokens: Embedding,
    distances: Distances,
    layers: Vec<Layer<D>>,
    final_norm: D::Tensor,
    heads: usize,
    eps: f32,
}

struct Layer<D: Device> {
    norm1: D::Tensor,
    qkv: Linear<D>,
    out: Linear<D>,
    norm2: D::Tensor,
    gate: Linear<D>,
    up: Linear<D>,
    down: Linear<D>,
}

impl<D: Device> T5<D> {
    /// Reads a folder of `config.json` and safetensors.
    pub fn load(dev: &D, folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let config: Config = read_json(&path)?;
        config.check(&path)?;
        let (d_model, heads) = (config.d_model, config.num_heads);

        let weights = Checkpoint::open(folder)?;
        let tokens = ["shared.weight", "encoder.embed_tokens.weight"];
        let tokens = if weights.get(tokens[1]).is_some() { tokens[1] } else { tokens[0] };
        let buckets = config.relative_attention_num_buckets;
        let mut sites = Sites::default();
        let bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight";
        Ok(T5 {
            tokens: Embedding::load(&weights, tokens, config.vocab_size, d_model)?,
            distances: Distances {
                table: weights.f32(bias, &[buckets, heads])?,
                heads,
                half: buckets / 2,
                far: config.relative_attention_max_distance,
            },
            layers: (0..config.num_layers)
                .map(|i| Layer::load(dev, &mut sites, &weights, i, &config, &path))
                .collect::<Result<_>>()?,
            final_norm: dev.upload(&weights.f32("encoder.final_layer_norm.weight", &[d_model])?, d_model)?,
            sites,
            heads,
            eps: config.layer_norm_epsilon,
        })
    }

    /// Where LoRAs attach, by the names in transformers' T5EncoderModel.
    pub fn sites(&self) -> &Sites {
        &self.sites
    }

    /// The width of an embedding.
    pub fn hidden(&self) -> usize {
        self.tokens.cols()
    }

    /// Encodes the ids of one prompt, padding included, to `[tokens, d_model]`. Ids beyond the
    /// vocabulary and an empty list are [`Error::InvalidArgument`].
    pub fn encode(&self, run: Run<'_, D>, ids: &[u32]) -> Result<D::Tensor> {
        let mut x = run.dev.upload(&self.tokens.gather(ids)?, self.hidden())?;
        let bias = run.dev.upload(&self.distances.bias(ids.len())?, ids.len())?;
        for layer in &self.layers {
            layer.run(run, &mut x, &bias, ids.len(), self.heads, self.eps)?;
        }
        run.dev.norm(&x, Norm::Rms { weight: &self.final_norm, eps: self.eps })
    }
}

impl<D: Device> Layer<D> {
    fn load(
        dev: &D,
        sites: &mut Sites,
        weights: &Checkpoint,
        i: usize,
        config: &Config,
        path: &Path,
    ) -> Result<Self> {
        let (d_model, d_ff) = (config.d_model, config.d_ff);
        let inner = config.num_heads.checked_mul(config.d_kv);
        let inner = inner.ok_or_else(|| Error::format(path, "num_heads · d_kv is too large"))?;
        let name = |part: &str| format!("encoder.block.{i}.layer.{part}");
        let dense = |part: &str, n, k| weights.dense(&name(part), n, k, false);
        let norm = |part: &str| {
            let name = format!("encoder.block.{i}.layer.{part}.layer_norm.weight");
            dev.upload(&weights.f32(&name, &[d_model])?, d_model)
        };
        let parts = ["0.SelfAttention.q", "0.SelfAttention.k", "0.SelfAttention.v"];
        let [q, k, v] = parts.map(|part| dense(part, inner, d_model));
        let qkv = LinearSource::Dense(fuse_rows([q?, k?, v?]));
        let qkv = sites.linear(dev, &qkv, parts.iter().map(|part| name(part)))?;
        let mut linear = |part: &str, n, k| {
            sites.linear(dev, &LinearSource::Dense(dense(part, n, k)?), [name(part)].into_iter())
        };
        Ok(Layer {
            norm1: norm("0")?,
            qkv,
            out: linear("0.SelfAttention.o", d_model, inner)?,
            norm2: norm("1")?,
            gate: linear("1.DenseReluDense.wi_0", d_ff, d_model)?,
            up: linear("1.DenseReluDense.wi_1", d_ff, d_model)?,
            down: linear("1.DenseReluDense.wo", d_model, d_ff)?,
        })
    }

    /// `x += attention(norm1(x))`, `x += down(gelu(gate(norm2(x))) ⊙ up(norm2(x)))`
    fn run(
        &self,
        run: Run<'_, D>,
        x: &mut D::Tensor,
        bias: &D::Tensor,
        rows: usize,
        heads: usize,
        eps: f32,
    ) -> Result<()> {
        let input =
            run.dev.prepare(x, 0..rows, Norm::Rms { weight: &self.norm1, eps }, run.layer(&self.qkv))?;
        let qkv = run.dev.linear(&input, run.layer(&self.qkv), Activation::None)?;
        let seen = run.dev.attention(&qkv, Attention { heads, scale: 1.0, mask: Mask::Bias(bias) })?;
        let input = run.dev.prepare(&seen, 0..rows, Norm::None, run.layer(&self.out))?;
        run.dev.linear_add(&input, run.layer(&self.out), None, x, 0)?;

        let input =
            run.dev.prepare(x, 0..rows, Norm::Rms { weight: &self.norm2, eps }, run.layer(&self.up))?;
        let up = run.dev.linear(&input, run.layer(&self.up), Activation::None)?;
        let input =
            run.dev.prepare(x, 0..rows, Norm::Rms { weight: &self.norm2, eps }, run.layer(&self.gate))?;
        let wide = run.dev.linear_mul(&input, run.layer(&self.gate), Activation::GeluTanh, &up)?;
        let input = run.dev.prepare(&wide, 0..rows, Norm::None, run.layer(&self.down))?;
        run.dev.linear_add(&input, run.layer(&self.down), None, x, 0)
    }
}

/// The learned bias by distance of query and key, in buckets: half of them for keys before the query
/// and at it, half for keys after it. The first half of either is exact, the rest logarithmic up to
/// `far`; beyond that all distances share the last bucket.
struct Distances {
    /// `[buckets, heads]`
    table: Vec<f32>,
    heads: usize,
    half: usize,
    far: usize,
}

impl Distances {
    /// `[heads · tokens, tokens]`: row `head · tokens + query`.
    fn bias(&self, tokens: usize) -> Result<Vec<f32>> {
        let len = self.heads.checked_mul(tokens).and_then(|n| n.checked_mul(tokens));
        let no_memory = || Error::OutOfHostMemory {
            what: format!("T5's attention bias of {tokens} tokens"),
            bytes: len.unwrap_or(usize::MAX).saturating_mul(4) as u64,
        };
        let mut bias = Vec::new();
        bias.try_reserve_exact(len.ok_or_else(no_memory)?).map_err(|_| no_memory())?;
        let before: Vec<usize> = (0..tokens).map(|d| self.bucket(d)).collect();
        for head in 0..self.heads {
            for query in 0..tokens {
                bias.extend((0..tokens).map(|key| {
                    let after = if key > query { self.half } else { 0 };
                    self.table[(after + before[key.abs_diff(query)]) * self.heads + head]
                }));
            }
        }
        Ok(bias)
    }

    /// The bucket of a distance within its half, in the float32 arithmetic of transformers.
    fn bucket(&self, distance: usize) -> usize {
        let exact = self.half / 2;
        if distance < exact {
            return distance;
        }
        let octaves = (distance as f32 / exact as f32).ln() / (self.far as f64 / exact as f64).ln() as f32;
        let step = (octaves * (self.half - exact) as f32) as usize;
        (exact + step).min(self.half - 1)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::{Value, json};

    use super::*;
    use crate::device::cpu::Cpu;
    use crate::models::testing::{Altered, Golden, relative_error};
    use crate::ops::Profile;

    fn cpu() -> Cpu {
        Cpu::new(1, Profile::W4A8).unwrap()
    }

    /// The golden network agrees to 1e-4.
    fn check(folder: &Path) {
        let (dev, golden) = (cpu(), Golden::open("t5"));
        let t5 = T5::load(&dev, folder).unwrap();
        let ids = golden.ids();
        assert_eq!(ids.len(), 1);
        let got = dev.download(&t5.encode(Run::plain(&dev), &ids[0]).unwrap()).unwrap();
        let error = relative_error(&got, &golden.values("last_hidden_state"));
        assert!(error < 1e-4, "last_hidden_state is off by {error}");
    }

    #[test]
    fn agrees_with_transformers() {
        check(&Golden::open("t5").folder);
    }

    #[test]
    fn t5_xxl_is_legal() {
        let config: Config = serde_json::from_value(json!({
            "vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64,
            "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128,
            "layer_norm_epsilon": 1e-6, "feed_forward_proj": "gated-gelu",
        }))
        .unwrap();
        config.check(Path::new("config.json")).unwrap();
    }

    #[test]
    fn the_token_table_has_two_names() {
        check(
            Golden::open("t5").altered(|a| a.rename("shared.weight", "encoder.embed_tokens.weight")).path(),
        );
    }

    #[test]
    fn buckets_of_flux() {
        // First distance of every bucket: 8 exact ones, then 8 · 16^(i/8).
        let distances = Distances { table: vec![], heads: 64, half: 16, far: 128 };
        let first: Vec<usize> =
            (0..16).map(|b| (0..512).find(|&d| distances.bucket(d) == b).unwrap()).collect();
        assert_eq!(first, [0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91]);
        assert_eq!(distances.bucket(usize::MAX), 15);
    }

    #[test]
    fn bias_is_by_head_query_and_key() {
        // Head h: 10 h + bucket. Buckets 0 and 1: at and before the query, 3: after it.
        let table = vec![0.0, 10.0, 1.0, 11.0, 2.0, 12.0, 3.0, 13.0];
        let distances = Distances { table, heads: 2, half: 2, far: 3 };
        assert_eq!(distances.bias(2).unwrap(), [0.0, 3.0, 1.0, 0.0, 10.0, 13.0, 11.0, 10.0]);
        assert!(matches!(distances.bias(usize::MAX), Err(Error::OutOfHostMemory { .. })));
    }

    fn refusal(edit: impl FnOnce(&mut Altered)) -> Error {
        let folder = Golden::open("t5").altered(edit);
        T5::load(&cpu(), folder.path()).map(|_| ()).unwrap_err()
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let named = |error: Error, name: &str| {
            assert!(matches!(error, Error::BadFormat { .. }) && error.to_string().contains(name), "{error}");
        };
        let wo = "encoder.block.1.layer.1.DenseReluDense.wo.weight";
        named(refusal(|a| drop(a.tensors.remove(wo))), wo);
        named(refusal(|a| a.tensors.get_mut(wo).unwrap().1.reverse()), wo);
        named(refusal(|a| drop(a.tensors.remove("shared.weight"))), "shared.weight");
        for (key, value, name) in [
            ("vocab_size", json!(61), "shared.weight"),
            ("d_model", json!(0), "d_model"),
            ("d_model", json!(63), "shared.weight"),
            ("d_kv", json!(33), "SelfAttention.q"),
            ("d_kv", json!(usize::MAX), "num_heads · d_kv"),
            ("d_ff", json!(97), "wi_0"),
            ("num_heads", json!(4), "relative_attention_bias"),
            ("num_layers", json!(usize::MAX), "block.2."),
            ("relative_attention_num_buckets", json!(33), "relative_attention_bias"),
            ("relative_attention_num_buckets", json!(3), "relative_attention_num_buckets 3"),
            ("relative_attention_max_distance", json!(8), "relative_attention_max_distance 8"),
            ("layer_norm_epsilon", Value::Null, "layer_norm_epsilon"),
        ] {
            named(refusal(|a| a.config[key] = value.clone()), name);
        }
        for (key, value) in [("feed_forward_proj", "relu"), ("dense_act_fn", "silu")] {
            let error = refusal(|a| a.config[key] = json!(value));
            assert!(matches!(error, Error::Unsupported(_)) && error.to_string().contains(value), "{error}");
        }
    }

    #[test]
    fn ids_that_do_not_fit_are_refused() {
        let dev = cpu();
        let t5 = T5::load(&dev, &Golden::open("t5").folder).unwrap();
        for (ids, what) in
            [(vec![], "at least one"), (vec![3, 60, 1], "token id 60"), (vec![u32::MAX], "4294967295")]
        {
            match t5.encode(Run::plain(&dev), &ids).map(|_| ()) {
                Err(Error::InvalidArgument(text)) => assert!(text.contains(what), "{text}"),
                other => panic!("{other:?}"),
            }
        }
    }
}
