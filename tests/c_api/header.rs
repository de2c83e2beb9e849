//! include/svdq.h is what src/capi says, and every C and C++ compiler takes it.

use std::fs;
use std::process::Command;

use crate::support::{cc, cxx, declared_functions, header, repository, run, scratch, strict};

/// The modules of src/capi in the order in which the header shows them.
const MODULES: [&str; 11] = [
    "version", "result", "device", "context", "source", "model", "lora", "prompt", "image", "generate", "job",
];

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
    let header = header.split("extern \"C\"").nth(1).unwrap();
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

const C: [&str; 4] = ["c99", "c11", "c17", "c2x"];
const CPP: [&str; 5] = ["c++11", "c++14", "c++17", "c++20", "c++2b"];

/// Includes the header in every way, in every standard.
fn takes_it(test: &str, compiler: fn() -> Command, extension: &str, standards: &[&str]) {
    let source = scratch(test).join("use").with_extension(extension);
    for include in INCLUDES {
        fs::write(&source, format!("{include}{USE}")).unwrap();
        for standard in standards {
            run(compiler().arg(format!("-std={standard}")).arg("-fsyntax-only").arg(&source));
        }
    }
}

/// A C++ compiler as engines run it.
fn engine(mut cxx: Command) -> Command {
    cxx.args(["-fno-exceptions", "-fno-rtti"]);
    cxx
}

#[test]
fn the_c_compiler_takes_it() {
    takes_it("cc", cc, "c", &C);
}

#[test]
#[ignore = "needs a C++ compiler, $CXX or c++"]
fn the_cpp_compiler_takes_it() {
    takes_it("cxx", || engine(cxx()), "cpp", &CPP);
}

#[test]
#[ignore = "needs clang"]
fn clang_takes_it() {
    takes_it("clang", || strict("clang", "-Wstrict-prototypes"), "c", &C);
    takes_it("clang++", || engine(strict("clang++", "-Wold-style-cast")), "cpp", &CPP);
}

/// With imports from svdq.dll, and with the static library. The library itself is not built for Windows.
#[test]
#[ignore = "needs gcc for Windows: mingw-w64"]
fn windows_compilers_take_it() {
    let gcc = || strict("x86_64-w64-mingw32-gcc", "-Wstrict-prototypes");
    takes_it("mingw", gcc, "c", &C);
    let examples = fs::read_dir(repository("examples-c")).unwrap().map(|entry| entry.unwrap().path());
    for source in examples.filter(|path| path.extension().is_some_and(|extension| extension == "c")) {
        run(gcc().args(["-std=c99", "-fsyntax-only"]).arg(&source));
        run(gcc().args(["-std=c99", "-fsyntax-only", "-DSVDQ_STATIC"]).arg(&source));
    }
}
