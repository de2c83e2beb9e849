//! How strong updates are by the metadata that diffusers writes beside PEFT's tensors.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::names::Network;
use crate::weights::{Checkpoint, parse_json};
use crate::{Error, Result};

const KEY: &str = "lora_adapter_metadata";

/// PEFT's config of each network that a file has one for.
#[derive(Default)]
pub(super) struct Scales([Option<Config>; 3]);

/// The part of PEFT's `LoraConfig` that decides on strength.
#[derive(Deserialize)]
struct Config {
    lora_alpha: f32,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    alpha_pattern: BTreeMap<String, f32>,
}

impl Scales {
    /// Reads the configs of `file`. Their keys begin with the name of the network, or are those of the transformer.
    pub(super) fn read(file: &Checkpoint) -> Result<Self> {
        let Some(text) = file.metadata(KEY) else { return Ok(Scales::default()) };
        let all: BTreeMap<String, Value> = parse_json(file.path(), KEY, text)?;
        let config = |prefix: &str| -> Result<Option<Config>> {
            let keys = all.iter().filter_map(|(key, value)| Some((key.strip_prefix(prefix)?, value)));
            let keys: serde_json::Map<_, _> =
                keys.map(|(key, value)| (key.to_owned(), value.clone())).collect();
            if !keys.contains_key("lora_alpha") {
                return Ok(None);
            }
            let config: Config = parse_json(file.path(), KEY, &Value::Object(keys).to_string())?;
            config.check(file)?;
            Ok(Some(config))
        };
        let transformer = match config("transformer.")? {
            None => config("")?,
            some => some,
        };
        Ok(Scales([transformer, config("text_encoder.")?, config("text_encoder_2.")?]))
    }

    /// alpha / rank of a module, or alpha / sqrt(rank) of a rank-stabilised one; 1 if the file says nothing.
    pub(super) fn of(&self, network: Network, module: &str, rank: usize) -> f32 {
        let Some(config) = &self.0[network as usize] else { return 1.0 };
        let is = |pattern: &str| {
            module.strip_suffix(pattern).is_some_and(|head| head.is_empty() || head.ends_with('.'))
        };
        let own = config.alpha_pattern.iter().find(|(pattern, _)| is(pattern));
        let alpha = own.map_or(config.lora_alpha, |(_, &alpha)| alpha);
        alpha / if config.use_rslora { (rank as f32).sqrt() } else { rank as f32 }
    }
}

impl Config {
    fn check(&self, file: &Checkpoint) -> Result<()> {
        let alphas = self.alpha_pattern.values().chain([&self.lora_alpha]);
        if let Some(alpha) = alphas.into_iter().find(|alpha| !alpha.is_finite()) {
            return Err(Error::format(file.path(), format!("`{KEY}`: an alpha is {alpha}")));
        }
        // PEFT matches patterns as regular expressions; those that are more than names are rare.
        let plain = |name: &str| name.chars().all(|c| c.is_ascii_alphanumeric() || "._".contains(c));
        match self.alpha_pattern.keys().find(|name| !plain(name)) {
            Some(name) => {
                let path = file.path().display();
                Err(Error::Unsupported(format!("{path}: `{KEY}`: the `alpha_pattern` {name:?} is no name")))
            }
            None => Ok(()),
        }
    }
}
