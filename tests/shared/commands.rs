//! What tests of the library as C has it share: folders, libraries and commands that have to succeed.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// A file of the repository.
pub(crate) fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A new, empty folder for one test.
pub(crate) fn scratch(test: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(env!("CARGO_CRATE_NAME")).join(test);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    folder
}

/// `library` as cargo built it together with this test.
pub(crate) fn library(library: &str) -> PathBuf {
    let path = env::current_exe().unwrap().with_file_name(library);
    assert!(path.exists(), "{} was not built", path.display());
    path
}

/// Runs a command and returns its output; it has to succeed.
pub(crate) fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{out}{err}", output.status);
    out
}
