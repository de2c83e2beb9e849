//! Prompts to token ids, by the tokenizer files of CLIP and T5: the ids that transformers gives with
//! `padding="max_length", truncation=True`.

use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::thread;

use flate2::read::GzDecoder;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::weights::{Location, read_json, read_text};
use crate::{Error, Result, threads};

/// Longer prompts are refused: no prompt of this size is meant, and tokenising it takes seconds.
const MAX_PROMPT_BYTES: usize = 1 << 20;
/// Longer sequences are refused: an encoder's attention is quadratic in them.
const MAX_TOKENS: usize = 4096;

/// The family of a tokenizer: what the files leave open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Byte-pair encoding, lower case, padded with the end token unless tokenizer_config.json names another.
    Clip,
    /// SentencePiece unigram, padded with `<pad>` unless tokenizer_config.json names another.
    T5,
}

impl Kind {
    fn pad_token(self) -> &'static str {
        match self {
            Kind::Clip => "<|endoftext|>",
            Kind::T5 => "<pad>",
        }
    }
}

/// A prompt's ids, begin and end tokens included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// Cut or padded to [`Tokenizer::max_length`].
    pub ids: Vec<u32>,
    /// How many there are before anything is cut or padded.
    pub count: usize,
}

/// A tokenizer that gives every prompt the same number of ids.
pub struct Tokenizer {
    origin: PathBuf,
    inner: tokenizers::Tokenizer,
    max_length: usize,
    end: u32,
    pad: u32,
}

impl Tokenizer {
    /// Reads a folder: `tokenizer.json`, or for CLIP `vocab.json` and `merges.txt`, and
    /// `tokenizer_config.json` if it is there.
    pub fn open(folder: impl Into<Location>, kind: Kind, max_length: usize) -> Result<Self> {
        let folder = folder.into();
        let pad = match read_json::<Value>(&folder.join("tokenizer_config.json")) {
            Ok(config) => token_text(&config["pad_token"]),
            Err(Error::NotFound { .. }) => None,
            Err(e) => return Err(e),
        };
        let pad = pad.as_deref().unwrap_or(kind.pad_token());
        let [json, vocab] = ["tokenizer.json", "vocab.json"].map(|name| folder.join(name));
        if kind == Kind::Clip && !json.exists() && vocab.exists() {
            return Self::new(&clip_json(&folder)?, vocab.path(), pad, max_length);
        }
        Self::new(read_text(&json)?.as_bytes(), json.path(), pad, max_length)
    }

    /// FLUX.1's own, which the library holds.
    pub fn flux_1(kind: Kind, max_length: usize) -> Result<Self> {
        let (packed, name) = match kind {
            Kind::Clip => (&include_bytes!("../../assets/tokenizers/clip_l.json.gz")[..], "CLIP's tokenizer"),
            Kind::T5 => (&include_bytes!("../../assets/tokenizers/t5_xxl.json.gz")[..], "T5's tokenizer"),
        };
        let (mut json, name) = (Vec::new(), Path::new(name));
        GzDecoder::new(packed).read_to_end(&mut json).map_err(|e| Error::io(name, e))?;
        Self::new(&json, name, kind.pad_token(), max_length)
    }

    /// Takes the contents of a `tokenizer.json`; `origin` is what errors call it.
    pub fn from_bytes(json: &[u8], origin: &Path, kind: Kind, max_length: usize) -> Result<Self> {
        Self::new(json, origin, kind.pad_token(), max_length)
    }

    fn new(json: &[u8], origin: &Path, pad: &str, max_length: usize) -> Result<Self> {
        let bad = |what: String| Error::format(origin, what);
        let Normalizer { normalizer } = serde_json::from_slice(json).map_err(|e| bad(e.to_string()))?;
        check_charsmaps(&normalizer).map_err(bad)?;
        let mut inner = guarded(|| tokenizers::Tokenizer::from_bytes(json)).map_err(bad)?;
        // The lengths in the file are those of whoever saved it.
        inner.with_padding(None);
        guarded(|| inner.with_truncation(None).map(|_| ())).map_err(bad)?;
        let pad = inner.token_to_id(pad).ok_or_else(|| bad(format!("has no token {pad:?} to pad with")))?;
        let empty = guarded(|| inner.encode_fast("", true)).map_err(bad)?;
        let Some(&end) = empty.get_ids().last() else {
            return Err(bad("puts no end token after a prompt".into()));
        };
        if max_length < empty.len() || max_length > MAX_TOKENS {
            return Err(Error::InvalidArgument(format!(
                "a prompt of {max_length} tokens: {} to {MAX_TOKENS} are possible",
                empty.len()
            )));
        }
        Ok(Tokenizer { origin: origin.into(), inner, max_length, end, pad })
    }

