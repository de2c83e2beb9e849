//! T5 v1.1's encoder: an embedding a token.

use std::borrow::Cow;
use std::path::Path;

use serde::Deserialize;

use super::embedding::{Embedding, fuse_rows};
use crate::lora::{Linear, Run, Sites};
use crate::memory::{Buf, HostMemory};
use crate::ops::{Activation, Attention, AwqSource, Device, LinearSource, Mask, Norm, Usage};
use crate::weights::{Checkpoint, Dtype, Location, PartKind, pack, read_json};
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

/// Channels of a token of the encoder in `weights`.
///
/// # Errors
/// What is wrong with its config.
pub(crate) fn width(weights: &Checkpoint) -> Result<usize> {
    Ok(Config::of(weights)?.d_model)
}

impl Config {
    /// The config of an encoder: its config.json, or, of a file on its own, what its tensors say.
    fn of(weights: &Checkpoint) -> Result<Self> {
        let stated = weights.config();
        let config: Config = match &stated {
            Some(at) => read_json(at)?,
            None => Config::of_tensors(weights)?,
        };
        config.check(stated.as_ref().map_or(weights.path(), Location::path))?;
        Ok(config)
    }

    /// The config of a file on its own: T5 v1.1.
    fn of_tensors(weights: &Checkpoint) -> Result<Self> {
        let shape = |name: &str| {
            let tensor = weights.get(name).ok_or_else(|| weights.missing(name))?;
            <[usize; 2]>::try_from(tensor.shape)
                .map_err(|_| weights.bad(name, format!("has shape {:?}, a matrix is expected", tensor.shape)))
        };
        let rows = |name: &str| {
            let [packed, plain] = ["qweight", "weight"].map(|suffix| format!("{name}.{suffix}"));
            match weights.get(&packed) {
                Some(_) => shape(&packed).map(|[rows, _]| rows.saturating_mul(4)),
                None => shape(&plain).map(|[rows, _]| rows),
            }
        };
        let [vocab_size, d_model] = shape(tokens(weights))?;
        let [relative_attention_num_buckets, num_heads] = shape(DISTANCES)?;
        let inner = rows("encoder.block.0.layer.0.SelfAttention.q")?;
        let layer = |i: &usize| weights.get(&format!("encoder.block.{i}.layer.0.layer_norm.weight"));
        Ok(Config {
            vocab_size,
            d_model,
            d_kv: inner.checked_div(num_heads).unwrap_or(0),
            d_ff: rows("encoder.block.0.layer.1.DenseReluDense.wi_0")?,
            num_layers: (0..).take_while(|i| layer(i).is_some()).count(),
            num_heads,
            relative_attention_num_buckets,
            relative_attention_max_distance: 128,
            layer_norm_epsilon: 1e-6,
            feed_forward_proj: "gated-gelu".into(),
            dense_act_fn: None,
        })
    }

