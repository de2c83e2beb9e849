//! Models and LoRAs from paths, from memory and through callbacks.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::ffi::{CString, c_char, c_void};
use std::path::Path;
use std::{fs, ptr, slice};

use svdq::capi::*;

use crate::support::{
    c, create, demo, last_error, load as load_path, load_into, lora, lora_file, model, model_params, ok,
    repository, sized, source,
};

/// A file that is given, and how it is read.
struct File {
    name: Option<CString>,
    bytes: Vec<u8>,
    /// Offset and size of each read.
    reads: RefCell<Vec<(u64, usize)>>,
}

impl File {
    fn new(name: Option<&str>, bytes: Vec<u8>) -> Self {
        File { name: name.map(c), bytes, reads: RefCell::default() }
    }

    fn path(&self) -> *const c_char {
        self.name.as_ref().map_or(ptr::null(), |name| name.as_ptr())
    }

    fn in_memory(&self) -> svdq_source {
        let (data, size) = (self.bytes.as_ptr().cast(), self.bytes.len() as u64);
        svdq_source { kind: SVDQ_SOURCE_MEMORY, path: self.path(), data, size, ..sized() }
    }

    fn through_calls(&self) -> svdq_source {
        let (user, size) = (ptr::from_ref(self).cast_mut().cast(), self.bytes.len() as u64);
        let (kind, path) = (SVDQ_SOURCE_CALLBACKS, self.path());
        svdq_source { kind, path, size, read_at: Some(read_at), user, ..sized() }
    }
}

thread_local! {
    /// Reads of this thread so far, and which of them fails.
    static READS: Cell<usize> = const { Cell::new(0) };
    static FAILS: Cell<usize> = const { Cell::new(usize::MAX) };
    /// What each read does besides.
    static BESIDES: Cell<fn()> = const { Cell::new(|| ()) };
}

const OUT_OF_ORDER: svdq_result = -1234;

unsafe extern "C" fn read_at(user: *mut c_void, offset: u64, dst: *mut c_void, size: usize) -> svdq_result {
    let file = unsafe { &*user.cast::<File>() };
    file.reads.borrow_mut().push((offset, size));
    BESIDES.get()();
    if READS.replace(READS.get() + 1) == FAILS.get() {
        return OUT_OF_ORDER;
    }
    let part = &file.bytes[offset as usize..][..size];
    unsafe { slice::from_raw_parts_mut(dst.cast(), size) }.copy_from_slice(part);
    SVDQ_OK
}

/// The files of the demo model's folder, less its 16-bit transformer.
fn files() -> Vec<File> {
    let folder = repository("assets/demo");
    let mut files = Vec::new();
    let mut add = |path: &Path| {
        let name = path.strip_prefix(&folder).unwrap().to_str().unwrap();
        files.push(File::new(Some(name), fs::read(path).unwrap()));
    };
    for entry in fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()) {
        let name = entry.file_name().unwrap().to_str().unwrap();
        if entry.is_dir() && !["transformer", "lora"].contains(&name) {
            fs::read_dir(&entry).unwrap().for_each(|file| add(&file.unwrap().path()));
        } else if entry.is_file() && (name.ends_with(".json") || name.ends_with(".safetensors")) {
            add(&entry);
        }
    }
    assert!(files.len() > 12);
    files
}

/// A transformer that is no file of a folder.
fn transformer() -> File {
    File::new(
        None,
        fs::read(repository("assets/demo/transformer/diffusion_pytorch_model.safetensors")).unwrap(),
    )
}

fn load(sources: &[svdq_source]) -> Result<*mut svdq_model, (svdq_result, String)> {
    let (context, mut model) = (create(), ptr::dangling_mut());
    let result = unsafe { svdq_model_load(context, &model_params(sources), &mut model) };
    unsafe { svdq_context_release(context) };
    if result == SVDQ_OK {
        return Ok(model);
    }
    assert!(model.is_null());
    Err((result, last_error()))
}

fn inspect(sources: &[svdq_source]) -> Result<svdq_model_info, (svdq_result, String)> {
    let mut info = sized();
    match unsafe { svdq_model_inspect(&model_params(sources), &mut info) } {
        SVDQ_OK => Ok(info),
        result => Err((result, last_error())),
    }
}

/// Loading and inspecting give the same error.
#[track_caller]
fn refused(sources: &[svdq_source], expected: svdq_result, parts: &[&str]) {
    for (result, text) in [load(sources).err().unwrap(), inspect(sources).err().unwrap()] {
        assert_eq!(result, expected, "{text}");
        parts.iter().for_each(|part| assert!(text.contains(part), "{text:?} without {part:?}"));
    }
}

