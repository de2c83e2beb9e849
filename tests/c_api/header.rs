//! include/svdq.h is what src/capi says, and every C and C++ compiler takes it.

use std::fs;
use std::process::Command;

use crate::support::{cc, declared_functions, header, repository, run, scratch};

/// The modules of src/capi in the order in which the header shows them.
const MODULES: [&str; 7] = ["version", "result", "context", "model", "lora", "image", "generate"];

#[test]
fn header_is_fresh() {
    let config = cbindgen::Config::from_file(repository("cbindgen.toml")).unwrap();
    let builder = cbindgen::Builder::new().with_config(config);
    let builder = MODULES
        .iter()
        .fold(builder, |builder, module| builder.with_src(repository(&format!("src/capi/{module}.rs"))));
    let mut generated = Vec::new();
    builder.generate().unwrap().write(&mut generated);
    if std::env::var_os("SVDQ_BLESS").is_some() {
        fs::create_dir_all(repository("include")).unwrap();
        fs::write(repository("include/svdq.h"), &generated).unwrap();
    }
    let stale = "include/svdq.h is stale: SVDQ_BLESS=1 cargo test --release --test c_api header";
    assert!(header().as_bytes() == generated, "{stale}");
}

#[test]
fn every_function_says_who_may_call_it_and_since_when() {
    let header = header();
    for function in declared_functions() {
        let at = header.find(&format!("{function}(")).unwrap();
        let doc = &header[header[..at].rfind("/**").unwrap()..at];
        for line in [" * Threads: ", " * Since "] {
            assert!(doc.contains(line), "{function} has no{line}");
        }
    }
}

/// Ways to include the header that have gone wrong in other libraries.
const INCLUDES: [&str; 3] = [
    "#include \"svdq.h\"\n",
    "#include \"svdq.h\"\n#include \"svdq.h\"\n",
    "struct svdq_context; struct svdq_model; struct svdq_image; struct svdq_source;\n#include \"svdq.h\"\n",
];

/// Uses the header a little, in C and in C++.
const USE: &str = "
uint32_t area(const svdq_image *image);
uint32_t area(const svdq_image *image) { return image->width * image->height; }
int main(void) { return svdq_version_number() == SVDQ_VERSION_NUMBER ? SVDQ_OK : SVDQ_ERR_INTERNAL; }
";

#[test]
fn c_compilers_take_it() {
    let source = scratch("c_compilers").join("use.c");
    for include in INCLUDES {
        fs::write(&source, format!("{include}{USE}")).unwrap();
        for standard in ["c99", "c11", "c17", "c2x"] {
            run(cc().arg(format!("-std={standard}")).args(["-Wconversion", "-fsyntax-only"]).arg(&source));
        }
    }
}

#[test]
#[ignore = "needs a C++ compiler, $CXX or c++"]
fn cpp_compilers_take_it() {
    let source = scratch("cpp_compilers").join("use.cpp");
    let compiler = std::env::var("CXX").unwrap_or("c++".into());
    for include in INCLUDES {
        fs::write(&source, format!("{include}{USE}")).unwrap();
        for standard in ["c++11", "c++14", "c++17", "c++20"] {
            let mut cpp = Command::new(&compiler);
            cpp.args([
                "-Wall",
                "-Wextra",
                "-Wpedantic",
                "-Wshadow",
                "-Wpadded",
                "-Wold-style-cast",
                "-Werror",
            ]);
            cpp.args(["-fno-exceptions", "-fno-rtti", "-fsyntax-only"]).arg(format!("-std={standard}"));
            run(cpp.arg("-I").arg(repository("include")).arg(&source));
        }
    }
}
