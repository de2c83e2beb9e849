//! The seeds of the fuzz targets (`fuzz/`), through what the targets do with them: none panics.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

#[allow(unreachable_pub, reason = "a crate of its own under fuzz/")]
#[path = "../fuzz/src/lib.rs"]
mod targets;

/// Its name, and what it does with an input.
type Target = (&'static str, fn(&[u8]));

const TARGETS: [Target; 5] = [
    ("api", targets::api::run),
    ("checkpoint", targets::checkpoint::run),
    ("flux", targets::flux::run),
    ("lora", targets::lora::run),
    ("names", targets::names::run),
];

fn names(folder: &Path) -> BTreeSet<String> {
    let stem = |entry: fs::DirEntry| entry.path().file_stem().unwrap().to_str().unwrap().to_owned();
    fs::read_dir(folder).unwrap().map(|entry| stem(entry.unwrap())).collect()
}

#[test]
fn seeds() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let all: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names(&fuzz.join("fuzz_targets")), all);
    assert_eq!(names(&fuzz.join("seeds")), all);
    for (name, run) in TARGETS {
        let seeds: Vec<_> =
            fs::read_dir(fuzz.join("seeds").join(name)).unwrap().map(Result::unwrap).collect();
        assert!(!seeds.is_empty(), "{name} has no seeds");
        for seed in seeds {
            let input = fs::read(seed.path()).unwrap();
            // and what is left of a seed that is cut short
            for len in [input.len(), input.len() * 2 / 3, input.len() / 3] {
                run(&input[..len]);
            }
        }
    }
    // Those of `api` come to every function, and to its end.
    let header = fs::read_to_string(fuzz.with_file_name("include/svdq.h")).unwrap();
    let declared = header.split("\nSVDQ_API").skip(1).map(|text| text.split('(').next().unwrap());
    let declared = declared.map(|text| text.rsplit([' ', '*', '\n']).next().unwrap());
    let succeeded = targets::api::succeeded();
    let missing: Vec<_> = declared.filter(|name| !succeeded.contains(name)).collect();
    let devices = ["svdq_device_count", "svdq_device_get_info"];
    assert!(missing.is_empty() || missing == devices, "no seed succeeds with {missing:?}");
}
