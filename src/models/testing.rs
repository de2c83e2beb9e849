//! Golden networks for tests: `tests/golden/NAME/{config.json,model.safetensors,io.safetensors}`.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::tensor::TensorView;
use serde_json::Value;

use crate::weights::testing::TempDir;
use crate::weights::{Checkpoint, Dtype, read_json};

/// A network that transformers or diffusers ran in float32.
pub(crate) struct Golden {
    /// Holds config.json and model.safetensors.
    pub(crate) folder: PathBuf,
    io: Checkpoint,
}

impl Golden {
    pub(crate) fn open(name: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
        let io = Checkpoint::open(&folder.join("io.safetensors")).unwrap();
        Golden { folder, io }
    }

    /// An input or output, whatever its shape.
    pub(crate) fn values(&self, name: &str) -> Vec<f32> {
        self.io.f32(name, self.io.get(name).unwrap().shape).unwrap().to_vec()
    }

    /// `[prompts, tokens]` of token ids.
    pub(crate) fn ids(&self) -> Vec<Vec<u32>> {
        let tensor = self.io.get("input_ids").unwrap();
        assert_eq!(tensor.dtype, Dtype::I64);
        let id = |&bytes: &[u8; 8]| u32::try_from(i64::from_le_bytes(bytes)).unwrap();
        let ids: Vec<u32> = tensor.bytes().unwrap().as_chunks().0.iter().map(id).collect();
        ids.chunks_exact(tensor.shape[1]).map(<[u32]>::to_vec).collect()
    }

    /// A copy of the network in which `edit` changed something.
    pub(crate) fn altered(&self, edit: impl FnOnce(&mut Altered)) -> TempDir {
        let model = Checkpoint::open(&self.folder.join("model.safetensors")).unwrap();
        let mut altered = Altered {
            config: read_json(&self.folder.join("config.json")).unwrap(),
            tensors: model
                .tensors()
                .map(|t| (t.name.to_owned(), (t.dtype, t.shape.to_vec(), t.bytes().unwrap().to_vec())))
                .collect(),
        };
        edit(&mut altered);

        let views = altered.tensors.iter().map(|(name, (dtype, shape, bytes))| {
            (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        });
        let dir = TempDir::new();
        dir.write("config.json", altered.config.to_string().as_bytes());
        dir.write("model.safetensors", &safetensors::serialize(views, None).unwrap());
        dir
    }
}

/// A network about to be written: config, and dtype, shape and bytes of every tensor.
pub(crate) struct Altered {
    pub(crate) config: Value,
    pub(crate) tensors: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>,
}

impl Altered {
    pub(crate) fn rename(&mut self, from: &str, to: &str) {
        let tensor = self.tensors.remove(from).unwrap();
        self.tensors.insert(to.into(), tensor);
    }
}

/// `max |got - want| / max |want|`
pub(crate) fn relative_error(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len());
    assert!(got.iter().all(|v| v.is_finite()));
    let error = got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    error / want.iter().map(|b| b.abs()).fold(0.0, f32::max)
}