    fn check(&self, path: &Path) -> Result<()> {
        let wrong = |what: String| Err(Error::format(path, what));
        if [self.d_model, self.num_heads, self.d_kv, self.d_ff].contains(&0) {
            return wrong("d_model, num_heads, d_kv and d_ff have to be at least 1".into());
        }
        if self.num_heads.checked_mul(self.d_kv).is_none() {
            return wrong("num_heads · d_kv is too large".into());
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

const DISTANCES: &str = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight";

/// The token table has two names.
fn tokens(weights: &Checkpoint) -> &'static str {
    let tokens = ["shared.weight", "encoder.embed_tokens.weight"];
    if weights.get(tokens[1]).is_some() { tokens[1] } else { tokens[0] }
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
    /// Reads a folder of `config.json` and safetensors, or a file on its own, Nunchaku's 4-bit one too.
    pub fn load(dev: &D, path: &Path) -> Result<Self> {
        Self::new(dev, &Checkpoint::open_part(path, PartKind::T5)?)
    }

    /// As [`T5::load`], with a checkpoint that is open already.
    pub(crate) fn new(dev: &D, weights: &Checkpoint) -> Result<Self> {
        let config = Config::of(weights)?;
        let (d_model, heads) = (config.d_model, config.num_heads);
        let buckets = config.relative_attention_num_buckets;
        let mut sites = Sites::default();
        Ok(T5 {
            tokens: Embedding::load(dev.memory(), weights, tokens(weights), config.vocab_size, d_model)?,
            distances: Distances {
                table: Buf::copy_of(
                    dev.memory(),
                    &weights.f32(DISTANCES, &[buckets, heads])?,
                    "a table of distances",
                )?,
                heads,
                half: buckets / 2,
                far: config.relative_attention_max_distance,
            },
            layers: (0..config.num_layers)
                .map(|i| Layer::load(dev, &mut sites, weights, i, &config))
                .collect::<Result<_>>()?,
            final_norm: dev
                .load_tensor(&weights.f32("encoder.final_layer_norm.weight", &[d_model])?, d_model)?,
            sites,
            heads,
            eps: config.layer_norm_epsilon,
        })
    }

    /// Where LoRAs attach, by the names in transformers' T5EncoderModel.
    pub fn sites(&self) -> &Sites {
        &self.sites
    }

    /// How many token ids there are.
    pub fn vocabulary(&self) -> usize {
        self.tokens.rows()
    }

    /// The width of an embedding.
    pub fn hidden(&self) -> usize {
        self.tokens.cols()
    }

    /// Encodes the ids of one prompt, padding included, to `[tokens, d_model]`. Ids beyond the
    /// vocabulary and an empty list are [`Error::InvalidArgument`].
    pub fn encode(&self, run: Run<'_, D>, ids: &[u32]) -> Result<D::Tensor> {
        let memory = run.dev.memory();
        let mut x = run.dev.upload(&self.tokens.gather(memory, ids)?, self.hidden())?;
        let bias = run.dev.upload(&self.distances.bias(memory, ids.len())?, 2 * ids.len() - 1)?;
        for layer in &self.layers {
            layer.run(run, &mut x, &bias, ids.len(), self.heads, self.eps)?;
        }
        run.dev.norm(&x, Norm::Rms { weight: &self.final_norm, eps: self.eps })
    }
}

impl<D: Device> Layer<D> {
    fn load(dev: &D, sites: &mut Sites, weights: &Checkpoint, i: usize, config: &Config) -> Result<Self> {
        let (d_model, d_ff) = (config.d_model, config.d_ff);
        let inner = config.num_heads * config.d_kv;
        let name = |part: &str| format!("encoder.block.{i}.layer.{part}");
        let norm = |part: &str| {
            let name = format!("encoder.block.{i}.layer.{part}.layer_norm.weight");
            dev.load_tensor(&weights.f32(&name, &[d_model])?, d_model)
        };
        let parts = ["0.SelfAttention.q", "0.SelfAttention.k", "0.SelfAttention.v"];
        let source = |part| linear_or_awq(weights, &name(part), inner, d_model);
        let [q, k, v] = parts;
        let qkv = match [source(q)?, source(k)?, source(v)?] {
            [LinearSource::Dense(q), LinearSource::Dense(k), LinearSource::Dense(v)] => {
                LinearSource::Dense(fuse_rows([q, k, v])?)
            }
            [LinearSource::Awq(q), LinearSource::Awq(k), LinearSource::Awq(v)] => {
                LinearSource::Awq(stack_awq([q, k, v]))
            }
            _ => {
                let what =
                    format!("{}: q, k and v have to be 4-bit all three, or none", name("0.SelfAttention"));
                return Err(Error::format(weights.path(), what));
            }
        };
        let qkv = sites.linear(dev, Usage::Encoder, &qkv, parts.iter().map(|part| name(part)))?;
        let mut linear = |part: &str, n, k| {
            sites.linear(
                dev,
                Usage::Encoder,
                &linear_or_awq(weights, &name(part), n, k)?,
                [name(part)].into_iter(),
            )
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

/// A linear without bias, 4-bit if its codes are there. Scales and zeros are rounded to bf16, as Nunchaku does.
fn linear_or_awq<'a>(weights: &'a Checkpoint, name: &str, n: usize, k: usize) -> Result<LinearSource<'a>> {
    const GROUP: usize = 128;
    let codes = format!("{name}.qweight");
    if weights.get(&codes).is_none() {
        return weights.dense(name, n, k, false).map(LinearSource::Dense);
    }
    if !n.is_multiple_of(4) || !k.is_multiple_of(GROUP) {
        let what = format!("is of a linear [{n}, {k}]; 4-bit ones are multiples of [4, {GROUP}]");
        return Err(weights.bad(&codes, what));
    }
    // There may be more groups than K has: they are padding.
    let groups = |suffix: &str| -> Result<Vec<u8>> {
        let name = format!("{name}.{suffix}");
        let tensor = weights.get(&name).ok_or_else(|| weights.missing(&name))?;
        match *tensor.shape {
            [groups, columns] if groups >= k / GROUP && columns == n => {
                Ok(pack::f32_to_bf16(&weights.f32(&name, &[groups, n])?[..k / GROUP * n]))
            }
            ref shape => {
                let what = format!("has shape {shape:?}, [{}, {n}] is expected", k / GROUP);
                Err(weights.bad(&name, what))
            }
        }
    };
    Ok(LinearSource::Awq(AwqSource {
        n,
        k,
        group: GROUP,
        chunks: 1,
        qweight: weights.bytes(&codes, Dtype::I16, &[n / 4, k])?.into(),
        wscales: groups("scales")?.into(),
        wzeros: groups("scaled_zeros")?.into(),
        bias: vec![].into(),
    }))
}

/// q, k and v of one shape on top of one another.
fn stack_awq<'a>(parts: [AwqSource<'a>; 3]) -> AwqSource<'a> {
    let groups = parts[0].k / parts[0].group;
    // Rows `i` of the three vectors, for each group `i`.
    let vectors = |of: for<'b> fn(&'b AwqSource<'a>) -> &'b [u8]| -> Cow<'a, [u8]> {
        let rows =
            |i: usize| parts.iter().map(of).map(move |v| &v[v.len() / groups * i..][..v.len() / groups]);
        (0..groups).flat_map(rows).collect::<Vec<_>>().concat().into()
    };
    AwqSource {
        n: parts.iter().map(|part| part.n).sum(),
        qweight: parts.iter().map(|part| &*part.qweight).collect::<Vec<_>>().concat().into(),
        wscales: vectors(|part| &part.wscales),
        wzeros: vectors(|part| &part.wzeros),
        bias: vec![].into(),
        ..parts[0]
    }
}

