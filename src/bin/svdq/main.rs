//! The `svdq` command: makes images, explains checkpoints, quantises models, measures speed.

mod bench;
mod generate;
mod inspect;
mod options;
mod output;
mod quantize;

use std::process::ExitCode;
use std::time::Instant;

use lexopt::prelude::*;

const HELP: &str = "\
svdq makes images with 4-bit FLUX.1 models.

    svdq generate PROMPT [-o FILE.png] [options]   make an image
    svdq inspect PATH                              say what a checkpoint, LoRA or pipeline folder is
    svdq quantize MODEL OUT.safetensors [options]  make a 4-bit transformer from a 16-bit one
    svdq bench [options]                           measure an image and its parts

Each command explains its options with --help; svdq --version prints the version.
";

/// Why the command stops without doing its work.
enum Failure {
    /// The arguments make no sense: exit status 2.
    Usage(lexopt::Error),
    /// The work failed: exit status 1.
    Work(svdq::Error),
}

impl From<lexopt::Error> for Failure {
    fn from(error: lexopt::Error) -> Self {
        Failure::Usage(error)
    }
}

impl From<svdq::Error> for Failure {
    fn from(error: svdq::Error) -> Self {
        Failure::Work(error)
    }
}

fn main() -> ExitCode {
    let start = Instant::now();
    match run(start) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Usage(error)) => {
            eprintln!("svdq: {error}\nTry 'svdq --help'.");
            ExitCode::from(2)
        }
        Err(Failure::Work(error)) => {
            eprintln!("svdq: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(start: Instant) -> Result<(), Failure> {
    let mut args = lexopt::Parser::from_env();
    match args.next()? {
        Some(Value(command)) => match command.to_str() {
            Some("generate") => generate::run(&mut args),
            Some("inspect") => inspect::run(&mut args),
            Some("quantize") => quantize::run(&mut args),
            Some("bench") => bench::run(&mut args, start),
            _ => Err(lexopt::Error::from(format!("there is no command {command:?}")).into()),
        },
        Some(Short('V') | Long("version")) => output::print(&format!("svdq {}\n", env!("CARGO_PKG_VERSION"))),
        Some(Short('h') | Long("help")) => output::print(HELP),
        Some(other) => Err(other.unexpected().into()),
        None => Err(lexopt::Error::from("no command was given").into()),
    }
}
