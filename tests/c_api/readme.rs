//! What README.md shows works.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use crate::programs::shared;
use crate::support::{library, repository, run, scratch};

/// The first block of README.md in a language.
pub(crate) fn snippet(language: &str) -> String {
    let readme = fs::read_to_string(repository("README.md")).unwrap();
    let block = readme.split(&format!("\n```{language}\n")).nth(1).expect("a block in this language");
    block.split("\n```").next().unwrap().to_owned()
}

#[test]
fn the_c_snippet_makes_a_picture() {
    let folder = scratch("readme");
    let source = folder.join("readme.c");
    let snippet = snippet("c");
    let program = format!(
        "#include \"svdq.h\"\nstatic unsigned char pixels[128 * 128 * 4];\nint main(void) {{\n{snippet}\n\
         svdq_model_release(model);\nsvdq_context_release(context);\n\
         return result == SVDQ_OK && pixels[3] == 255 ? 0 : 1;\n}}\n"
    );
    fs::write(&source, program).unwrap();
    let program = shared(source.to_str().unwrap(), &folder);
    run(Command::new(program).current_dir(repository(".")));
}

/// The commands for those who do not install it, all but the first, which builds the library.
#[test]
fn what_it_says_without_installing_works() {
    let folder = scratch("readme_commands");
    for name in ["examples-c", "include", "assets"] {
        symlink(repository(name), folder.join(name)).unwrap();
    }
    fs::create_dir_all(folder.join("target/dist")).unwrap();
    symlink(library("libsvdq.so"), folder.join("target/dist/libsvdq.so")).unwrap();
    let readme = fs::read_to_string(repository("README.md")).unwrap();
    let commands = readme.split("\ncargo build --profile dist --no-default-features --lib\n").nth(1).unwrap();
    let commands = commands.split("\n```").next().unwrap();
    run(Command::new("sh").current_dir(&folder).args(["-e", "-c", commands]));
    assert!(fs::read(folder.join("potion.ppm")).unwrap().starts_with(b"P6\n128 128\n255\n"));
}
