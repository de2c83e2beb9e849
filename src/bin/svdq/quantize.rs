//! `svdq quantize`

use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::path::PathBuf;

use lexopt::prelude::*;
use svdq::quantize::QuantizeOptions;

use crate::Failure;
use crate::output::print;

const HELP: &str = "\
svdq quantize MODEL OUT.safetensors [options]

Makes a 4-bit SVDQuant transformer, in Nunchaku's file format, from a 16-bit FLUX.1 transformer: a
diffusers transformer folder, or a pipeline folder that has one. Needs no calibration data. Prints the
signal-to-noise ratio of every layer's weights.

    --rank N             rank of the low-rank branches, a multiple of 16; default: 32
    --threads N          CPU threads; default: one a core. The file does not depend on it
";

pub(crate) fn run(args: &mut lexopt::Parser) -> Result<(), Failure> {
    let mut options = QuantizeOptions::default();
    let mut paths: Vec<PathBuf> = Vec::new();
    while let Some(arg) = args.next()? {
        match arg {
            Long("rank") => options.rank = args.value()?.parse()?,
            Long("threads") => options.threads = args.value()?.parse()?,
            Short('h') | Long("help") => return print(HELP),
            Value(value) if paths.len() < 2 => paths.push(value.into()),
            other => return Err(other.unexpected().into()),
        }
    }
    let [input, output] = &paths[..] else {
        return Err(lexopt::Error::from("quantize needs a model and a file to write").into());
    };
    let terminal = std::io::stderr().is_terminal();
    let report = svdq::quantize::quantize(input, output, &options, &mut |layer| {
        if terminal {
            eprint!("\r\x1b[K{}/{} {}", layer.done, layer.total, layer.name);
        }
        ControlFlow::Continue(())
    })?;
    if terminal {
        eprint!("\r\x1b[K");
    }
    print(&report.to_string())
}
