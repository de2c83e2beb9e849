//! What packaging/install.sh installs is found by CMake and pkg-config, also after it was moved.
#![cfg(target_os = "linux")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::readme::snippet;
use crate::support::{cc, header, library, repository, run, scratch};

/// The example in C that the tests build against the installation.
const EXAMPLE: &str = "examples-c/generate.c";

/// packaging/install.sh, with the libraries that cargo built together with this test.
fn install() -> Command {
    let mut install = Command::new(repository("packaging/install.sh"));
    install.arg("--from").arg(library("libsvdq.so").parent().unwrap());
    install.env_remove("DESTDIR");
    install
}

/// An installation in `folder` which was made for another place and moved.
fn moved(folder: &Path) -> PathBuf {
    let (staged, prefix) = (folder.join("staged"), folder.join("a new place"));
    run(install().args(["--prefix", "/opt/svdq", "--destdir"]).arg(&staged));
    fs::rename(staged.join("opt/svdq"), &prefix).unwrap();
    prefix
}

/// Files and links below a folder, by their paths from it.
fn files(folder: &Path) -> BTreeSet<String> {
    let listing = run(Command::new("find")
        .arg(folder)
        .args(["(", "-type", "f", "-o", "-type", "l", ")", "-printf", "%P\\n"]));
    listing.lines().map(str::to_owned).collect()
}

/// The program makes a picture with the demo model, and needs the shared library or does not.
fn works(program: &Path, shared: bool) {
    let picture = program.with_extension("ppm");
    run(Command::new(program).arg(repository("assets/demo")).arg("a key").arg(&picture));
    assert!(fs::read(picture).unwrap().starts_with(b"P6\n128 128\n255\n"));
    let needed = run(Command::new("readelf").args(["-d", "-W"]).arg(program));
    assert_eq!(needed.contains("[libsvdq.so.0]"), shared, "{needed}");
}

#[test]
fn installs_what_c_programs_need_and_no_paths() {
    let prefix = moved(&scratch("install"));
    let expected = [
        "include/svdq.h",
        "include/svdq.hpp",
        "lib/cmake/svdq/svdqConfig.cmake",
        "lib/cmake/svdq/svdqConfigVersion.cmake",
        "lib/libsvdq.a",
        "lib/libsvdq.so",
        "lib/libsvdq.so.0",
        "lib/libsvdq.so.0.1.0",
        "lib/pkgconfig/svdq.pc",
        "share/doc/svdq/LICENSE-APACHE",
        "share/doc/svdq/LICENSE-MIT",
        "share/doc/svdq/THIRD-PARTY.md",
    ];
    assert_eq!(files(&prefix), expected.map(str::to_owned).into());
    assert_eq!(env!("CARGO_PKG_VERSION"), "0.1.0", "name the new version above");
    assert_eq!(fs::read_link(prefix.join("lib/libsvdq.so")).unwrap(), Path::new("libsvdq.so.0"));
    for name in expected.iter().filter(|name| name.ends_with(".cmake") || name.ends_with(".pc")) {
        let text = fs::read_to_string(prefix.join(name)).unwrap();
        assert!(!text.contains(" /") && !text.contains("\"/") && !text.contains('@'), "{name}: {text}");
    }
    let notices = fs::read_to_string(prefix.join("share/doc/svdq/THIRD-PARTY.md")).unwrap();
    for package in
        ["Tokenizers of FLUX.1", "tokenizers ", "cudarc ", "serde_json ", "rayon ", "Rust's standard"]
    {
        assert!(notices.contains(&format!("\n## {package}")), "{package} is not in THIRD-PARTY.md");
    }
    assert!(notices.matches("Permission is hereby granted").count() > 20, "there are no licences");
    assert!(!notices.contains("&#"), "HTML is left");
}

#[test]
#[ignore = "needs pkg-config"]
fn pkg_config_finds_it_where_it_is() {
    let folder = scratch("pkg_config");
    let prefix = moved(&folder);
    let flags = |options: &[&str]| -> Vec<String> {
        let mut pkg_config = Command::new("pkg-config");
        pkg_config.env("PKG_CONFIG_PATH", prefix.join("lib/pkgconfig")).args(options).arg("svdq");
        // Spaces in paths are escaped for the shell.
        let line = run(&mut pkg_config).trim().replace("\\ ", "\u{0}");
        line.split(' ').map(|flag| flag.replace('\u{0}', " ")).collect()
    };
    assert_eq!(flags(&["--modversion"]), [env!("CARGO_PKG_VERSION")]);
    let build = |program: &Path, flags: Vec<String>| {
        run(cc().args(["-std=c99", "-o"]).arg(program).arg(repository(EXAMPLE)).args(flags));
    };

    let program = folder.join("shared");
    let mut shared = flags(&["--cflags", "--libs"]);
    shared.push(format!("-Wl,-rpath,{}", prefix.join("lib").display()));
    build(&program, shared);
    works(&program, true);

    // Where there is libsvdq.a alone, -lsvdq is that.
    for name in ["libsvdq.so", "libsvdq.so.0", "libsvdq.so.0.1.0"] {
        fs::remove_file(prefix.join("lib").join(name)).unwrap();
    }
    let program = folder.join("static");
    build(&program, flags(&["--static", "--cflags", "--libs"]));
    works(&program, false);
    assert!(header().contains(&flags(&["--static", "--libs-only-l"])[1..].join(" ")));
}

