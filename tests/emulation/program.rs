//! Kernels as programs for the CPU.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::{env, fs, thread};

/// An argument of a kernel; for one that takes a struct, a field of it.
pub(crate) enum Arg {
    Buffer(Vec<u8>),
    Null,
    Int(usize),
}

/// How a kernel is launched.
pub(crate) struct Launch {
    pub(crate) kernel: &'static str,
    pub(crate) grid: [usize; 2],
    pub(crate) threads: usize,
    pub(crate) shared: usize,
}

/// The kernels, compiled for the CPU as they are for one architecture.
pub(crate) struct Program {
    path: PathBuf,
    pub(crate) arch: u32,
}

impl Program {
    /// The kernels of sm_75, those of sm_80, and those again with the sanitizers of the compiler.
    pub(crate) fn all() -> &'static [Program] {
        static ALL: LazyLock<Vec<Program>> = LazyLock::new(|| {
            let sanitizers: &[_] = &["-fsanitize=address,undefined", "-fno-sanitize-recover=all"];
            let builds = [("sm_75", 750, &[][..]), ("sm_80", 800, &[]), ("sanitized", 800, sanitizers)];
            thread::scope(|scope| {
                let programs = builds
                    .map(|(name, arch, flags)| scope.spawn(move || Program::build(name, arch, flags, &[])));
                programs.into_iter().map(|program| program.join().unwrap()).collect()
            })
        });
        &ALL
    }

    /// Compiles the kernels with these flags, and with texts of theirs replaced by others.
    pub(crate) fn build(name: &str, arch: u32, flags: &[&str], replace: &[(&str, &str)]) -> Program {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("emulation").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let cxx = || {
            let mut cxx = Command::new(env::var("CXX").unwrap_or("c++".into()));
            cxx.arg("-std=c++17");
            cxx
        };
        let source = run(cxx()
            .args(["-E", "-Wno-unknown-pragmas"])
            .arg(format!("-D__CUDA_ARCH__={arch}"))
            .args([flag("-I", &root.join("tests/emulation")), flag("-I", &root.join("kernels"))])
            .args(flags)
            .arg(root.join("tests/emulation/kernels.cpp")));
        // The program has the block's dynamic shared memory; one block runs at a time.
        let source = source.replace("extern __shared__", "extern").replace("__shared__", "static");
        let mut source = call_ptx(&source);
        for (from, to) in replace {
            assert!(source.contains(from), "no {from} in the kernels");
            source = source.replace(from, to);
        }
        let preprocessed = path.with_extension("ii");
        fs::write(&preprocessed, source).unwrap();
        // As on a GPU, memory has no types.
        run(cxx()
            .args(["-O1", "-g1", "-ffp-contract=off", "-fno-strict-aliasing", "-Wno-unknown-pragmas"])
            .args(flags)
            .arg("-o")
            .args([&path, &preprocessed]));
        Program { path, arch }
    }

    /// Runs a kernel, and gives the contents of its buffers afterwards.
    pub(crate) fn run(&self, launch: &Launch, args: &[Arg]) -> Vec<Vec<u8>> {
        self.try_run(launch, args).unwrap_or_else(|error| panic!("{}: {error}", self.path.display()))
    }

    /// The same, or what the program says that is wrong.
    pub(crate) fn try_run(&self, launch: &Launch, args: &[Arg]) -> Result<Vec<Vec<u8>>, String> {
        let mut input = Vec::new();
        let mut words = |words: &[usize], bytes: &[u8]| {
            words.iter().for_each(|&word| input.extend((word as u64).to_le_bytes()));
            input.extend(bytes);
            input.resize(input.len().next_multiple_of(8), 0);
        };
        words(&[launch.grid[0], launch.grid[1], launch.threads, launch.shared, args.len()], &[]);
        for arg in args {
            match arg {
                Arg::Buffer(bytes) => words(&[0, bytes.len()], bytes),
                Arg::Null => words(&[1], &[]),
                Arg::Int(value) => words(&[2, *value], &[]),
            }
        }
        let mut command = Command::new(&self.path);
        command.arg(launch.kernel).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(&input).unwrap();
        let output = child.wait_with_output().unwrap();
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            return Err(format!("{}: {}: {text}", launch.kernel, output.status));
        }
        let mut left = output.stdout.as_slice();
        let buffers = args.iter().filter_map(|arg| match arg {
            Arg::Buffer(bytes) => Some(left.split_off(..bytes.len()).unwrap().to_vec()),
            _ => None,
        });
        Ok(buffers.collect())
    }
}

fn flag(name: &str, path: &Path) -> String {
    format!("{name}{}", path.display())
}

/// Runs a command and returns its output; it has to succeed.
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = |bytes| String::from_utf8(bytes).unwrap();
    assert!(output.status.success(), "{command:?}: {}\n{}", output.status, text(output.stderr));
    text(output.stdout)
}

/// Turns `asm("text" : "=r"(a) : "r"(b))` into `emulation::ptx("text", {out(a), in(b)})`.
fn call_ptx(source: &str) -> String {
    let mut out = String::new();
    let mut rest = source;
    while let Some(at) = rest.find("asm") {
        let (before, from) = rest.split_at(at);
        let arguments = from[3..].trim_start().trim_start_matches("volatile").trim_start();
        let is_word = !before.ends_with(|c: char| c.is_alphanumeric() || c == '_');
        if !is_word || !arguments.starts_with('(') {
            out += &rest[..at + 3];
            rest = &rest[at + 3..];
            continue;
        }
        let statement = inside(arguments);
        let parts = split(statement, ':');
        let operands = parts.iter().skip(1).take(2).flat_map(|part| split(part, ','));
        let operands: Vec<_> = operands.filter(|operand| !operand.trim().is_empty()).map(operand).collect();
        out += &format!("{before}emulation::ptx({}, {{{}}})", parts[0], operands.join(", "));
        rest = &arguments[statement.len() + 2..];
    }
    out + rest
}

/// `"=r"(a)` as a function of it.
fn operand(operand: &str) -> String {
    let (constraint, value) = operand.trim()[1..].split_once('"').unwrap();
    let function = match constraint.as_bytes()[0] {
        b'=' => "out",
        b'+' => "inout",
        _ => "in",
    };
    format!("emulation::{function}{value}")
}

/// What stands between the parenthesis at the beginning and the one that closes it.
fn inside(text: &str) -> &str {
    let end = outside_strings(text).find(|&(_, c, depth)| c == ')' && depth == 0).unwrap().0;
    &text[1..end]
}

/// The parts between separators that are neither in parentheses nor in strings.
fn split(text: &str, separator: char) -> Vec<&str> {
    let ends = outside_strings(text).filter(|&(_, c, depth)| c == separator && depth == 0);
    let mut begin = 0;
    let mut parts = Vec::new();
    for (end, _, _) in ends {
        parts.push(&text[begin..end]);
        begin = end + 1;
    }
    parts.push(&text[begin..]);
    parts
}

/// The characters that are not in strings, where they are, and in how many parentheses.
fn outside_strings(text: &str) -> impl Iterator<Item = (usize, char, usize)> {
    let (mut quoted, mut escaped, mut depth) = (false, false, 0);
    text.char_indices().filter_map(move |(at, c)| {
        let ends = quoted && c == '"' && !escaped;
        escaped = quoted && c == '\\' && !escaped;
        if ends || (!quoted && c == '"') {
            quoted = !quoted;
        }
        match c {
            _ if quoted => return None,
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        Some((at, c, depth))
    })
}
