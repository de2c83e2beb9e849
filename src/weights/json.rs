//! JSON files with a limit on their size, and errors that name file and key.

use std::path::Path;

use serde::de::DeserializeOwned;

use super::Location;
use crate::{Error, Result};

/// Larger than any config, shard index or tokenizer (FLUX.1's largest is a tokenizer of 2.4 MB).
const LIMIT: u64 = 16 << 20;

/// Reads a JSON file.
///
/// # Errors
/// The file is missing, is not a file, is larger than 16 MB, or is not JSON of the form that `T` wants.
pub fn read_json<T: DeserializeOwned>(at: impl Into<Location>) -> Result<T> {
    let at = at.into();
    parse_json(at.path(), "", &read_text(&at)?)
}

/// Reads a text file.
///
/// # Errors
/// The file is missing, is not a file, is larger than 16 MB, or is not UTF-8.
pub fn read_text(at: impl Into<Location>) -> Result<String> {
    let at = at.into();
    String::from_utf8(at.read(LIMIT)?).map_err(|e| Error::format(at.path(), format!("not UTF-8: {e}")))
}

/// Reads JSON that is a part of `path`, named `part` (empty for the whole file).
///
/// # Errors
/// [`Error::BadFormat`], naming the key at which the text stops being what `T` wants.
pub fn parse_json<T: DeserializeOwned>(path: &Path, part: &str, text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|e| {
        let key =
            key_before(text, e.line(), e.column()).map(|k| format!(" (near key `{k}`)")).unwrap_or_default();
        let part = if part.is_empty() { String::new() } else { format!("`{part}`: ") };
        Error::format(path, format!("{part}{e}{key}"))
    })
}

/// The last object key that is complete before a position.
fn key_before(text: &str, line: usize, column: usize) -> Option<&str> {
    let begin: usize = text.split_inclusive('\n').take(line.checked_sub(1)?).map(str::len).sum();
    let seen = text.as_bytes().get(..(begin + column).min(text.len()))?;
    let colon = seen.windows(2).rposition(|w| w == b"\":")?;
    let open = seen[..colon].iter().rposition(|&b| b == b'"')?;
    text.get(open + 1..colon)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::weights::testing::TempDir;

    #[test]
    fn errors_name_file_and_key() {
        let e = parse_json::<std::collections::HashMap<String, u32>>(
            Path::new("config.json"),
            "",
            "{\"heads\": 2,\n \"layers\": -3}",
        );
        let text = e.unwrap_err().to_string();
        assert!(
            text.contains("config.json") && text.contains("`layers`") && text.contains("line 2"),
            "{text}"
        );
    }

    #[test]
    fn files_that_are_none_are_refused() {
        let dir = TempDir::new();
        assert!(matches!(read_json::<u32>(&dir.path().join("no")), Err(Error::NotFound { .. })));
        assert!(matches!(read_json::<u32>(dir.path()), Err(Error::BadFormat { .. })));
        let big = dir.write("big.json", b"");
        std::fs::OpenOptions::new().write(true).open(&big).unwrap().set_len(LIMIT + 1).unwrap();
        assert!(read_json::<u32>(&big).unwrap_err().to_string().contains("larger than"));
        assert!(read_json::<u32>(&dir.write("x.json", b"\xff")).unwrap_err().to_string().contains("UTF-8"));
    }
}