#[test]
#[ignore = "needs CMake"]
fn cmake_finds_it_where_it_is() {
    let folder = scratch("cmake");
    let prefix = moved(&folder);
    let build = folder.join("build");
    let mut cmake = Command::new("cmake");
    cmake.arg("-S").arg(repository("tests/c_api/consumer")).arg("-B").arg(&build);
    cmake.arg(format!("-DEXAMPLE={}", repository(EXAMPLE).display()));
    run(cmake.arg(format!("-DCMAKE_PREFIX_PATH={}", prefix.display())));
    run(Command::new("cmake").arg("--build").arg(&build));
    works(&build.join("generate_svdq"), true);
    works(&build.join("generate_static"), false);
}

#[test]
#[ignore = "needs CMake"]
fn what_the_readme_says_to_cmake_works() {
    let folder = scratch("cmake_readme");
    let prefix = moved(&folder);
    let lists = format!(
        "cmake_minimum_required(VERSION 3.16)\nproject(game C)\nadd_executable(game {})\n{}\n",
        repository(EXAMPLE).display(),
        snippet("cmake")
    );
    fs::write(folder.join("CMakeLists.txt"), lists).unwrap();
    let mut cmake = Command::new("cmake");
    cmake.arg("-S").arg(&folder).arg("-B").arg(folder.join("build"));
    run(cmake.arg(format!("-DCMAKE_PREFIX_PATH={}", prefix.display())));
    run(Command::new("cmake").arg("--build").arg(folder.join("build")));
    works(&folder.join("build/game"), true);
}

#[test]
#[ignore = "needs CMake"]
fn cmake_refuses_other_versions() {
    let folder = scratch("cmake_versions");
    let prefix = moved(&folder);
    let finds = |version: &str| {
        let lists = format!(
            "cmake_minimum_required(VERSION 3.16)\nproject(p C)\nfind_package(svdq {version} REQUIRED)\n"
        );
        fs::write(folder.join("CMakeLists.txt"), lists).unwrap();
        let mut cmake = Command::new("cmake");
        cmake.arg("-S").arg(&folder).arg("-B").arg(folder.join("build"));
        let output = cmake.arg(format!("-DCMAKE_PREFIX_PATH={}", prefix.display())).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(error.contains("0.1.0"), !output.status.success(), "{error}");
        output.status.success()
    };
    assert!(finds("") && finds("0.1") && finds("0.1.0 EXACT"));
    assert!(!finds("0.2") && !finds("1.0") && !finds("0.1.1 EXACT"));
}

#[test]
#[ignore = "packs the libraries twice, which takes a while"]
fn the_archive_has_everything_and_is_reproducible() {
    let folder = scratch("archive");
    let archives = ["one", "two"].map(|name| {
        let path = run(install().arg("--archive").arg(folder.join(name)));
        fs::read(path.trim()).map(|bytes| (path.trim().to_owned(), bytes)).unwrap()
    });
    assert!(archives[0].1 == archives[1].1, "two runs gave different archives");
    let name =
        format!("svdq-{}-{}-{}", env!("CARGO_PKG_VERSION"), std::env::consts::OS, std::env::consts::ARCH);
    assert!(archives[0].0.ends_with(&format!("/{name}.tar.gz")), "{}", archives[0].0);
    run(Command::new("tar").arg("-C").arg(&folder).arg("-xzf").arg(&archives[0].0));
    let files = files(&folder.join(&name));
    for file in [
        "README.md",
        "include/svdq.h",
        "include/svdq.hpp",
        "lib/libsvdq.so.0.1.0",
        "lib/libsvdq.a",
        "lib/cmake/svdq/svdqConfig.cmake",
        "share/doc/svdq/LICENSE-MIT",
        "unity/com.libsvdq.svdq/package.json",
        "unity/com.libsvdq.svdq/Third Party Notices.md",
        "unity/com.libsvdq.svdq/Runtime/Plugins/x86_64/libsvdq.so",
        "unreal/SVDQ/SVDQ.uplugin",
        "unreal/SVDQ/README.md",
        "unreal/SVDQ/LICENSE-MIT",
        "unreal/SVDQ/Source/ThirdParty/SVDQLibrary/include/svdq.h",
        "unreal/SVDQ/Source/ThirdParty/SVDQLibrary/THIRD-PARTY.md",
        EXAMPLE,
    ] {
        assert!(files.contains(file), "{file} is not in the archive: {files:#?}");
    }
}
