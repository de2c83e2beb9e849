//! The Unreal plug-in: its build rules run, and every file that they name is there; it is compiled with the
//! engine's flags against stubs of the engine, and run in them.
#![cfg(target_os = "linux")]

mod header_tool;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{library, repository, run, scratch};

/// The plug-in as package.sh makes it. Its libraries for Windows are empty files.
fn package(folder: &Path) -> PathBuf {
    let dlls = ["svdq.dll", "svdq.dll.lib"].map(|name| folder.join(name));
    for dll in &dlls {
        fs::write(dll, "").unwrap();
    }
    let mut script = Command::new(repository("bindings/unreal/package.sh"));
    run(script.arg(folder).arg("--linux").arg(library("libsvdq.so")).arg("--win64").args(dlls));
    folder.join("SVDQ")
}

/// Compiles a module's Build.cs, and says what it asks for on each platform.
fn rules(plugin: &Path, module: &str, folder: &str, platforms: &[&str]) -> Vec<String> {
    let folder = plugin.join("Source").join(folder);
    let program = plugin.join(format!("{module}.exe"));
    let mut mcs = Command::new("mcs");
    mcs.args(["-langversion:7", "-warnaserror"]).arg(format!("-out:{}", program.display()));
    run(mcs.arg(repository("tests/bindings/unreal/Rules.cs")).arg(folder.join(format!("{module}.Build.cs"))));
    let says = |platform| run(Command::new("mono").arg(&program).arg(module).arg(&folder).arg(platform));
    platforms.iter().map(says).collect()
}

/// What follows a word at the start of a line.
fn lines<'a>(text: &'a str, word: &str) -> Vec<&'a str> {
    text.lines().filter_map(|line| line.strip_prefix(word)?.strip_prefix(' ')).collect()
}

#[test]
#[ignore = "needs mono-mcs and mono-runtime"]
fn the_library_is_linked_and_shipped() {
    let plugin = package(&scratch("unreal_library"));
    let said = rules(&plugin, "SVDQLibrary", "ThirdParty/SVDQLibrary", &["Win64", "Linux", "Mac"]);
    for (platform, shipped) in [(0, vec!["svdq.dll"]), (1, vec!["libsvdq.so", "libsvdq.so.0"])] {
        let said = &said[platform];
        assert_eq!(lines(said, "type"), ["External"]);
        for word in ["include", "link", "ship"] {
            let files = lines(said, word);
            assert!(!files.is_empty() && files.iter().all(|file| Path::new(file).exists()), "{said}");
        }
        let names =
            lines(said, "ship").iter().map(|file| file.rsplit('/').next().unwrap()).collect::<Vec<_>>();
        assert_eq!(names, shipped);
    }
    assert_eq!(lines(&said[0], "delay"), ["svdq.dll"]);
    assert_eq!(lines(&said[1], "delay"), [""; 0]);
    let rpath = Path::new(lines(&said[1], "rpath")[0]);
    assert!(rpath.join("libsvdq.so.0").exists(), "the soname is not where the loader looks");
    assert_eq!(lines(&said[2], "refused"), ["libsvdq is built for Win64 and Linux, not for Mac"]);
    for header in ["svdq.h", "svdq.hpp"] {
        assert!(Path::new(lines(&said[1], "include")[0]).join(header).exists(), "no {header}");
    }
}

#[test]
#[ignore = "needs mono-mcs and mono-runtime"]
fn the_module_is_described() {
    let plugin = package(&scratch("unreal_module"));
    let text = fs::read_to_string(plugin.join("SVDQ.uplugin")).unwrap();
    let description: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(description["FileVersion"], 3);
    assert_eq!(description["VersionName"], env!("CARGO_PKG_VERSION"));
    assert_eq!(description["CanContainContent"], false);
    let modules = description["Modules"].as_array().unwrap();
    assert_eq!(modules.len(), 1);
    assert_eq!(modules[0]["Type"], "Runtime");
    assert_eq!(modules[0]["LoadingPhase"], "Default");
    assert_eq!(modules[0]["PlatformAllowList"], description["SupportedTargetPlatforms"]);
    let name = modules[0]["Name"].as_str().unwrap();

    // IMPLEMENT_MODULE has the name of the folder, of the rules and of the description
    let source = plugin.join("Source").join(name);
    let module = fs::read_to_string(source.join("Private/SVDQModule.cpp")).unwrap();
    assert!(module.contains(&format!("IMPLEMENT_MODULE(FSVDQRuntimeModule, {name})")));
    let said = rules(&plugin, name, name, &["Win64", "Linux"]);
    let needed = ["Core", "CoreUObject", "DeveloperSettings", "Engine", "Projects", "RHI", "SVDQLibrary"];
    for (said, engine) in said.iter().zip([&["Vulkan", "DX12"][..], &["Vulkan"]]) {
        assert_eq!(lines(said, "type"), ["CPlusPlus"]);
        assert_eq!(lines(said, "module"), needed);
        assert_eq!(lines(said, "headers"), ["VulkanRHI"]);
        assert_eq!(lines(said, "engine"), engine);
    }

    // UnrealBuildTool defines this for the module: it must not be a macro of the library
    let export = format!("{}_API", name.to_uppercase());
    for header in ["include/svdq.h", "bindings/cpp/svdq.hpp"] {
        assert!(!fs::read_to_string(repository(header)).unwrap().contains(&export), "{header}");
    }
    for header in fs::read_dir(source.join("Public")).unwrap() {
        let text = fs::read_to_string(header.unwrap().path()).unwrap();
        assert!(!text.contains("svdq.h"), "the library shows in the plug-in's public headers");
    }
}

