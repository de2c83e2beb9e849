//! The Unreal plug-in: its build rules run, and every file that they name is there.
#![cfg(target_os = "linux")]

use std::fs;
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
    run(script.arg(folder).arg("--linux").arg(library()).arg("--win64").args(dlls));
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
    let include = Path::new(lines(&said[1], "include")[0]);
    assert!(include.join("svdq.h").exists(), "no svdq.h");
}
