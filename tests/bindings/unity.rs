//! The Unity package: its files are as the package manager wants them, its raw bindings are those of the library,
//! and its wrappers run under mono, compiled as they run and ahead of time.
//!
//! Neither Unity nor IL2CPP is here. What stands in for them are stubs of the classes that the package uses, and
//! mono's full AOT, which like IL2CPP cannot make code when the program runs.
#![cfg(target_os = "linux")]

#[path = "unity/meta.rs"]
mod meta;
#[path = "unity/picture.rs"]
mod picture;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use serde_json::Value;

use crate::support::{library, repository, run, scratch};

const BLESS: &str = "SVDQ_BLESS=1 cargo test --release --test bindings unity";

fn package() -> PathBuf {
    repository("bindings/unity/com.libsvdq.svdq")
}

/// Fails unless the file says `text`, or makes it so when asked to.
fn fresh(path: &Path, text: &str) {
    if env::var_os("SVDQ_BLESS").is_some() {
        fs::write(path, text).unwrap();
    }
    let found = fs::read_to_string(path).unwrap_or_default();
    assert!(found == text, "{} is stale: {BLESS}", path.display());
}

#[test]
fn raw_bindings_are_fresh() {
    let modules = fs::read_to_string(repository("src/capi/mod.rs")).unwrap();
    let modules = modules.lines().filter_map(|line| line.strip_prefix("pub use ")?.strip_suffix("::*;"));
    let builder = modules.fold(csbindgen::Builder::new(), |builder, module| {
        builder.input_extern_file(repository(&format!("src/capi/{module}.rs")))
    });
    let generated = scratch("unity_raw").join("Api.cs");
    builder
        .csharp_dll_name("svdq")
        .csharp_namespace("Svdq.Native")
        .csharp_class_name("Api")
        // Mono's compiler does not know C# 9.
        .csharp_use_function_pointer(false)
        .csharp_use_nint_types(false)
        .csharp_generate_const_filter(|name| name.starts_with("SVDQ_"))
        .generate_csharp_file(&generated)
        .unwrap();
    // The documentation is svdq.h's.
    let generated = fs::read_to_string(generated).unwrap();
    let mut lines: Vec<_> = generated.lines().filter(|line| !line.trim_start().starts_with("///")).collect();
    lines.dedup_by(|line, before| line.trim().is_empty() && before.trim().is_empty());
    fresh(&package().join("Runtime/Native/Api.cs"), &(lines.join("\n") + "\n"));
}

#[test]
fn every_asset_has_its_meta_and_every_meta_its_asset() {
    let package = package();
    let mut assets: BTreeSet<PathBuf> = meta::assets(&package).into_iter().collect();
    // These come with a release; their settings are here.
    assets.extend(["libsvdq.so", "svdq.dll"].map(|name| Path::new("Runtime/Plugins/x86_64").join(name)));
    assets.insert("Third Party Notices.md".into());
    let mut guids = BTreeMap::new();
    for asset in &assets {
        let text = meta::meta(&package, asset);
        fresh(&package.join(format!("{}.meta", asset.display())), &text);
        let guid = text.lines().nth(1).unwrap().to_owned();
        assert_eq!(guids.insert(guid, asset), None, "the GUID of {}", asset.display());
    }
    let metas = metas(&package);
    let wanted = assets.iter().map(|asset| format!("{}.meta", asset.display())).collect();
    assert_eq!(metas, wanted);
}

/// The .meta files of a package.
fn metas(package: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut folders = vec![package.to_owned()];
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "meta") {
                found.insert(path.strip_prefix(package).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    found
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap())
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn strings(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|value| value.as_str().unwrap()).collect()
}

#[test]
fn the_manifest_says_what_is_there() {
    let package = package();
    let manifest = json(&package.join("package.json"));
    assert_eq!(manifest["name"], package.file_name().unwrap().to_str().unwrap());
    assert_eq!(manifest["version"], env!("CARGO_PKG_VERSION"));
    for field in ["displayName", "description", "unity", "license"] {
        assert!(manifest[field].as_str().is_some_and(|text| !text.is_empty()), "{field}");
    }
    for sample in manifest["samples"].as_array().unwrap() {
        assert!(package.join(sample["path"].as_str().unwrap()).is_dir(), "{sample}");
    }
    let changes = fs::read_to_string(package.join("CHANGELOG.md")).unwrap();
    assert!(changes.contains(&format!("## [{}]", env!("CARGO_PKG_VERSION"))), "{changes}");
    for url in ["documentationUrl", "changelogUrl", "licensesUrl"] {
        let file = manifest[url].as_str().unwrap().split_once("/blob/main/").unwrap().1;
        assert!(repository(file).is_file(), "{file}");
    }
}

