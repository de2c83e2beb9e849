//! CLIP's text encoder: the pooled embedding of a prompt.

use std::path::Path;

use serde::Deserialize;

use super::embedding::{Embedding, fuse_rows};
use crate::lora::{Linear, Run, Sites};
use crate::memory::Buf;
use crate::ops::{Activation, Attention, Device, LinearSource, Mask, Norm, Usage};
use crate::weights::{Checkpoint, Location, PartKind, read_json};
use crate::{Error, Result};

/// The keys of config.json that the network depends on.
#[derive(Debug, Deserialize)]
struct Config {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_attention_heads: usize,
    num_hidden_layers: usize,
    max_position_embeddings: usize,
    hidden_act: String,
    layer_norm_eps: f32,
    eos_token_id: u32,
}

/// Channels of a token of the encoder in `weights`.
///
/// # Errors
/// What is wrong with its config.
pub(crate) fn width(weights: &Checkpoint) -> Result<usize> {
    Ok(Config::of(&Names::of(weights))?.0.hidden_size)
}

impl Config {
    /// The config of an encoder: its config.json, or, of a file on its own, what its tensors say.
    fn of(names: &Names<'_>) -> Result<(Self, Activation)> {
        let stated = names.weights.config();
        let config: Config = match &stated {
            Some(at) => read_json(at)?,
            None => Config::of_tensors(names)?,
        };
        let act = config.check(stated.as_ref().map_or(names.weights.path(), Location::path))?;
        Ok((config, act))
    }

    /// The config of a file on its own: OpenAI's CLIP, whose heads are of 64 channels.
    fn of_tensors(names: &Names<'_>) -> Result<Self> {
        let shape = |name: &str| {
            let name = names.name(name);
            let tensor = names.weights.get(&name).ok_or_else(|| names.weights.missing(&name))?;
            <[usize; 2]>::try_from(tensor.shape).map_err(|_| {
                names.weights.bad(&name, format!("has shape {:?}, a matrix is expected", tensor.shape))
            })
        };
        let [vocab_size, hidden_size] = shape("embeddings.token_embedding.weight")?;
        let [max_position_embeddings, _] = shape("embeddings.position_embedding.weight")?;
        let [intermediate_size, _] = shape("encoder.layers.0.mlp.fc1.weight")?;
        let layer = |i: &usize| names.weights.get(&names.name(&format!("encoder.layers.{i}.mlp.fc1.weight")));
        Ok(Config {
            vocab_size,
            hidden_size,
            intermediate_size,
            num_attention_heads: hidden_size / 64,
            num_hidden_layers: (0..).take_while(|i| layer(i).is_some()).count(),
            max_position_embeddings,
            hidden_act: "quick_gelu".into(),
            layer_norm_eps: 1e-5,
            eos_token_id: LEGACY_EOS,
        })
    }

    /// The activation, if the sizes are possible.
    fn check(&self, path: &Path) -> Result<Activation> {
        let (hidden, heads) = (self.hidden_size, self.num_attention_heads);
        if hidden == 0 || heads == 0 || hidden % heads != 0 {
            let what = format!("hidden_size {hidden} is not a multiple of num_attention_heads {heads}");
            return Err(Error::format(path, what));
        }
        if self.intermediate_size == 0 {
            return Err(Error::format(path, "intermediate_size is 0"));
        }
        match self.hidden_act.as_str() {
            "quick_gelu" => Ok(Activation::QuickGelu),
            "gelu_new" | "gelu_pytorch_tanh" => Ok(Activation::GeluTanh),
            other => Err(Error::Unsupported(format!("{}: hidden_act {other:?}", path.display()))),
        }
    }
}

/// transformers pools at the largest id when the config names this end token, as the configs of
/// OpenAI's own checkpoints wrongly do.
const LEGACY_EOS: u32 = 2;

/// CLIPTextModel: pre-norm transformer blocks with a causal mask.
pub struct Clip<D: Device> {
    sites: Sites,
    tokens: Embedding,
    /// `[max_position_embeddings, hidden]`
    positions: Buf<f32>,
    layers: Vec<Layer<D>>,
    final_norm: LayerNorm<D>,
    heads: usize,
    eos: u32,
}

struct Layer<D: Device> {
    norm1: LayerNorm<D>,
    qkv: Linear<D>,
    out: Linear<D>,
    norm2: LayerNorm<D>,
    fc1: Linear<D>,
    act: Activation,
    fc2: Linear<D>,
}

struct LayerNorm<D: Device> {
    weight: D::Tensor,
    bias: D::Tensor,
    eps: f32,
}

