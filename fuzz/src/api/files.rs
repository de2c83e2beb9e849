//! The demo model and its LoRA, as paths, in memory and behind callbacks.

use std::ffi::{CString, c_void};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::{fs, ptr, slice};

use svdq::capi::*;

use super::input::Input;
use super::sized;

/// A file of the repository.
fn repository(name: &str) -> PathBuf {
    // This module is a part of the fuzz targets' crate, and of a test of the library's.
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().map(|folder| folder.join(name)).find(|path| path.exists()).expect(name)
}

/// A file, or a folder, that never goes away: jobs may read it when the input is done.
struct File {
    path: CString,
    /// In the model's folder.
    name: CString,
    bytes: Vec<u8>,
}

impl File {
    fn open(name: &str) -> Self {
        let path = repository(&format!("assets/demo/{name}"));
        let bytes = if path.is_file() { fs::read(&path).expect(name) } else { Vec::new() };
        let c = |text: &str| CString::new(text).expect("no NUL");
        File { path: c(path.to_str().expect("UTF-8")), name: c(name), bytes }
    }
}

static FOLDER: LazyLock<File> = LazyLock::new(|| File::open(""));
/// What [`read_at`] reads: the LoRA, and then the files of the folder.
static FILES: LazyLock<Vec<File>> = LazyLock::new(|| {
    let names = [
        "lora/pocket-green.safetensors",
        "model_index.json",
        "svdq.json",
        "svdq-int4_r32-demo.safetensors",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "text_encoder_2/config.json",
        "text_encoder_2/model.safetensors",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        "tokenizer_2/tokenizer.json",
        "tokenizer_2/tokenizer_config.json",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ];
    names.map(File::open).into()
});

/// Reads the file whose index the low byte of `user` is. What is above it says from where on all reads fail.
unsafe extern "C" fn read_at(user: *mut c_void, offset: u64, dst: *mut c_void, size: usize) -> svdq_result {
    let (index, fails) = (user.addr() % 256, user.addr() / 256);
    // A callback may call the library.
    unsafe { svdq_image_bytes(ptr::null(), ptr::null_mut()) };
    if fails > 0 && offset >= fails as u64 - 1 {
        return 5;
    }
    let part = &FILES[index].bytes[offset as usize..][..size];
    unsafe { slice::from_raw_parts_mut(dst.cast(), size) }.copy_from_slice(part);
    SVDQ_OK
}

/// A source for file `index`.
fn source(index: usize, kind: u32) -> svdq_source {
    let file = &FILES[index];
    let path = if kind == SVDQ_SOURCE_PATH { &file.path } else { &file.name };
    svdq_source {
        kind,
        path: path.as_ptr(),
        data: file.bytes.as_ptr().cast(),
        size: file.bytes.len() as u64,
        read_at: Some(read_at),
        user: ptr::without_provenance_mut(index),
        ..sized()
    }
}

const KINDS: [u32; 3] = [SVDQ_SOURCE_PATH, SVDQ_SOURCE_MEMORY, SVDQ_SOURCE_CALLBACKS];

/// The LoRA, or something that is none.
pub(super) fn lora(input: &mut Input<'_>) -> svdq_source {
    let mut sources = [source(0, input.number(&KINDS))];
    spoil(&mut sources, input);
    sources[0]
}

/// The model, or something that is none.
pub(super) fn model(input: &mut Input<'_>) -> Vec<svdq_source> {
    let files = 1..FILES.len();
    let mut sources = match input.digit() {
        1 => files.map(|index| source(index, SVDQ_SOURCE_MEMORY)).collect(),
        2 => files.map(|index| source(index, SVDQ_SOURCE_CALLBACKS)).collect(),
        3 => files.map(|index| source(index, KINDS[1 + index % 2])).collect(),
        4 => vec![svdq_source { kind: SVDQ_SOURCE_PATH, path: c"/nowhere".as_ptr(), ..sized() }],
        _ => vec![svdq_source { kind: SVDQ_SOURCE_PATH, path: FOLDER.path.as_ptr(), ..sized() }],
    };
    spoil(&mut sources, input);
    sources
}

/// One fault in one source, or none.
fn spoil(sources: &mut [svdq_source], input: &mut Input<'_>) {
    let fault = input.digit();
    let index = usize::from(input.digit()) % sources.len();
    let another = sources[usize::from(input.digit()) % sources.len()];
    let source = &mut sources[index];
    match fault {
        1 => *source = another,
        2 => source.path = ptr::null(),
        3 => source.data = ptr::null(),
        4 => source.read_at = None,
        5 => source.size = input.wide(&[0, 8, 100]).min(source.size),
        6 => source.kind = input.number(&[0, 1, 2, 3]),
        7 => {
            let fails = usize::from(input.digit()) << (input.digit() % 24);
            source.user = source.user.wrapping_byte_add(fails << 8);
        }
        _ => {}
    }
}

/// The model that calls begin with: to load one takes longer than most of them.
pub(super) struct Model(pub *mut svdq_model);
// SAFETY: any thread may use a model.
unsafe impl Send for Model {}
// SAFETY: as above.
unsafe impl Sync for Model {}

pub(super) static MODEL: LazyLock<Model> = LazyLock::new(|| {
    let (mut context, mut model) = (ptr::null_mut(), ptr::null_mut());
    let params = svdq_context_params { threads: 1, device_select: SVDQ_DEVICE_CPU, ..sized() };
    let sources = self::model(&mut Input(&[]));
    let flags = SVDQ_MODEL_IMAGE_INPUT;
    let load = svdq_model_params { source_count: 1, sources: sources.as_ptr(), flags, ..sized() };
    unsafe {
        assert_eq!(svdq_context_create(&params, &mut context), SVDQ_OK);
        assert_eq!(svdq_model_load(context, &load, &mut model), SVDQ_OK);
        svdq_context_release(context);
    }
    Model(model)
});