#[test]
fn assemblies_are_well_formed() {
    let package = package();
    let assets = meta::assets(&package);
    let asmdefs: Vec<_> = assets
        .iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "asmdef"))
        .collect();
    let names: Vec<_> = asmdefs.iter().map(|path| path.file_stem().unwrap().to_str().unwrap()).collect();
    for (path, name) in asmdefs.iter().zip(&names) {
        let asmdef = json(&package.join(path));
        assert_eq!(asmdef["name"], *name);
        let unity = ["UnityEngine.TestRunner", "UnityEditor.TestRunner"];
        for reference in strings(&asmdef["references"]) {
            assert!(names.contains(&reference) || unity.contains(&reference), "{name}: {reference}");
        }
        let platforms = strings(&asmdef["includePlatforms"]);
        let players = ["LinuxStandalone64", "WindowsStandalone64"];
        let (editor, tests) = (path.starts_with("Editor"), path.starts_with("Tests"));
        assert!(platforms.contains(&"Editor"));
        assert_eq!(players.iter().all(|player| platforms.contains(player)), !editor, "{name}");
        assert_eq!(
            asmdef["defineConstraints"] == serde_json::json!(["UNITY_INCLUDE_TESTS"]),
            tests,
            "{name}"
        );
    }
    // Each script is in one assembly.
    for script in assets.iter().filter(|path| path.extension().is_some_and(|extension| extension == "cs")) {
        let inside = |path: &&&PathBuf| script.starts_with(path.parent().unwrap());
        let sample = script.starts_with("Samples~");
        assert_eq!(asmdefs.iter().filter(inside).count(), usize::from(!sample), "{}", script.display());
    }
}

#[test]
fn package_sh_adds_libraries_and_notices() {
    let folder = scratch("unity_package");
    let notices = folder.join("THIRD-PARTY.md");
    fs::write(&notices, "licences").unwrap();
    for (name, with_notices) in [("with", true), ("without", false)] {
        let mut script = Command::new(repository("bindings/unity/package.sh"));
        script.arg(folder.join(name)).arg("--linux").arg(library("libsvdq.so"));
        if with_notices {
            script.arg("--notices").arg(&notices);
        }
        run(&mut script);
        let package = folder.join(name).join("com.libsvdq.svdq");
        let plugins = package.join("Runtime/Plugins/x86_64");
        assert_eq!(fs::read(plugins.join("libsvdq.so")).unwrap(), fs::read(library("libsvdq.so")).unwrap());
        let text = fs::read_to_string(package.join("Third Party Notices.md"));
        assert_eq!(text.ok().as_deref(), with_notices.then_some("licences"));
        let assets = meta::assets(&package);
        let wanted: BTreeSet<_> = assets.iter().map(|asset| format!("{}.meta", asset.display())).collect();
        assert_eq!(metas(&package), wanted, "no settings without a file");
    }
}

/// The C# files of a folder and those below.
fn scripts(folder: &Path) -> Vec<PathBuf> {
    let assets = meta::assets(folder);
    let scripts = assets.iter().filter(|path| path.extension().is_some_and(|extension| extension == "cs"));
    scripts.map(|path| folder.join(path)).collect()
}

/// Compiles C# as Unity 2021 and newer take it; what is referenced lies beside the output.
fn mcs(output: &Path, sources: &[PathBuf], references: &[&str]) {
    let kind = if output.extension().unwrap() == "dll" { "-target:library" } else { "-target:exe" };
    let mut mcs = Command::new("mcs");
    mcs.args(["-langversion:7.2", "-unsafe", "-warn:4", "-warnaserror", kind]);
    mcs.arg(format!("-out:{}", output.display())).arg(format!("-lib:{}", output.parent().unwrap().display()));
    run(mcs.args(references.iter().map(|name| format!("-r:{name}"))).args(sources));
}

fn test_script(name: &str) -> PathBuf {
    repository("tests/bindings/unity").join(name)
}