/// What the encoder makes of a prompt.
pub struct ClipOutput<D: Device> {
    /// `hidden` values: the last hidden state at the end token, transformers' `pooler_output`.
    pub pooled: Vec<f32>,
    /// `[tokens, hidden]`: after the final norm, transformers' `last_hidden_state`.
    pub last_hidden: D::Tensor,
}

impl<D: Device> Clip<D> {
    /// Reads a folder of `config.json` and safetensors, or a file on its own, with or without FLUX.1's `text_model.`
    /// before the names of the tensors.
    pub fn load(dev: &D, path: &Path) -> Result<Self> {
        Self::new(dev, &Checkpoint::open_part(path, PartKind::Clip)?)
    }

    /// As [`Clip::load`], with a checkpoint that is open already.
    pub(crate) fn new(dev: &D, weights: &Checkpoint) -> Result<Self> {
        let names = Names::of(weights);
        let (config, act) = Config::of(&names)?;
        let (hidden, heads) = (config.hidden_size, config.num_attention_heads);

        let mut sites = Sites::default();
        let tokens = names.name("embeddings.token_embedding.weight");
        let positions = names.name("embeddings.position_embedding.weight");
        Ok(Clip {
            tokens: Embedding::load(dev.memory(), weights, &tokens, config.vocab_size, hidden)?,
            positions: Buf::copy_of(
                dev.memory(),
                &weights.f32(&positions, &[config.max_position_embeddings, hidden])?,
                "a table of positions",
            )?,
            layers: (0..config.num_hidden_layers)
                .map(|i| names.layer(dev, &mut sites, i, &config, act))
                .collect::<Result<_>>()?,
            final_norm: names.norm(dev, "final_layer_norm", &config)?,
            sites,
            heads,
            eos: config.eos_token_id,
        })
    }

    /// Where LoRAs attach, by the names in transformers' CLIPTextTransformer.
    pub fn sites(&self) -> &Sites {
        &self.sites
    }

    /// The width of the embedding.
    pub fn hidden(&self) -> usize {
        self.tokens.cols()
    }

    /// How many token ids there are.
    pub fn vocabulary(&self) -> usize {
        self.tokens.rows()
    }

    /// Ids of the longest prompt, whatever it says.
    pub fn any_ids(&self) -> Vec<u32> {
        vec![self.eos.min(self.vocabulary().saturating_sub(1) as u32); self.max_tokens()]
    }

    /// The longest sequence that [`Self::encode`] takes.
    pub fn max_tokens(&self) -> usize {
        self.positions.len() / self.hidden()
    }

    /// Encodes the ids of one prompt. Ids beyond the vocabulary, more ids than positions and the
    /// absence of an end token are [`Error::InvalidArgument`].
    pub fn encode(&self, run: Run<'_, D>, ids: &[u32]) -> Result<ClipOutput<D>> {
        let hidden = self.hidden();
        let end = self.end_position(ids)?;
        let mut x = self.tokens.gather(run.dev.memory(), ids)?;
        let positions = self.max_tokens();
        if ids.len() > positions {
            return Err(Error::InvalidArgument(format!(
                "{} tokens, CLIP has {positions} positions",
                ids.len()
            )));
        }
        for (x, p) in x.iter_mut().zip(&self.positions) {
            *x += p;
        }

        let mut x = run.dev.upload(&x, hidden)?;
        for layer in &self.layers {
            layer.run(run, &mut x, ids.len(), self.heads, hidden / self.heads)?;
        }
        let last_hidden = run.dev.norm(&x, self.final_norm.norm())?;
        let pooled = run.dev.download(&last_hidden)?[end * hidden..][..hidden].to_vec();
        Ok(ClipOutput { pooled, last_hidden })
    }

    /// The token whose hidden state stands for the prompt.
    fn end_position(&self, ids: &[u32]) -> Result<usize> {
        let end = if self.eos == LEGACY_EOS {
            ids.iter().max().and_then(|max| ids.iter().position(|id| id == max))
        } else {
            ids.iter().position(|&id| id == self.eos)
        };
        end.ok_or_else(|| Error::InvalidArgument(format!("no end token {} among the token ids", self.eos)))
    }
}

