//! abidiff compares the ABI with the committed one: functions and their types, structs, callbacks.
//!
//! Both are those of a library that has every function of the header and no code, which a C compiler makes with debug
//! information. Other tests make sure that the real library has the header's functions and layouts.
//! `SVDQ_BLESS=1 cargo test --release --test c_api abi -- --ignored` writes abi.xml anew; after a release the
//! change may only be of the kind that abidiff finds compatible.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use crate::support::{header, repository, run, scratch};

const BASELINE: &str = "tests/c_api/abi.xml";

/// A library with the functions of a header.
fn stub(header: &str, folder: &Path) -> PathBuf {
    fs::write(folder.join("svdq.h"), header).unwrap();
    let functions = header.split("\nSVDQ_API").skip(1).map(|text| text.split(';').next().unwrap());
    let bodies: String = functions.map(|function| format!("{function} {{ abort(); }}\n")).collect();
    fs::write(folder.join("stub.c"), format!("#include <stdlib.h>\n#include \"svdq.h\"\n{bodies}")).unwrap();
    let library = folder.join("libsvdq.so");
    // Opaque handles are types too: their names are kept although nothing has a value of them.
    let mut cc = Command::new(env::var("CC").unwrap_or("cc".into()));
    cc.current_dir(folder).args(["-std=c11", "-g", "-gdwarf-4", "-fno-eliminate-unused-debug-types"]);
    run(cc.args(["-fPIC", "-shared", "-Wl,-soname,libsvdq.so.0", "-o", "libsvdq.so", "stub.c"]));
    library
}

/// The ABI of a library, without anything that depends on where it was built.
fn write_baseline(library: &Path, to: &Path) {
    let mut abidw = Command::new("abidw");
    abidw.args(["--no-corpus-path", "--no-comp-dir-path", "--no-show-locs"]);
    let partial = library.with_extension("xml");
    run(abidw.arg("--out-file").arg(&partial).arg(library));
    // At once, for the tests beside this one.
    fs::rename(partial, to).unwrap();
}

/// What abidiff has to say about `library`: nothing, or a report.
fn differences(library: &Path) -> Result<(), String> {
    let output = Command::new("abidiff").arg(repository(BASELINE)).arg(library).output().unwrap();
    let report = String::from_utf8_lossy(&output.stdout).into_owned();
    // Bits 0 and 1: abidiff itself failed.
    let status = output.status.code().unwrap();
    assert!(status & 3 == 0, "abidiff: {status}: {report}{}", String::from_utf8_lossy(&output.stderr));
    if status == 0 { Ok(()) } else { Err(report) }
}

#[test]
#[ignore = "needs libabigail: abidw and abidiff"]
fn the_abi_is_that_of_the_baseline() {
    let library = stub(&header(), &scratch("abi"));
    if env::var_os("SVDQ_BLESS").is_some() {
        write_baseline(&library, &repository(BASELINE));
    }
    if let Err(report) = differences(&library) {
        panic!("not that of {BASELINE}, see tests/c_api/abi.rs:\n{report}");
    }
}

/// Changes that break programs which are compiled already, and a word that the report has to have.
const MUTATIONS: [(&str, &str, &str, &str); 6] = [
    ("inserted field", "  uint32_t format;", "  uint32_t format;\n  uint32_t inserted;", "inserted"),
    (
        "appended field",
        "  uint64_t capacity;\n}",
        "  uint64_t capacity;\n  uint64_t appended;\n}",
        "appended",
    ),
    ("wider field", "  float strength;", "  double strength;", "strength"),
    (
        "wider parameter",
        "svdq_result_name(svdq_result result)",
        "svdq_result_name(int64_t result)",
        "svdq_result_name",
    ),
    ("other result", "uint32_t svdq_version_number", "uint64_t svdq_version_number", "svdq_version_number"),
    ("lost function", "SVDQ_API const char *svdq_version_string(void);", "", "svdq_version_string"),
];

#[test]
#[ignore = "needs libabigail: abidw and abidiff"]
fn abidiff_finds_planted_changes() {
    let header = header();
    for (what, from, to, word) in MUTATIONS {
        let mutated = header.replacen(from, to, 1);
        assert!(mutated != header, "{what}: the header has no {from}");
        let report = differences(&stub(&mutated, &scratch("abi_mutation"))).expect_err(what);
        assert!(report.contains(word), "{what}: {report}");
    }
}
