//! svdq.hpp: taken by compilers of every standard, with exceptions and without; complete; and run.
#![cfg(target_os = "linux")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{library, repository, run, scratch};

const MODES: [&[&str]; 2] = [&[], &["-fno-exceptions", "-fno-rtti"]];

/// A compiler with the warnings that strict projects turn on.
fn compiler(program: &str, standard: &str, mode: &[&str]) -> Command {
    let mut compiler = Command::new(program);
    compiler.args(["-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-pedantic", "-Werror"]);
    compiler.arg(format!("-std={standard}")).args(mode);
    compiler.arg("-I").arg(repository("include")).arg("-I").arg(repository("bindings/cpp"));
    compiler
}

/// Adds the shared library to a link command; it lies in the folder of the program.
fn link<'a>(compiler: &'a mut Command, folder: &Path) -> &'a mut Command {
    for name in ["libsvdq.so", "libsvdq.so.0"] {
        let _ = symlink(library("libsvdq.so"), folder.join(name));
    }
    compiler.arg("-L").arg(folder).args(["-lsvdq", "-pthread", "-Wl,-rpath,$ORIGIN"])
}

#[test]
#[ignore = "needs g++ and clang++"]
fn compilers_take_it() {
    let test = repository("tests/bindings/cpp/test.cpp");
    let example = repository("bindings/cpp/example.cpp");
    for program in ["g++", "clang++"] {
        for standard in ["c++11", "c++14", "c++17", "c++20", "c++2b"] {
            for mode in MODES {
                run(compiler(program, standard, mode).arg("-fsyntax-only").arg(&test).arg(&example));
            }
        }
    }
}

/// Everything that C has can be reached: each function, and each field that a program sets.
#[test]
fn it_is_complete() {
    let c = fs::read_to_string(repository("include/svdq.h")).unwrap();
    let cpp = fs::read_to_string(repository("bindings/cpp/svdq.hpp")).unwrap();
    let mut functions = 0;
    for declaration in c.split("\nSVDQ_API").skip(1) {
        let name = declaration.split('(').next().unwrap().rsplit([' ', '*', '\n']).next().unwrap();
        // the defaults are zeros, which ContextParams has
        if name != "svdq_context_params_init" {
            let used = ["(", ")"].iter().any(|after| cpp.contains(&format!("{name}{after}")));
            assert!(used, "{name} cannot be reached");
        }
        functions += 1;
    }
    assert!(functions > 30, "{functions}");
    for (name, object) in [
        ("svdq_source", "source"),
        ("svdq_model_params", "params"),
        ("svdq_prompt_params", "raw"),
        ("svdq_generate_params", "params"),
    ] {
        let body = c.split(&format!("typedef struct {name} {{")).nth(1).unwrap().split('}').next().unwrap();
        let code = body.lines().filter(|line| line.trim_end().ends_with(';'));
        let fields = code.map(|line| line.trim_end_matches(';').rsplit([' ', '*']).next().unwrap());
        for field in fields.filter(|field| *field != "struct_size") {
            assert!(cpp.contains(&format!("{object}.{field} = ")), "{name}.{field} cannot be set");
        }
    }
}

/// Builds the test program out of three translation units, one of them in the other mode.
fn build(folder: &Path, program: &str, standard: &str, mode: usize, options: &[&str]) -> PathBuf {
    let object = |source: &str, mode: usize, name: &str, define: &str| {
        let object = folder.join(name);
        let mut compiler = compiler(program, standard, MODES[mode]);
        compiler.args(["-O1", "-g", "-pthread", "-c"]).args(options).arg(define).arg("-o").arg(&object);
        run(compiler.arg(repository("tests/bindings/cpp").join(source)));
        object
    };
    let objects = [
        object("test.cpp", mode, "test.o", "-DTEST"),
        object("elsewhere.cpp", mode, "same.o", "-DELSEWHERE=loaded_elsewhere"),
        object("elsewhere.cpp", 1 - mode, "other.o", "-DELSEWHERE=loaded_in_the_other_mode"),
    ];
    let test = folder.join("test");
    let mut linker = Command::new(program);
    run(link(linker.args(options).args(objects).arg("-o").arg(&test), folder));
    test
}

fn runs(test: &Path) {
    let lora = repository("assets/demo/lora/pocket-green.safetensors");
    run(Command::new(test).arg(repository("assets/demo")).arg(lora));
}

#[test]
#[ignore = "needs g++"]
fn it_runs_with_exceptions_and_without() {
    for (mode, name) in [(0, "cpp_throwing"), (1, "cpp_nonthrowing")] {
        let test = build(&scratch(name), "g++", ["c++11", "c++20"][mode], mode, &[]);
        runs(&test);
        // a result is opened that has no value
        let output = Command::new(&test).args(["open", "/nowhere"]).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        if mode == 0 {
            assert!(output.status.code().is_none(), "{error}");
            assert!(error.contains("what():  SVDQ_ERR_NOT_FOUND: /nowhere"), "{error}");
        } else {
            assert_eq!(output.status.code(), Some(42), "{error}");
            assert!(error.contains("fatal -21: /nowhere"), "{error}");
        }
    }
}

#[test]
#[ignore = "needs g++"]
fn sanitizers_find_nothing() {
    let options = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"];
    let test = build(&scratch("cpp_sanitizers"), "g++", "c++17", 0, &options);
    let symbols = run(Command::new("nm").arg("-C").arg(&test));
    assert!(symbols.contains("__asan_init"), "not instrumented");
    runs(&test);
}

#[test]
#[ignore = "needs g++"]
fn the_example_makes_a_picture() {
    let folder = scratch("cpp_example");
    let pictures = MODES.map(|mode| {
        let program = folder.join("example");
        let mut compiler = compiler("g++", "c++11", mode);
        compiler.arg(repository("bindings/cpp/example.cpp")).arg("-o").arg(&program);
        run(link(&mut compiler, &folder));
        let picture = folder.join("potion.ppm");
        run(Command::new(&program).arg(repository("assets/demo")).arg("pixel art blue potion").arg(&picture));
        fs::read(picture).unwrap()
    });
    assert!(pictures[0].starts_with(b"P6\n128 128\n255\n") && pictures[0].len() == 15 + 128 * 128 * 3);
    assert!(pictures[0] == pictures[1]);
}

#[test]
#[ignore = "needs g++"]
fn the_readme_compiles() {
    let readme = fs::read_to_string(repository("README.md")).unwrap();
    let code = readme.split("```cpp\n").nth(1).unwrap().split("```").next().unwrap();
    let source = scratch("cpp_readme").join("readme.cpp");
    let includes = "#include <vector>\n#include \"svdq.hpp\"\n";
    let function = "void readme(std::vector<unsigned char>& pixels, void (*draw_progress)(float))";
    let declaration = format!("{function};\n");
    fs::write(&source, format!("{includes}{declaration}{function} {{\n{code}}}\n")).unwrap();
    run(compiler("g++", "c++11", &[]).arg("-fsyntax-only").arg(source));
}