impl<D: Device> Layer<D> {
    /// `x += attention(norm1(x))`, `x += mlp(norm2(x))`
    fn run(
        &self,
        run: Run<'_, D>,
        x: &mut D::Tensor,
        rows: usize,
        heads: usize,
        head_dim: usize,
    ) -> Result<()> {
        let input = run.dev.prepare(x, 0..rows, self.norm1.norm(), run.layer(&self.qkv))?;
        let qkv = run.dev.linear(&input, run.layer(&self.qkv), Activation::None)?;
        let scale = 1.0 / (head_dim as f32).sqrt();
        let seen = run.dev.attention(&qkv, Attention { heads, scale, mask: Mask::Causal })?;
        let input = run.dev.prepare(&seen, 0..rows, Norm::None, run.layer(&self.out))?;
        run.dev.linear_add(&input, run.layer(&self.out), None, x, 0)?;

        let input = run.dev.prepare(x, 0..rows, self.norm2.norm(), run.layer(&self.fc1))?;
        let wide = run.dev.linear(&input, run.layer(&self.fc1), self.act)?;
        let input = run.dev.prepare(&wide, 0..rows, Norm::None, run.layer(&self.fc2))?;
        run.dev.linear_add(&input, run.layer(&self.fc2), None, x, 0)
    }
}

impl<D: Device> LayerNorm<D> {
    fn norm(&self) -> Norm<'_, D> {
        Norm::Layer { weight: &self.weight, bias: &self.bias, eps: self.eps }
    }
}

/// The tensors of a checkpoint by their names in CLIPTextTransformer.
struct Names<'a> {
    weights: &'a Checkpoint,
    prefix: &'static str,
}

impl<'a> Names<'a> {
    fn of(weights: &'a Checkpoint) -> Self {
        let prefixed = weights.get("text_model.final_layer_norm.weight").is_some();
        Names { weights, prefix: if prefixed { "text_model." } else { "" } }
    }