/// The package's assembly as it is outside of Unity: without the one file that needs Unity.
fn plain_assembly(folder: &Path) {
    let mut sources = scripts(&package().join("Runtime"));
    let all = sources.len();
    sources.retain(|path| !path.ends_with("UnityExtensions.cs"));
    assert_eq!(sources.len(), all - 1);
    sources.push(test_script("Internals.cs"));
    mcs(&folder.join("Svdq.dll"), &sources, &[]);
}

/// Runs a program with the library where mono looks for it.
fn mono(folder: &Path, program: &str) -> Command {
    for name in ["libsvdq.so", "libsvdq.so.0"] {
        if !folder.join(name).exists() {
            symlink(library("libsvdq.so"), folder.join(name)).unwrap();
        }
    }
    let mut mono = Command::new("mono");
    mono.env("LD_LIBRARY_PATH", folder).env("CASES_FOLDER", folder);
    mono.env("SVDQ_TEST_MODEL", repository("assets/demo"));
    mono.env("LC_ALL", "C.UTF-8").arg("--debug").arg(folder.join(program));
    mono
}

/// Cases.exe, and what it reads.
fn cases(test: &str) -> PathBuf {
    let folder = scratch(test);
    plain_assembly(&folder);
    mcs(&folder.join("Cases.exe"), &[test_script("Cases.cs")], &["Svdq"]);
    symlink(repository("assets/demo"), folder.join("demo")).unwrap();
    symlink(repository("assets/demo"), folder.join("Modèle 模型")).unwrap();
    let lora = repository("assets/demo/lora/pocket-green.safetensors");
    symlink(lora, folder.join("style.safetensors")).unwrap();
    folder
}

/// All of them but those that need what AOT does not have.
const CASES: [&str; 21] = [
    "picture",
    "layouts_of_pixels",
    "async",
    "main_thread",
    "poll",
    "cancel",
    "errors",
    "failed_job",
    "path",
    "lora",
    "prompt",
    "init",
    "cost",
    "context",
    "sources",
    "broken_stream",
    "dropped_load",
    "wrong_order",
    "finalizers",
    "shutdown",
    "exit",
];

/// Runs cases, all of which have to pass, and compares the pictures that they leave with the C API's.
fn pass(mut program: Command, cases: &[&str], folder: &Path) {
    let output = run(program.args(cases));
    let passed: Vec<_> = output.lines().filter_map(|line| line.strip_suffix(" passed")).collect();
    assert_eq!(passed, cases);
    let lora = folder.join("style.safetensors");
    for (name, lora) in [("picture.rgba", None), ("lora.rgba", Some(lora.as_path()))] {
        let picture = fs::read(folder.join(name)).unwrap();
        assert!(picture == picture::potion(&folder.join("demo"), lora), "{name} is not the C API's");
    }
}

#[test]
#[ignore = "needs mono-mcs and mono-runtime"]
fn layouts_and_numbers_are_the_headers() {
    let folder = scratch("unity_layouts");
    plain_assembly(&folder);
    mcs(&folder.join("Layouts.exe"), &[test_script("Layouts.cs")], &["Svdq", "System.Core"]);
    let said = run(&mut mono(&folder, "Layouts.exe"));
    let said: BTreeSet<_> = said.lines().filter(|line| !line.starts_with("SVDQ_VERSION_")).collect();
    let table = fs::read_to_string(repository("tests/c_api/abi.txt")).unwrap();
    let table: BTreeSet<_> = table.lines().map(str::trim).filter(|line| !line.starts_with('#')).collect();
    assert!(table.len() > 100);
    assert_eq!(said, table);
}

#[test]
#[ignore = "needs mono-mcs and mono-runtime"]
fn wrappers_run_under_mono() {
    let folder = cases("unity_mono");
    let mut all = CASES.to_vec();
    all.insert(all.len() - 1, "reload");
    pass(mono(&folder, "Cases.exe"), &all, &folder);
}