    /// How many token ids there are.
    pub fn vocabulary(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// How many ids [`Self::encode`] gives.
    pub fn max_length(&self) -> usize {
        self.max_length
    }

    /// The ids of `text`. The end token survives a cut. Special tokens written out in `text` become special tokens.
    pub fn encode(&self, text: &str) -> Result<Tokens> {
        if text.len() > MAX_PROMPT_BYTES {
            return Err(Error::InvalidArgument(format!(
                "the prompt has {} bytes, at most {MAX_PROMPT_BYTES} are possible",
                text.len()
            )));
        }
        let encoding = in_thread(|| guarded(|| self.inner.encode_fast(text, true)))?
            .map_err(|e| Error::format(&self.origin, format!("cannot tokenise a prompt: {e}")))?;
        let mut ids = encoding.get_ids().to_vec();
        let count = ids.len();
        if count > self.max_length {
            ids.truncate(self.max_length - 1);
            ids.push(self.end);
        }
        ids.resize(self.max_length, self.pad);
        Ok(Tokens { ids, count })
    }
}

/// Runs a piece of the `tokenizers` crate, which indexes tables from the file without checking them.
fn guarded<T>(f: impl FnOnce() -> tokenizers::Result<T>) -> std::result::Result<T, String> {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(result) => result.map_err(|e| e.to_string()),
        Err(_) => Err("its tables contradict each other".into()),
    }
}

/// Runs `f` in a thread of its own. The `tokenizers` crate caches the words of every byte-pair model in
/// a thread-local table, which lives as long as the thread: the caller's would grow from model to model.
fn in_thread<T: Send>(f: impl FnOnce() -> T + Send) -> Result<T> {
    thread::scope(|scope| {
        let thread = threads::builder("-tokenizer").spawn_scoped(scope, f);
        let thread = thread.map_err(threads::refused)?;
        thread.join().map_err(|_| Error::Internal("the tokenizer panicked".into()))
    })
}

/// The part of a tokenizer.json that is looked at before the `tokenizers` crate sees it.
#[derive(Deserialize)]
struct Normalizer {
    #[serde(default)]
    normalizer: Value,
}

/// Checks the size of the table at the head of SentencePiece's character maps (base64 of a little-endian
/// u32, then so many bytes, then text): the `tokenizers` crate allocates whatever is written there.
fn check_charsmaps(normalizer: &Value) -> std::result::Result<(), String> {
    match normalizer {
        Value::Array(steps) => steps.iter().try_for_each(check_charsmaps),
        Value::Object(step) => {
            if let Some(map) = step.get("precompiled_charsmap").and_then(Value::as_str) {
                let (size, rest) = (base64_u32(map), (map.len() / 4 * 3).saturating_sub(4));
                if size.is_none_or(|size| size as usize > rest) {
                    return Err(format!("precompiled_charsmap is no table of {rest} bytes or less"));
                }
            }
            step.values().try_for_each(check_charsmaps)
        }
        _ => Ok(()),
    }
}

/// The little-endian number in the first four bytes of base64 text.
fn base64_u32(text: &str) -> Option<u32> {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut bits = 0_u64;
    for digit in text.as_bytes().get(..6)? {
        bits = bits << 6 | DIGITS.iter().position(|d| d == digit)? as u64;
    }
    Some(((bits >> 4) as u32).swap_bytes())
}

/// A token in tokenizer_config.json: its text, or an object that holds it.
fn token_text(value: &Value) -> Option<String> {
    value.as_str().or_else(|| value["content"].as_str()).map(str::to_owned)
}