    fn name(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn layer<D: Device>(
        &self,
        dev: &D,
        sites: &mut Sites,
        i: usize,
        config: &Config,
        act: Activation,
    ) -> Result<Layer<D>> {
        let (hidden, wide) = (config.hidden_size, config.intermediate_size);
        let name = |part: &str| format!("encoder.layers.{i}.{part}");
        let dense = |part: &str, n, k| self.weights.dense(&self.name(&name(part)), n, k, true);
        let norm = |part: &str| self.norm(dev, &name(part), config);
        let parts = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"];
        let [q, k, v] = parts;
        let [q, k, v] = [dense(q, hidden, hidden)?, dense(k, hidden, hidden)?, dense(v, hidden, hidden)?];
        let qkv = LinearSource::Dense(fuse_rows([q, k, v])?);
        let qkv = sites.linear(dev, Usage::Encoder, &qkv, parts.iter().map(|part| name(part)))?;
        let mut linear = |part: &str, n, k| {
            sites.linear(
                dev,
                Usage::Encoder,
                &LinearSource::Dense(dense(part, n, k)?),
                [name(part)].into_iter(),
            )
        };
        Ok(Layer {
            norm1: norm("layer_norm1")?,
            qkv,
            out: linear("self_attn.out_proj", hidden, hidden)?,
            norm2: norm("layer_norm2")?,
            fc1: linear("mlp.fc1", wide, hidden)?,
            act,
            fc2: linear("mlp.fc2", hidden, wide)?,
        })
    }

    fn norm<D: Device>(&self, dev: &D, name: &str, config: &Config) -> Result<LayerNorm<D>> {
        let cols = config.hidden_size;
        let row = |part: &str| {
            dev.load_tensor(&self.weights.f32(&self.name(&format!("{name}.{part}")), &[cols])?, cols)
        };
        Ok(LayerNorm { weight: row("weight")?, bias: row("bias")?, eps: config.layer_norm_eps })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;
    use crate::device::cpu::Cpu;
    use crate::models::testing::{Altered, Golden, relative_error};
    use crate::ops::Profile;
    use crate::weights::Dtype;

    fn cpu() -> Cpu {
        Cpu::new(1, Profile::W4A8).unwrap()
    }

    /// Both prompts of a golden network agree to 1e-4.
    fn check(name: &str, folder: &Path) {
        let (dev, golden) = (cpu(), Golden::open(name));
        let clip = Clip::load(&dev, folder).unwrap();
        let (mut pooled, mut last_hidden) = (vec![], vec![]);
        for ids in golden.ids() {
            let out = clip.encode(Run::plain(&dev), &ids).unwrap();
            pooled.extend(out.pooled);
            last_hidden.extend(&dev.download(&out.last_hidden).unwrap());
        }
        let error = relative_error(&last_hidden, &golden.values("last_hidden_state"));
        assert!(error < 1e-4, "{name}: last_hidden_state is off by {error}");
        let error = relative_error(&pooled, &golden.values("pooler_output"));
        assert!(error < 1e-4, "{name}: pooler_output is off by {error}");
    }

    #[test]
    fn agrees_with_transformers() {
        check("clip", &Golden::open("clip").folder);
    }

    /// Of a file on its own. What the tensors do not say is OpenAI's, as in the demo model.
    #[test]
    fn tensors_say_what_a_config_says() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo/text_encoder");
        let stated: Config = read_json(&folder.join("config.json")).unwrap();
        let weights = Checkpoint::open_part(&folder, PartKind::Clip).unwrap();
        let found = Config::of_tensors(&Names { weights: &weights, prefix: "text_model." }).unwrap();
        assert_eq!(format!("{found:?}"), format!("{:?}", Config { eos_token_id: LEGACY_EOS, ..stated }));
    }

    #[test]
    fn agrees_with_transformers_on_configs_with_end_token_2() {
        check("clip_legacy", &Golden::open("clip_legacy").folder);
    }

    #[test]
    fn clip_l_is_legal() {
        let config: Config = serde_json::from_value(json!({
            "vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12,
            "num_hidden_layers": 12, "max_position_embeddings": 77, "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-5, "eos_token_id": 2,
        }))
        .unwrap();
        assert_eq!(config.check(Path::new("config.json")).unwrap(), Activation::QuickGelu);
    }

    #[test]
    fn the_prefix_of_the_names_is_optional() {
        let golden = Golden::open("clip");
        let toggle = golden.altered(|a| {
            for name in a.tensors.keys().cloned().collect::<Vec<_>>() {
                let other =
                    name.strip_prefix("text_model.").map_or(format!("text_model.{name}"), str::to_owned);
                a.rename(&name, &other);
            }
        });
        check("clip", toggle.path());
    }

    fn refusal(edit: impl FnOnce(&mut Altered)) -> Error {
        let folder = Golden::open("clip").altered(edit);
        Clip::load(&cpu(), folder.path()).map(|_| ()).unwrap_err()
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let named = |error: Error, name: &str| {
            assert!(matches!(error, Error::BadFormat { .. }) && error.to_string().contains(name), "{error}");
        };
        let q = |a: &Altered| {
            a.tensors.keys().find(|n| n.ends_with("layers.1.self_attn.q_proj.weight")).unwrap().clone()
        };
        named(refusal(|a| drop(a.tensors.remove(&q(a)))), "layers.1.self_attn.q_proj.weight");
        named(
            refusal(|a| a.tensors.get_mut(&q(a)).unwrap().1 = vec![32, 128]),
            "layers.1.self_attn.q_proj.weight",
        );
        named(
            refusal(|a| a.tensors.get_mut(&q(a)).unwrap().0 = Dtype::I16),
            "layers.1.self_attn.q_proj.weight",
        );
        named(
            refusal(|a| {
                let tokens =
                    a.tensors.iter_mut().find(|(n, _)| n.ends_with("token_embedding.weight")).unwrap();
                tokens.1.0 = Dtype::U16;
            }),
            "token_embedding.weight",
        );
        for (key, value, name) in [
            ("vocab_size", json!(51), "token_embedding"),
            ("max_position_embeddings", json!(76), "position_embedding"),
            ("hidden_size", json!(66), "token_embedding"),
            ("hidden_size", json!(0), "hidden_size"),
            ("intermediate_size", json!(0), "intermediate_size"),
            ("intermediate_size", json!(129), "mlp.fc1"),
            ("num_attention_heads", json!(0), "num_attention_heads"),
            ("num_attention_heads", json!(3), "num_attention_heads"),
            ("num_hidden_layers", json!(usize::MAX), "layers.2."),
            ("hidden_size", json!(-1), "hidden_size"),
            ("eos_token_id", json!(null), "eos_token_id"),
        ] {
            named(refusal(|a| a.config[key] = value.clone()), name);
        }
        let error = refusal(|a| a.config["hidden_act"] = json!("gelu"));
        assert!(matches!(error, Error::Unsupported(_)) && error.to_string().contains("\"gelu\""), "{error}");
    }

    #[test]
    fn ids_that_do_not_fit_are_refused() {
        let dev = cpu();
        let clip = Clip::load(&dev, &Golden::open("clip").folder).unwrap();
        let refused = |ids: &[u32], what: &str| match clip.encode(Run::plain(&dev), ids).map(|_| ()) {
            Err(Error::InvalidArgument(text)) => assert!(text.contains(what), "{text}"),
            other => panic!("{other:?}"),
        };
        refused(&[], "end token");
        refused(&[48, 1, 2], "end token 49");
        refused(&[48, 50, 49], "token id 50");
        refused(&[48, u32::MAX, 49], "4294967295");
        refused(&[49; 78], "78 tokens");
    }
}