fn picture(model: *mut svdq_model, loras: &[svdq_lora_ref]) -> Vec<u8> {
    const SIDE: u32 = 64;
    let mut pixels = vec![0; (SIDE * SIDE * 3) as usize];
    let params = svdq_generate_params {
        width: SIDE,
        height: SIDE,
        steps: 1,
        prompt: c"a torch".as_ptr(),
        loras: loras.as_ptr(),
        lora_count: loras.len() as u32,
        ..sized()
    };
    let (pixels_at, capacity) = (pixels.as_mut_ptr().cast(), pixels.len() as u64);
    let format = SVDQ_FORMAT_RGB8;
    let image = svdq_image { format, width: SIDE, height: SIDE, pixels: pixels_at, capacity, ..sized() };
    ok(unsafe { svdq_generate(model, &params, &image) });
    pixels
}

/// The picture of a model that is released afterwards.
#[track_caller]
fn picture_of(sources: &[svdq_source]) -> Vec<u8> {
    let model = load(sources).unwrap_or_else(|error| panic!("{error:?}"));
    let picture = picture(model, &[]);
    unsafe { svdq_model_release(model) };
    picture
}

#[test]
fn pictures_from_paths_memory_and_callbacks_are_the_same() {
    let files = files();
    let want = picture(model(), &[]);
    let memory: Vec<_> = files.iter().map(File::in_memory).collect();
    assert!(picture_of(&memory) == want, "memory");
    let calls: Vec<_> = files.iter().rev().map(File::through_calls).collect();
    assert!(picture_of(&calls) == want, "callbacks, the other way round");
    let both = |(i, file): (usize, &File)| if i % 2 == 0 { file.in_memory() } else { file.through_calls() };
    let mixed: Vec<_> = files.iter().enumerate().map(both).collect();
    assert!(picture_of(&mixed) == want, "both");
}

/// A network on its own goes before that of a folder, wherever it stands and whatever both are.
#[test]
fn sources_without_a_name_stand_anywhere() {
    let (files, alone, demo) = (files(), transformer(), demo());
    let alone_at =
        c(repository("assets/demo/transformer/diffusion_pytorch_model.safetensors").to_str().unwrap());
    let want = picture_of(&[source(&alone_at), source(&demo)]);
    assert!(want != picture(model(), &[]));
    let mut folder: Vec<_> = files.iter().map(File::through_calls).collect();
    folder.insert(5, alone.in_memory());
    assert!(picture_of(&folder) == want, "in memory among callbacks");
    assert!(picture_of(&[alone.through_calls(), source(&demo)]) == want, "callbacks before a path");
    assert!(picture_of(&[source(&demo), alone.in_memory()]) == want, "memory after a path");
}

#[test]
fn inspecting_reads_headers_and_configs_alone() {
    let (files, demo) = (files(), demo());
    let model = load_path(&demo);
    let mut loaded: svdq_model_info = sized();
    ok(unsafe { svdq_model_get_info(model, &mut loaded) });
    unsafe { svdq_model_release(model) };
    assert!(loaded.stored_bytes > 1 << 20 && loaded.host_bytes > loaded.stored_bytes / 4);
    assert_eq!((loaded.device_bytes, loaded.flags, loaded.max_loras), (0, 0, 64));

    let facts = |info: svdq_model_info| {
        let sizes = (info.default_width, info.default_height, info.default_steps, info.size_multiple);
        (
            info.family,
            info.precision,
            info.rank,
            sizes,
            info.default_guidance,
            info.stored_bytes,
            info.max_loras,
        )
    };
    let memory: Vec<_> = files.iter().map(File::in_memory).collect();
    let calls: Vec<_> = files.iter().map(File::through_calls).collect();
    for sources in [&[source(&demo)][..], &memory, &calls] {
        let info = inspect(sources).unwrap_or_else(|error| panic!("{error:?}"));
        assert_eq!(facts(info), facts(loaded));
        assert_eq!((info.profile, info.host_bytes, info.device_bytes), (0, 0, 0));
    }
    let stored = |file: &File| {
        let header = u64::from_le_bytes(file.bytes[..8].try_into().unwrap());
        file.bytes.len() as u64 - 8 - header
    };
    let weights = |file: &&File| file.name.as_ref().unwrap().to_str().unwrap().ends_with(".safetensors");
    assert_eq!(loaded.stored_bytes, files.iter().filter(weights).map(stored).sum::<u64>());
    for file in files.iter().filter(weights) {
        let end = file.bytes.len() as u64 - stored(file);
        assert!(!file.reads.borrow().is_empty());
        for &(offset, size) in &*file.reads.borrow() {
            assert!(offset + size as u64 <= end, "{:?}: {size} bytes at {offset} are weights", file.name);
        }
    }
    let params = svdq_model_params { flags: SVDQ_MODEL_IMAGE_INPUT, ..model_params(&memory) };
    let mut info = sized();
    ok(unsafe { svdq_model_inspect(&params, &mut info) });
    assert_eq!(info.flags, SVDQ_MODEL_IMAGE_INPUT);
}

