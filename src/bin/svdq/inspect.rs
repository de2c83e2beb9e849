//! `svdq inspect`

use std::path::PathBuf;

use lexopt::prelude::*;
use svdq::lora::Description;
use svdq::weights::Checkpoint;

use crate::Failure;
use crate::output::print;

const HELP: &str = "\
svdq inspect PATH

Says what a checkpoint file, LoRA or pipeline folder is: family, precision, rank, tensors and bytes.
Reads headers only.
";

pub(crate) fn run(args: &mut lexopt::Parser) -> Result<(), Failure> {
    let mut path: Option<PathBuf> = None;
    while let Some(arg) = args.next()? {
        match arg {
            Short('h') | Long("help") => return print(HELP),
            Value(value) if path.is_none() => path = Some(value.into()),
            other => return Err(other.unexpected().into()),
        }
    }
    let path = path.ok_or_else(|| lexopt::Error::from("no path was given"))?;
    if path.is_file()
        && let Some(lora) = Description::of(&Checkpoint::open(&path)?)
    {
        return print(&format!("{}\n{lora}", path.display()));
    }
    print(&svdq::weights::inspect(&path)?.to_string())
}
