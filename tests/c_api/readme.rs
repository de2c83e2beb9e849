//! What README.md shows works.

use std::fs;
use std::process::Command;

use crate::programs::shared;
use crate::support::{repository, run, scratch};

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
