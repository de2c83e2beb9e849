//! What the shared and the static library export and need.
#![cfg(target_os = "linux")]

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use crate::support::{declared_functions, library, repository, run};

fn readelf(option: &str) -> String {
    run(Command::new("readelf").args([option, "-W"]).arg(library("libsvdq.so")))
}

/// The values in brackets of the entries of the dynamic section that are called `tag`.
fn dynamic(tag: &str) -> Vec<String> {
    let section = readelf("-d");
    let entries = section.lines().filter(|line| line.contains(&format!("({tag})")));
    entries.map(|line| line.split(['[', ']']).nth(1).unwrap().to_owned()).collect()
}

/// The defined symbols that `nm` lists.
fn symbols(options: &[&str], file: &str) -> BTreeSet<String> {
    let listing = run(Command::new("nm").args(options).args(["--defined-only", "-P"]).arg(library(file)));
    let named = listing.lines().filter_map(|line| line.split_once(' '));
    named.map(|(name, _)| name.to_owned()).collect()
}

#[test]
fn shared_library_exports_the_header_and_nothing_else() {
    assert_eq!(symbols(&["-D"], "libsvdq.so"), BTreeSet::from_iter(declared_functions()));
}

/// What abidiff compares has no code: that the library has its functions is for here.
#[test]
fn shared_library_exports_the_functions_of_the_abis_baseline() {
    let baseline = fs::read_to_string(repository("tests/c_api/abi.xml")).unwrap();
    let names =
        baseline.split("<elf-symbol name='").skip(1).map(|rest| rest.split('\'').next().unwrap().to_owned());
    assert_eq!(symbols(&["-D"], "libsvdq.so"), names.collect());
    assert!(baseline.contains(&format!("soname='{}'", dynamic("SONAME")[0])));
}

#[test]
fn static_library_defines_the_header() {
    let ours = symbols(&["-g"], "libsvdq.a").into_iter().filter(|name| name.starts_with("svdq_"));
    assert_eq!(ours.collect::<BTreeSet<_>>(), BTreeSet::from_iter(declared_functions()));
}

#[test]
fn shared_library_needs_only_the_system() {
    for name in dynamic("NEEDED") {
        let system = ["libc.so.6", "libm.so.6", "libgcc_s.so.1"];
        assert!(system.contains(&name.as_str()) || name.starts_with("ld-linux"), "libsvdq.so needs {name}");
    }
}

#[test]
fn shared_library_has_a_soname_and_stays_loaded() {
    assert_eq!(dynamic("SONAME"), ["libsvdq.so.0"]);
    let section = readelf("-d");
    let flags = section.lines().find(|line| line.contains("(FLAGS_1)"));
    assert!(flags.is_some_and(|line| line.contains("NODELETE")), "{flags:?}");
}

#[test]
fn shared_library_has_no_executable_stack() {
    let segments = readelf("-l");
    let stack = segments.lines().find(|line| line.contains("GNU_STACK")).unwrap();
    assert!(stack.contains(" RW ") && !stack.contains(" RWE "), "{stack}");
}