/// Whichever read fails, the load fails with it, and is none the worse for it the next time.
#[test]
fn every_read_can_fail() {
    let context = create();
    let files = files();
    let sources: Vec<_> = files.iter().map(File::through_calls).collect();
    let model = Cell::new(ptr::null_mut());
    let load = |fails: usize| {
        FAILS.set(fails);
        READS.set(0);
        unsafe { svdq_model_load(context, &model_params(&sources), model.as_ptr()) }
    };
    ok(load(usize::MAX));
    let reads = READS.get();
    assert!(reads > 300, "{reads} reads");
    unsafe { svdq_model_release(model.get()) };
    let mut named = BTreeSet::new();
    for fails in 0..reads {
        assert_eq!(load(fails), SVDQ_ERR_IO, "read {fails}: {}", last_error());
        assert_eq!(READS.get(), fails + 1, "reads go on after one has failed");
        let text = last_error();
        assert!(text.contains(" bytes at ") && text.contains("read_at returned -1234"), "{text}");
        named.extend(
            files.iter().filter_map(|f| f.name.as_ref()?.to_str().ok()).filter(|name| text.starts_with(name)),
        );
    }
    assert!(named.len() == files.len(), "errors named {named:?} alone");
    ok(load(usize::MAX));
    assert!(picture(model.get(), &[]) == picture(crate::support::model(), &[]));
    unsafe { (svdq_model_release(model.get()), svdq_context_release(context)) };
}

#[test]
fn callbacks_come_in_the_loading_thread_and_may_call_the_library() {
    thread_local! {
        static INSIDE: Cell<bool> = const { Cell::new(false) };
        static CALLS: Cell<usize> = const { Cell::new(0) };
    }
    BESIDES.set(|| {
        assert!(!INSIDE.replace(true), "a read inside of a read");
        CALLS.set(CALLS.get() + 1);
        if CALLS.get() % 100 == 1 {
            let (demo, style) = (demo(), lora_file());
            assert!(inspect(&[source(&demo)]).is_ok());
            unsafe { svdq_lora_release(lora(model(), &style)) };
        }
        INSIDE.set(false);
    });
    let files = files();
    let sources: Vec<_> = files.iter().map(File::through_calls).collect();
    unsafe { svdq_model_release(load(&sources).unwrap()) };
    let all: usize = files.iter().map(|file| file.reads.borrow().len()).sum();
    assert!(CALLS.get() == all, "{all} reads, {} of them in this thread", CALLS.get());
}

#[test]
fn names_are_those_of_files_in_a_folder() {
    let file = |name: &str| File::new(Some(name), b"{}".to_vec());
    for name in [
        "",
        ".",
        "..",
        "/",
        "/etc/passwd",
        "../model_index.json",
        "vae/../model_index.json",
        "vae//config.json",
        "vae/",
        "/vae",
        "vae\\config.json",
        "C:config.json",
        "C:/config.json",
        "./vae",
        "vae/.",
    ] {
        let file = file(name);
        let expected = format!("{name:?} is not the name of a file in a folder");
        refused(&[file.in_memory()], SVDQ_ERR_INVALID_ARGUMENT, &[&expected]);
        refused(&[file.through_calls()], SVDQ_ERR_INVALID_ARGUMENT, &[&expected]);
        assert!(file.reads.borrow().is_empty());
    }
    let long = "a/".repeat(10_000) + "b";
    refused(&[file(&long).in_memory()], SVDQ_ERR_NOT_FOUND, &["a: the folder holds no .safetensors file"]);
    let (one, two) = (file("vae/config.json"), file("vae"));
    refused(
        &[one.in_memory(), one.through_calls()],
        SVDQ_ERR_INVALID_ARGUMENT,
        &["two sources", "vae/config.json"],
    );
    refused(
        &[one.in_memory(), two.in_memory()],
        SVDQ_ERR_INVALID_ARGUMENT,
        &["\"vae\"", "\"vae/config.json\""],
    );
    refused(&[file("svdq.json").in_memory()], SVDQ_ERR_INVALID_ARGUMENT, &["svdq.json", "model_index.json"]);
    refused(&[one.in_memory()], SVDQ_ERR_NOT_FOUND, &["vae: the folder holds no .safetensors file"]);
    let wrong = File::new(Some("模型 🎨.safetensors"), b"no".to_vec());
    refused(&[wrong.in_memory()], SVDQ_ERR_BAD_FORMAT, &["模型 🎨.safetensors: 2 bytes are too few"]);
}