#[test]
#[ignore = "needs mono-mcs, mono-runtime, as and ld"]
fn wrappers_run_compiled_ahead_of_time() {
    let folder = cases("unity_aot");
    mcs(&folder.join("Callbacks.exe"), &[test_script("Callbacks.cs")], &[]);
    let platform = run(mono(&folder, "Callbacks.exe").arg("platform"));
    fs::copy(platform.trim(), folder.join("mscorlib.dll")).unwrap();
    for name in ["mscorlib.dll", "Svdq.dll", "Cases.exe", "Callbacks.exe"] {
        run(Command::new("mono").env("MONO_PATH", &folder).arg("--aot=full").arg(folder.join(name)));
    }
    let aot = |program: &str| {
        let jit = mono(&folder, program);
        let mut aot = Command::new("mono");
        aot.envs(jit.get_envs().filter_map(|(name, value)| Some((name, value?)))).env("MONO_PATH", &folder);
        aot.arg("--full-aot").args(jit.get_args());
        aot
    };
    // It is ahead of time indeed: code for a callback that nothing announced is not there.
    assert_eq!(run(aot("Callbacks.exe").arg("marked")), "1 2 3\n");
    let plain = aot("Callbacks.exe").arg("plain").output().unwrap();
    let why = String::from_utf8_lossy(&plain.stderr);
    assert!(!plain.status.success() && why.contains("ExecutionEngineException"), "{why}");
    assert_eq!(run(mono(&folder, "Callbacks.exe").arg("plain")), "1 2 3\n");
    pass(aot("Cases.exe"), &CASES, &folder);
}

#[test]
#[ignore = "needs mono-mcs and mono-runtime"]
fn textures_tests_and_sample_run_over_stubs_of_unity() {
    let folder = scratch("unity_stubs");
    let package = package();
    let stub = |name: &str| test_script("stubs").join(name);
    mcs(&folder.join("UnityEngine.dll"), &[stub("UnityEngine.cs")], &[]);
    mcs(&folder.join("UnityEditor.dll"), &[stub("UnityEditor.cs")], &[]);
    mcs(&folder.join("nunit.framework.dll"), &[stub("NUnit.cs")], &[]);
    mcs(&folder.join("Svdq.dll"), &scripts(&package.join("Runtime")), &["UnityEngine"]);
    let unity = ["Svdq", "UnityEngine", "UnityEditor", "nunit.framework"];
    mcs(&folder.join("Svdq.Editor.dll"), &scripts(&package.join("Editor")), &unity);
    mcs(&folder.join("Svdq.Tests.dll"), &scripts(&package.join("Tests")), &unity);
    mcs(&folder.join("Sample.dll"), &scripts(&package.join("Samples~")), &unity);
    let snippets = folder.join("Snippets.cs");
    fs::write(&snippets, snippets_of(&["README.md", "bindings/unity/com.libsvdq.svdq/README.md"])).unwrap();
    mcs(&folder.join("Snippets.dll"), &[snippets], &unity);
    let references = ["Svdq", "UnityEngine", "UnityEditor", "nunit.framework", "Svdq.Tests"];
    mcs(&folder.join("Editor.exe"), &[test_script("Editor.cs")], &references);
    let output = run(&mut mono(&folder, "Editor.exe"));
    assert_eq!(output.lines().filter(|line| line.ends_with(" passed")).count(), 5, "{output}");
    assert_eq!(output.lines().filter(|line| line.starts_with("nothing outlives ")).count(), 3, "{output}");
}

/// The C# of these texts, each piece in a class that has what it does not declare.
fn snippets_of(texts: &[&str]) -> String {
    let texts: Vec<_> = texts.iter().map(|text| fs::read_to_string(repository(text)).unwrap()).collect();
    let pieces: Vec<_> = texts
        .iter()
        .flat_map(|text| text.split("```csharp\n").skip(1).map(|rest| rest.split("```").next().unwrap()))
        .collect();
    assert_eq!(pieces.len(), 3);
    let classes = pieces.iter().enumerate().map(|(index, piece)| {
        format!(
            "class Snippet{index} {{
                string folder = null; Model model = null; Texture2D texture = null; Material material = null;
                GenerateOptions options = null; IProgress<JobStatus> progress = null;
                CancellationToken cancel = default(CancellationToken);
                async Task Run() {{ {piece} }}
                object[] Used => new object[] {{ folder, model, texture, material, options, progress, cancel }};
            }}\n"
        )
    });
    let usings = "using System; using System.Threading; using System.Threading.Tasks; using Svdq; using UnityEngine;\n";
    usings.to_owned() + &classes.collect::<String>()
}