/// The `tokenizer.json` that transformers makes of CLIP's `vocab.json` and `merges.txt`.
fn clip_json(folder: &Location) -> Result<Vec<u8>> {
    const BEGIN: &str = "<|startoftext|>";
    const END: &str = "<|endoftext|>";
    const WORDS: &str =
        r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

    let vocab_at = folder.join("vocab.json");
    let vocab: Value = read_json(&vocab_at)?;
    let id = |token: &str| {
        vocab[token].as_u64().ok_or_else(|| Error::format(vocab_at.path(), format!("has no token {token:?}")))
    };
    let (begin, end) = (id(BEGIN)?, id(END)?);
    let merges = read_text(folder.join("merges.txt"))?;
    let merges: Vec<&str> =
        merges.lines().filter(|line| !line.starts_with("#version") && !line.is_empty()).collect();
    let special = |token: &str, id: u64| {
        json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": [special(BEGIN, begin), special(END, end)],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "NFC"},
            {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
            {"type": "Lowercase"}]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": WORDS}, "behavior": "Removed", "invert": true},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}]},
        "post_processor": {"type": "RobertaProcessing", "sep": [END, end], "cls": [BEGIN, begin],
            "trim_offsets": false, "add_prefix_space": false},
        "model": {"type": "BPE", "unk_token": END, "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>", "vocab": vocab, "merges": merges},
    });
    serde_json::to_vec(&tokenizer).map_err(|e| Error::format(vocab_at.path(), e.to_string()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs;

    use super::*;
    use crate::weights::testing::TempDir;

    /// tests/golden/tokens.json; `ids` come without the padding.
    #[derive(Deserialize)]
    struct Golden {
        texts: Vec<String>,
        sets: Vec<GoldenSet>,
    }

    #[derive(Deserialize)]
    struct GoldenSet {
        tokenizer: String,
        max_length: usize,
        pad: u32,
        ids: Vec<Vec<u32>>,
    }

    impl Golden {
        fn read() -> Self {
            serde_json::from_slice(&fs::read(root("tests/golden/tokens.json")).unwrap()).unwrap()
        }

        fn check(&self, set: &GoldenSet, tokenizer: &Tokenizer) {
            assert_eq!(set.ids.len(), self.texts.len());
            for (text, ids) in self.texts.iter().zip(&set.ids) {
                let mut want = ids.clone();
                want.resize(set.max_length, set.pad);
                assert_eq!(tokenizer.encode(text).unwrap().ids, want, "{} of {text:?}", set.tokenizer);
            }
        }
    }

    fn root(path: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
    }

    /// The tokenizer.json of FLUX.1 called `name`.
    fn flux_json(name: &str) -> Vec<u8> {
        let file = fs::File::open(root(&format!("assets/tokenizers/{name}.json.gz"))).unwrap();
        let mut json = Vec::new();
        flate2::read::GzDecoder::new(file).read_to_end(&mut json).unwrap();
        json
    }

    fn open(set: &str, max_length: usize) -> Tokenizer {
        match set {
            "demo_clip" => Tokenizer::open(&root("assets/demo/tokenizer"), Kind::Clip, max_length),
            "demo_t5" => Tokenizer::open(&root("assets/demo/tokenizer_2"), Kind::T5, max_length),
            "clip_l" => Tokenizer::flux_1(Kind::Clip, max_length),
            "t5_xxl" => Tokenizer::flux_1(Kind::T5, max_length),
            other => panic!("no tokenizer {other:?}"),
        }
        .unwrap()
    }

    #[test]
    fn ids_are_those_of_transformers() {
        let golden = Golden::read();
        for name in ["demo_clip", "demo_t5", "clip_l", "t5_xxl"] {
            assert!(golden.sets.iter().any(|set| set.tokenizer == name), "no golden ids of {name}");
        }
        for set in &golden.sets {
            golden.check(set, &open(&set.tokenizer, set.max_length));
        }
    }

    #[test]
    fn clip_needs_no_tokenizer_json() {
        let json: Value = serde_json::from_slice(&flux_json("clip_l")).unwrap();
        let merges: Vec<String> = json["model"]["merges"]
            .as_array()
            .unwrap()
            .iter()
            .map(|pair| format!("{} {}\n", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()))
            .collect();
        let folder = TempDir::new();
        folder.write("vocab.json", json["model"]["vocab"].to_string().as_bytes());
        folder.write("merges.txt", format!("#version: 0.2\n{}", merges.concat()).as_bytes());
        let tokenizer = Tokenizer::open(folder.path(), Kind::Clip, 77).unwrap();

        let golden = Golden::read();
        let set = golden.sets.iter().find(|set| set.tokenizer == "clip_l").unwrap();
        golden.check(set, &tokenizer);
    }

    #[test]
    fn tokenizer_config_names_the_pad_token() {
        let folder = TempDir::new();
        folder.write("tokenizer.json", &fs::read(root("assets/demo/tokenizer/tokenizer.json")).unwrap());
        let last = |config: &str| {
            folder.write("tokenizer_config.json", config.as_bytes());
            Tokenizer::open(folder.path(), Kind::Clip, 77).map(|t| *t.encode("").unwrap().ids.last().unwrap())
        };
        assert_eq!(last("{}").unwrap(), 3029);
        assert_eq!(last(r#"{"pad_token": "!"}"#).unwrap(), 0);
        assert_eq!(last(r#"{"pad_token": {"content": "!"}}"#).unwrap(), 0);
        assert!(matches!(last(r#"{"pad_token": "no such"}"#), Err(Error::BadFormat { .. })));
        assert!(matches!(last("{"), Err(Error::BadFormat { .. })));
    }

    fn t5_with(change: impl FnOnce(&mut Value)) -> Result<Tokenizer> {
        let bytes = fs::read(root("assets/demo/tokenizer_2/tokenizer.json")).unwrap();
        let mut json: Value = serde_json::from_slice(&bytes).unwrap();
        change(&mut json);
        Tokenizer::from_bytes(json.to_string().as_bytes(), Path::new("t5.json"), Kind::T5, 48)
    }

    #[test]
    fn broken_files_are_refused_by_name() {
        let refused = |result: Result<Tokenizer>| match result.map(|_| ()) {
            Err(e @ Error::BadFormat { .. }) => assert!(e.to_string().starts_with("t5.json: "), "{e}"),
            other => panic!("{other:?}"),
        };
        for json in ["", "{", "[]", "{}", "\u{0}", r#"{"model": {"type": "BPE"}}"#] {
            refused(Tokenizer::from_bytes(json.as_bytes(), Path::new("t5.json"), Kind::T5, 48));
        }
        refused(t5_with(|json| json["post_processor"] = Value::Null));
        refused(t5_with(|json| json["model"]["vocab"] = json!([])));
        refused(t5_with(|json| json["added_tokens"] = json!([{"id": -1}])));
        // Tables of 2^32 - 4 bytes, of 8 in 4, and of none at all.
        for charsmap in ["/P///wAAAAA=", "CAAAAAAAAAA=", "", "?"] {
            refused(t5_with(|json| json["normalizer"]["precompiled_charsmap"] = json!(charsmap)));
        }
        refused(t5_with(|json| json["model"]["unk_id"] = json!(1_u64 << 40)));

        let folder = TempDir::new();
        assert!(matches!(Tokenizer::open(folder.path(), Kind::Clip, 77), Err(Error::NotFound { .. })));
    }

    #[test]
    fn a_table_that_points_outside_itself_is_an_error() {
        // One entry, whose children would lie 2^22 entries further on.
        let charsmap = "BAAAAP////8=";
        let tokenizer = t5_with(|json| json["normalizer"]["precompiled_charsmap"] = json!(charsmap)).unwrap();
        let error = tokenizer.encode("a").unwrap_err();
        assert!(matches!(error, Error::BadFormat { .. }), "{error}");
    }

    #[test]
    fn lengths_have_limits() {
        let open = |max| Tokenizer::open(&root("assets/demo/tokenizer"), Kind::Clip, max);
        for max in [0, 1, MAX_TOKENS + 1, usize::MAX] {
            assert!(matches!(open(max), Err(Error::InvalidArgument(_))), "{max}");
        }
        let cut = Tokens { ids: vec![3028, 3029], count: 4 };
        assert_eq!(open(2).unwrap().encode("a potion").unwrap(), cut);
        let tokenizer = open(77).unwrap();
        assert_eq!(tokenizer.encode(&"a".repeat(MAX_PROMPT_BYTES)).unwrap().ids.len(), 77);
        let error = tokenizer.encode(&"a".repeat(MAX_PROMPT_BYTES + 1)).unwrap_err();
        assert!(matches!(error, Error::InvalidArgument(_)), "{error}");
    }
}