/// Each file of the folder is missing in turn, and each is damaged; names that nothing asks for are mistakes.
#[test]
fn every_file_of_a_folder_is_named_by_what_is_wrong_with_it() {
    let files = files();
    let sources: Vec<_> = files.iter().map(File::in_memory).collect();
    for (at, file) in files.iter().enumerate() {
        let name = file.name.as_ref().unwrap().to_str().unwrap();
        let optional = ["svdq.json", "tokenizer/tokenizer_config.json", "tokenizer_2/tokenizer_config.json"];
        let mut others = sources.clone();
        others.remove(at);
        match (name, load(&others)) {
            (_, Ok(model)) => {
                assert!(optional.contains(&name), "{name} is not missed");
                unsafe { svdq_model_release(model) };
            }
            ("model_index.json", Err((result, text))) => {
                assert!(result == SVDQ_ERR_INVALID_ARGUMENT && text.contains(name), "{text}");
            }
            (_, Err((result, text))) => {
                let folder = name.split('/').next().unwrap();
                let part = if folder.starts_with("svdq-") { "transformer" } else { folder };
                assert!(result == SVDQ_ERR_NOT_FOUND && text.contains(part), "{name}: {result} {text}");
            }
        }
        for size in [0, file.bytes.len() / 2, file.bytes.len() - 2] {
            let mut damaged = sources.clone();
            damaged[at].size = size as u64;
            let (result, text) =
                load(&damaged).err().unwrap_or_else(|| panic!("{name} of {size} bytes is taken"));
            assert!(result == SVDQ_ERR_BAD_FORMAT && text.starts_with(name), "{name}: {result} {text}");
        }
    }
    for name in ["README.md", "vae.safetensors", "encoders/clip.safetensors", "Vae/config.json"] {
        let stray = File::new(Some(name), b"{}".to_vec());
        let all = [&sources[..], &[stray.in_memory()]].concat();
        let first = name.split('/').next().unwrap();
        refused(&all, SVDQ_ERR_INVALID_ARGUMENT, &[first, "is no name in a pipeline folder"]);
    }
    let demo = demo();
    refused(
        &[&sources[..], &[source(&demo)]].concat(),
        SVDQ_ERR_INVALID_ARGUMENT,
        &["are both a pipeline folder"],
    );
}

/// Files without a name are called by their place.
#[test]
fn nameless_files_are_called_by_their_place() {
    let (demo, sound) = (demo(), transformer());
    for (size, part) in [
        (0, "0 bytes are too few"),
        (7, "7 bytes are too few"),
        (100, "truncated"),
        (sound.bytes.len() - 1, "truncated"),
    ] {
        let cut = File::new(None, sound.bytes[..size].to_vec());
        for file in [cut.in_memory(), cut.through_calls()] {
            refused(&[source(&demo), file], SVDQ_ERR_BAD_FORMAT, &["source 1: ", part]);
        }
    }
    let long = File::new(None, [&sound.bytes[..], &[0]].concat());
    refused(&[long.through_calls()], SVDQ_ERR_BAD_FORMAT, &["source 0: 1 bytes too long"]);
    refused(&[sound.in_memory()], SVDQ_ERR_INVALID_ARGUMENT, &["a CLIP text encoder is missing", "source 0"]);
    let twice = [source(&demo), sound.in_memory(), sound.through_calls()];
    refused(&twice, SVDQ_ERR_INVALID_ARGUMENT, &["source 1 and source 2 are both a FLUX.1 transformer"]);
    let json = File::new(None, b"{\"_class_name\": \"FluxPipeline\"}".to_vec());
    refused(&[json.in_memory()], SVDQ_ERR_BAD_FORMAT, &["source 0: not safetensors"]);
    // A size that is a lie: a header that a file of this size could have.
    let lie = svdq_source { size: u64::MAX, ..sound.through_calls() };
    refused(&[lie], SVDQ_ERR_BAD_FORMAT, &["source 0: ", "bytes too long"]);
    let mut other =
        b"\x33\0\0\0\0\0\0\0{\"x\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}  ".to_vec();
    other[0] = other.len() as u8 - 9;
    let other = File::new(None, other);
    refused(
        &[source(&demo), other.through_calls()],
        SVDQ_ERR_WRONG_MODEL,
        &["source 1: no FLUX.1 transformer"],
    );
}