/// Compiles the plug-in's sources as a module, and the test that runs it.
fn build(folder: &Path, compiler: &str, platform: &str, options: &[&str]) -> PathBuf {
    let plugin = package(folder);
    let (source, generated) = (plugin.join("Source/SVDQRuntime"), folder.join("generated"));
    fs::create_dir(&generated).unwrap();
    for header in fs::read_dir(source.join("Public")).unwrap().map(|entry| entry.unwrap().path()) {
        let name = header.file_stem().unwrap().to_str().unwrap();
        let text = header_tool::generate(name, &fs::read_to_string(&header).unwrap());
        fs::write(generated.join(format!("{name}.generated.h")), text).unwrap();
    }
    let library = plugin.join("Source/ThirdParty/SVDQLibrary");
    let stubs = repository("tests/bindings/unreal");
    let mut units = vec![stubs.join("test.cpp"), stubs.join("Engine/Engine.cpp")];
    units.extend(fs::read_dir(source.join("Private")).unwrap().map(|entry| entry.unwrap().path()));
    units.retain(|unit| unit.extension().unwrap() == "cpp");
    let objects = units.iter().map(|unit| {
        let object = folder.join(unit.file_stem().unwrap()).with_extension("o");
        let mut command = Command::new(compiler);
        command.args(["-std=c++20", "-fno-exceptions", "-fno-rtti", "-fvisibility-ms-compat", "-O1", "-g"]);
        command.args(["-Wall", "-Wextra", "-Wshadow", "-Wundef", "-Werror", "-Wno-unused-parameter"]);
        command
            .args(["-Wno-deprecated-declarations", "-pthread", "-DSVDQRUNTIME_API=", platform])
            .args(options);
        command.arg("-I").arg(source.join("Public")).arg("-I").arg(&generated);
        command.arg("-I").arg(stubs.join("Engine")).arg("-isystem").arg(library.join("include"));
        run(command.arg("-c").arg(unit).arg("-o").arg(&object));
        object
    });
    let objects = objects.collect::<Vec<_>>();
    let program = folder.join("test");
    let mut linker = Command::new(compiler);
    let linux = library.join("lib/Linux");
    linker.args(options).args(objects).arg("-o").arg(&program).arg("-pthread").arg("-L").arg(&linux);
    run(linker.arg("-lsvdq").arg(format!("-Wl,-rpath,{}", linux.display())));
    program
}

/// The test, built by a compiler.
fn node_runs(test: &str, compiler: &str, options: &[&str]) {
    let folder = scratch(test);
    let program = build(&folder, compiler, "-DPLATFORM_WINDOWS=0", options);
    let model = folder.join("mod\u{e8}le \u{6a21}\u{578b}");
    symlink(repository("assets/demo"), &model).unwrap();
    run(Command::new(program).arg(model));
}

#[test]
#[ignore = "needs clang++"]
fn the_node_runs() {
    node_runs("unreal", "clang++", &[]);
}

#[test]
#[ignore = "needs g++"]
fn the_node_runs_under_sanitizers() {
    node_runs("unreal_sanitizers", "g++", &["-fsanitize=address,undefined"]);
}

#[test]
#[ignore = "needs clang++"]
fn windows_may_lack_the_dll_and_names_its_gpu() {
    let program = build(&scratch("unreal_dll"), "clang++", "-DPLATFORM_WINDOWS=1", &[]);
    run(Command::new(program).arg(repository("assets/demo")));
}