/// The learned bias by distance of query and key, in buckets: half of them for keys before the query
/// and at it, half for keys after it. The first half of either is exact, the rest logarithmic up to
/// `far`; beyond that all distances share the last bucket.
struct Distances {
    /// `[buckets, heads]`
    table: Buf<f32>,
    heads: usize,
    half: usize,
    far: usize,
}

impl Distances {
    /// `[heads, 2 · tokens - 1]`: from keys that are farthest before the query to those farthest after it.
    fn bias(&self, memory: &HostMemory, tokens: usize) -> Result<Buf<f32>> {
        let what = format_args!("T5's attention bias of {tokens} tokens");
        let line = tokens.saturating_mul(2).saturating_sub(1);
        let mut bias = Buf::zeroed(memory, self.heads.saturating_mul(line), what)?;
        let before = (0..tokens).rev().map(|distance| self.bucket(distance));
        let after = (1..tokens).map(|distance| self.half + self.bucket(distance));
        for (column, bucket) in before.chain(after).enumerate() {
            for head in 0..self.heads {
                bias[head * line + column] = self.table[bucket * self.heads + head];
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

    use safetensors::tensor::TensorView;
    use serde_json::{Value, json};

    use super::*;
    use half::bf16;

    use crate::device::cpu::Cpu;
    use crate::device::cpu::tests::Random;
    use crate::lora::{Attached, Patch};
    use crate::models::testing::{Altered, Golden, relative_error};
    use crate::ops::{LowRankSource, Profile};
    use crate::weights::testing::TempDir;

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

    /// `t5xxl.safetensors`: no config.json. In FP8, values that are exact there give what they give in bf16.
    #[test]
    fn files_on_their_own_are_what_their_tensors_say() {
        let golden = Golden::open("t5");
        let dir = TempDir::new();
        let file = std::fs::read(golden.folder.join("model.safetensors")).unwrap();
        check(&dir.write("t5xxl.safetensors", &file));

        let run = |dtype: Dtype| {
            let code = |i: usize| 0x18 + (i * 31 % 32) as u8 + if i.is_multiple_of(3) { 128 } else { 0 };
            let altered = golden.altered(|a| {
                for (kind, shape, bytes) in a.tensors.values_mut().filter(|t| t.1.len() == 2) {
                    let codes: Vec<u8> = (0..shape.iter().product()).map(code).collect();
                    let mut values = vec![0.0; codes.len()];
                    crate::weights::float::decode(Dtype::F8_E4M3, &codes, &mut values);
                    *kind = dtype;
                    *bytes = if dtype == Dtype::BF16 { pack::f32_to_bf16(&values) } else { codes };
                }
            });
            let dev = cpu();
            let t5 = T5::load(&dev, altered.path()).unwrap();
            dev.download(&t5.encode(Run::plain(&dev), &golden.ids()[0]).unwrap()).unwrap()
        };
        assert_eq!(run(Dtype::F8_E4M3), run(Dtype::BF16));
    }

    /// One AWQ linear, `[8, 256]` in groups of 128, with groups of padding.
    fn awq(shape: [usize; 2], codes: Dtype, scales: [usize; 2]) -> Checkpoint {
        let values = |count: usize| -> Vec<u8> {
            pack::f32_to_bf16(&(0..count).map(|i| 0.5 + i as f32 / 8.0).collect::<Vec<_>>())
        };
        let bytes: Vec<u8> = (0..shape[0] * shape[1] * 2).map(|i| (i * 7) as u8).collect();
        let scale = values(scales[0] * scales[1]);
        let views = [
            ("x.qweight", TensorView::new(codes, shape.to_vec(), &bytes).unwrap()),
            ("x.scales", TensorView::new(Dtype::BF16, scales.to_vec(), &scale).unwrap()),
            ("x.scaled_zeros", TensorView::new(Dtype::BF16, scales.to_vec(), &scale).unwrap()),
        ];
        let file = safetensors::serialize(views, None).unwrap();
        Checkpoint::from_bytes(Path::new("t5.safetensors"), file).unwrap()
    }

    #[test]
    fn awq_linears_are_code_times_scale_plus_zero() {
        let (n, k) = (8, 256);
        let file = awq([2, 256], Dtype::I16, [8, 8]);
        let LinearSource::Awq(source) = linear_or_awq(&file, "x", n, k).unwrap() else { panic!() };
        let linear = pack::unpack_awq(&source);
        assert!(linear.bias.is_empty());
        for (row, col) in (0..n).flat_map(|row| (0..k).map(move |col| (row, col))) {
            let word = row / 4 * k + col / 64 * 64 + row % 4 * 16 + col % 64 / 32 * 8 + col % 8;
            let nibble = col % 32 / 8;
            let code = ((word * 2 + nibble / 2) * 7) as u8 >> (nibble % 2 * 4) & 15;
            let scale = bf16::from_f32(0.5 + (col / 128 * n + row) as f32 / 8.0).to_f32();
            assert_eq!(
                linear.weight.values().unwrap()[row * k + col],
                f32::from(code) * scale + scale,
                "({row}, {col})"
            );
        }
        for (shape, codes, scales, n, k, expected) in [
            ([2, 256], Dtype::I16, [1, 8], 8, 256, "`x.scales` has shape [1, 8], [2, 8] is expected"),
            ([2, 256], Dtype::I16, [2, 4], 8, 256, "`x.scales` has shape [2, 4]"),
            ([2, 256], Dtype::F16, [2, 8], 8, 256, "`x.qweight` has dtype F16, I16 is expected"),
            ([2, 256], Dtype::I16, [2, 8], 8, 512, "`x.qweight` has shape [2, 256], [2, 512] is expected"),
            ([2, 256], Dtype::I16, [2, 8], 8, 192, "is of a linear [8, 192]"),
            ([2, 256], Dtype::I16, [2, 8], 7, 256, "is of a linear [7, 256]"),
        ] {
            let text = linear_or_awq(&awq(shape, codes, scales), "x", n, k).err().unwrap().to_string();
            assert!(text.contains(expected), "{text}");
        }
    }

    /// Gives every linear of the network random weights that 4 bits hold: packed as in Nunchaku's file, or dense.
    fn pack_linears(a: &mut Altered, packed: bool) {
        let (d_model, inner, d_ff) = (128, 2 * 64, 256);
        let mut random = Random(3);
        let config = json!({"d_model": d_model, "num_heads": 2, "d_kv": 64, "d_ff": d_ff});
        a.config.as_object_mut().unwrap().extend(config.as_object().unwrap().clone());
        let put = |a: &mut Altered, name: &str, dtype: Dtype, shape: &[usize], bytes: Vec<u8>| {
            a.tensors.insert(name.into(), (dtype, shape.to_vec(), bytes));
        };
        for name in a.tensors.keys().cloned().collect::<Vec<_>>() {
            let part = name.strip_suffix(".weight").and_then(|layer| layer.rsplit('.').next()).unwrap();
            let (n, k) = match part {
                "q" | "k" | "v" => (inner, d_model),
                "o" => (d_model, inner),
                "wi_0" | "wi_1" => (d_ff, d_model),
                "wo" => (d_model, d_ff),
                _ => {
                    let (_, mut shape, _) = a.tensors[&name].clone();
                    *shape.last_mut().unwrap() = if part == "relative_attention_bias" { 2 } else { d_model };
                    let values = random.normals(shape.iter().product(), 0.5);
                    put(a, &name, Dtype::BF16, &shape, pack::f32_to_bf16(&values));
                    continue;
                }
            };
            let codes: Vec<u8> = (0..n * k).map(|_| random.below(16) as u8).collect();
            let scales = random.normals(k / 128 * n, 0.02);
            let zeros: Vec<f32> = scales.iter().map(|s| -7.5 * s).collect();
            let [wscales, wzeros] = [&scales, &zeros].map(|values| pack::f32_to_bf16(values));
            let source = AwqSource {
                n,
                k,
                group: 128,
                chunks: 1,
                qweight: pack::pack_awq_codes(&codes, n, k).into(),
                wscales: wscales.into(),
                wzeros: wzeros.into(),
                bias: vec![].into(),
            };
            if packed {
                let layer = name.strip_suffix(".weight").unwrap();
                a.tensors.remove(&name);
                put(a, &format!("{layer}.qweight"), Dtype::I16, &[n / 4, k], source.qweight.to_vec());
                put(a, &format!("{layer}.scales"), Dtype::BF16, &[k / 128, n], source.wscales.to_vec());
                put(a, &format!("{layer}.scaled_zeros"), Dtype::BF16, &[k / 128, n], source.wzeros.to_vec());
            } else {
                let weight = pack::unpack_awq(&source).weight;
                let bytes = weight.values().unwrap().iter().flat_map(|w| w.to_le_bytes()).collect();
                put(a, &name, Dtype::F32, &[n, k], bytes);
            }
        }
    }

    /// A whole network, LoRA included: packed weights give what the same values give as f32.
    #[test]
    fn awq_networks_equal_dense_ones() {
        let run = |packed: bool| {
            let folder = Golden::open("t5").altered(|a| pack_linears(a, packed));
            let dev = cpu();
            let t5 = T5::load(&dev, folder.path()).unwrap();
            let mut random = Random(4);
            let mut update = |name: &str, rank: usize| {
                let target = &t5.sites().targets(&format!("encoder.block.0.layer.{name}"))[0];
                let ([n, k], rows) = (target.shape, target.rows.clone());
                let (down, up) = (random.normals(rank * k, 0.1), random.normals(rows.len() * rank, 0.1));
                let (down, up) = (down.into(), up.into());
                let source = LowRankSource { n, k, rows, rank, down, up, bias: vec![] };
                (target.site, dev.load_low_ranks(&[source]).unwrap().remove(0), 1.0)
            };
            let updates = vec![update("0.SelfAttention.k", 3), update("1.DenseReluDense.wo", 16)];
            let patch = Patch { updates, vectors: vec![] };
            let attached = Attached::new(t5.sites(), [(&patch, 0.5)]).unwrap();
            let ids = [3, 14, 15, 9, 2, 6, 1];
            [Run::plain(&dev), Run::with(&dev, &attached)]
                .map(|run| dev.download(&t5.encode(run, &ids).unwrap()).unwrap())
        };
        let ([plain, with_lora], dense) = (run(true), run(false));
        assert!(plain.iter().all(|v| v.is_finite()) && relative_error(&with_lora, &plain) > 0.01);
        assert_eq!([plain, with_lora], dense);

        let mixed = Golden::open("t5").altered(|a| {
            pack_linears(a, true);
            let name = "encoder.block.1.layer.0.SelfAttention.k";
            a.tensors.remove(&format!("{name}.qweight"));
            let bytes = vec![0; 2 * 128 * 128];
            a.tensors.insert(format!("{name}.weight"), (Dtype::BF16, vec![128, 128], bytes));
        });
        let text = T5::load(&cpu(), mixed.path()).err().unwrap().to_string();
        assert!(text.contains("encoder.block.1.layer.0.SelfAttention: q, k and v"), "{text}");
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
        let distances = Distances { table: Buf::default(), heads: 64, half: 16, far: 128 };
        let first: Vec<usize> =
            (0..16).map(|b| (0..512).find(|&d| distances.bucket(d) == b).unwrap()).collect();
        assert_eq!(first, [0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91]);
        assert_eq!(distances.bucket(usize::MAX), 15);
    }

    #[test]
    fn bias_is_by_head_and_distance() {
        // Head h: 10 h + bucket. Buckets 0 and 1: at and before the query, 3: after it.
        let table = vec![0.0, 10.0, 1.0, 11.0, 2.0, 12.0, 3.0, 13.0].into();
        let distances = Distances { table, heads: 2, half: 2, far: 3 };
        let memory = HostMemory::default();
        assert_eq!(distances.bias(&memory, 2).unwrap(), [1.0, 0.0, 3.0, 11.0, 10.0, 13.0]);
        assert!(matches!(distances.bias(&memory, usize::MAX), Err(Error::OutOfHostMemory { .. })));
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