#[test]
fn loras_from_paths_memory_and_callbacks_are_the_same() {
    let path = lora_file();
    let bytes = fs::read(Path::new(path.to_str().unwrap())).unwrap();
    let (nameless, named) = (File::new(None, bytes.clone()), File::new(Some("стиль 🎨"), bytes));
    let load = |source: svdq_source| {
        let mut lora = ptr::dangling_mut();
        let result = unsafe { svdq_lora_load(model(), &source, &mut lora) };
        assert_eq!(result == SVDQ_OK, !lora.is_null());
        if result == SVDQ_OK { Ok(lora) } else { Err((result, last_error())) }
    };
    let picture = |source| {
        let lora = load(source).unwrap();
        let picture = picture(model(), &[svdq_lora_ref { strength: 1.0, lora, ..sized() }]);
        unsafe { svdq_lora_release(lora) };
        picture
    };
    let want = picture(source(&path));
    for file in [&nameless, &named] {
        assert!(picture(file.in_memory()) == want && picture(file.through_calls()) == want);
    }
    READS.set(0);
    unsafe { svdq_lora_release(load(named.through_calls()).unwrap()) };
    let reads = READS.get();
    assert!(reads >= 6, "{reads} reads");
    for fails in 0..reads {
        FAILS.set(fails);
        READS.set(0);
        let (result, text) = load(named.through_calls()).unwrap_err();
        assert_eq!((result, READS.get()), (SVDQ_ERR_IO, fails + 1), "{text}");
        assert!(text.starts_with("стиль 🎨: reading "), "{text}");
    }
    FAILS.set(usize::MAX);
    assert!(picture(named.through_calls()) == want);
    let cut = svdq_source { size: 9, ..nameless.in_memory() };
    let (result, text) = load(cut).unwrap_err();
    assert!(result == SVDQ_ERR_BAD_FORMAT && text.starts_with("the source: truncated"), "{text}");
}

#[test]
fn loads_end_when_their_context_is_shut_down() {
    thread_local! {
        static CONTEXT: Cell<usize> = const { Cell::new(0) };
    }
    // At the first tensor, after length and header. A callback must not shut down its own context; another thread may.
    let shut_down = || {
        let context = CONTEXT.get();
        let shut_down =
            move || assert_eq!(unsafe { svdq_context_shutdown(context as *mut _, 0) }, SVDQ_PENDING);
        if READS.get() == 2 {
            std::thread::spawn(shut_down).join().unwrap();
        }
    };
    let style = File::new(None, fs::read(lora_file().to_str().unwrap()).unwrap());
    let transformer = transformer();
    let demo = demo();
    let sources = [source(&demo), transformer.through_calls()];
    for model_too in [false, true] {
        let (context, mut lora) = (create(), ptr::dangling_mut());
        let mut own = load_into(context, &demo);
        CONTEXT.set(context as usize);
        READS.set(0);
        BESIDES.set(shut_down);
        let result = match model_too {
            true => {
                let mut out = ptr::dangling_mut();
                let result = unsafe { svdq_model_load(context, &model_params(&sources), &mut out) };
                assert!(out.is_null());
                result
            }
            false => unsafe { svdq_lora_load(own, &style.through_calls(), &mut lora) },
        };
        BESIDES.set(|| ());
        assert_eq!(result, SVDQ_ERR_CANCELLED, "{}", last_error());
        let result = unsafe { svdq_lora_load(own, &style.through_calls(), &mut lora) };
        assert_eq!((result, lora), (SVDQ_ERR_SHUTTING_DOWN, ptr::null_mut()));
        unsafe { svdq_model_release(own) };
        let result = unsafe { svdq_model_load(context, &model_params(&sources), &mut own) };
        assert_eq!((result, own), (SVDQ_ERR_SHUTTING_DOWN, ptr::null_mut()));
        ok(unsafe { svdq_context_shutdown(context, u32::MAX) });
        unsafe { svdq_context_release(context) };
    }
}
