//! The header of a safetensors file: `u64` length, JSON, and then the tensors' bytes without gaps.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;

use safetensors::tensor::TensorInfo;
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};

use super::location::Content;
use crate::{Error, Result};

/// As the format's reference implementation has it.
const MAX_HEADER: u64 = 100_000_000;

/// What a header says, proven to fit the file.
pub(super) struct Header {
    /// Free text by key.
    pub(super) metadata: HashMap<String, String>,
    /// Names are unique; `data_offsets` count from the start of the file, cover everything after the header without
    /// gap or overlap, and are as long as shape and dtype say.
    pub(super) tensors: Vec<(String, TensorInfo)>,
}

impl Header {
    /// Reads and checks the header of `file`, and nothing else of it; `path` is for errors.
    pub(super) fn read(path: &Path, file: &Content) -> Result<Header> {
        let bad = |what: String| Error::format(path, what);
        let Ok(size) = usize::try_from(file.len()) else {
            return Err(bad(format!("{} bytes are more than this machine can address", file.len())));
        };
        let Some(rest) = size.checked_sub(8) else {
            return Err(bad(format!("{size} bytes are too few for a safetensors file")));
        };
        let mut length = [0; 8];
        file.read_to(path, 0, &mut length)?;
        let length = u64::from_le_bytes(length);
        if length > MAX_HEADER {
            return Err(bad(format!(
                "not safetensors: a header of {length} bytes is larger than {MAX_HEADER}"
            )));
        }
        let Some(data) = rest.checked_sub(length as usize) else {
            return Err(bad(format!("truncated: a header of {length} bytes, of which {rest} are there")));
        };
        // A copy, so that what is checked cannot change afterwards.
        let json = file.read(path, 8, length as usize)?;
        let json = String::from_utf8(json).map_err(|e| bad(format!("the header is not UTF-8: {e}")))?;
        let mut header: Header = serde_json::from_str(&json).map_err(|e| bad(format!("header: {e}")))?;
        header.check_layout(data).map_err(bad)?;
        for (_, info) in &mut header.tensors {
            info.data_offsets.0 += size - data;
            info.data_offsets.1 += size - data;
        }
        Ok(header)
    }

    /// Sorts the tensors by place and checks that they tile `0..len`.
    fn check_layout(&mut self, len: usize) -> std::result::Result<(), String> {
        self.tensors.sort_by_key(|(_, info)| info.data_offsets);
        let mut end = 0;
        for (name, info) in &self.tensors {
            let (from, to) = info.data_offsets;
            let size = byte_size(info).ok_or_else(|| {
                format!("tensor `{name}`: shape {:?} of {} has no size in bytes", info.shape, info.dtype)
            })?;
            if to.checked_sub(from) != Some(size) {
                let (dtype, shape) = (info.dtype, &info.shape);
                return Err(format!(
                    "tensor `{name}`: {dtype} {shape:?} takes {size} bytes, its offsets are {from}..{to}"
                ));
            }
            if from != end {
                let how = if from < end { "overlaps the tensor before it" } else { "leaves a gap before it" };
                return Err(format!("tensor `{name}` at {from}..{to} {how}, which ends at {end}"));
            }
            end = to;
        }
        match end.cmp(&len) {
            std::cmp::Ordering::Greater => {
                Err(format!("truncated: tensors take {end} bytes, of which {len} are there"))
            }
            std::cmp::Ordering::Less => Err(format!("{} bytes too long: no tensor claims them", len - end)),
            std::cmp::Ordering::Equal => Ok(()),
        }
    }
}

/// Bytes that a shape and a dtype take; `None` if that overflows or is no whole number.
pub(super) fn byte_size(info: &TensorInfo) -> Option<usize> {
    let elements = info.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
    let bits = elements.checked_mul(info.dtype.bitsize())?;
    bits.is_multiple_of(8).then_some(bits / 8)
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    /// A plain map would let the last of two tensors of one name win in silence.
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Header, A::Error> {
        let mut metadata = None;
        let mut tensors = HashMap::new();
        while let Some(name) = map.next_key::<String>()? {
            let at = |e: A::Error| A::Error::custom(format!("`{name}`: {e}"));
            let twice = if name == "__metadata__" {
                metadata.replace(map.next_value().map_err(at)?).is_some()
            } else {
                let info: TensorInfo = map.next_value().map_err(at)?;
                tensors.insert(name.clone(), info).is_some()
            };
            if twice {
                return Err(A::Error::custom(format!("`{name}` is there twice")));
            }
        }
        Ok(Header { metadata: metadata.unwrap_or_default(), tensors: tensors.into_iter().collect() })
    }
}
