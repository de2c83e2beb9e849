//! What the tests share: compilers, the demo model and the last error.

use std::ffi::{CStr, CString, c_char};
use std::process::Command;
use std::sync::LazyLock;
use std::{env, fs, mem, ptr};

use svdq::capi::*;

pub(crate) use crate::commands::{library, repository, run, scratch};

/// include/svdq.h.
pub(crate) fn header() -> String {
    fs::read_to_string(repository("include/svdq.h")).unwrap()
}

/// The functions that the header declares, in its order.
pub(crate) fn declared_functions() -> Vec<String> {
    let header = header();
    let declarations = header.split("\nSVDQ_API").skip(1);
    let names: Vec<_> = declarations
        .map(|text| text.split('(').next().unwrap().rsplit([' ', '*', '\n']).next().unwrap().to_owned())
        .collect();
    assert!(names.len() > 10 && names.iter().all(|name| name.starts_with("svdq_")), "{names:?}");
    names
}

/// Warnings that strict engines turn on, for both languages.
const WARNINGS: [&str; 7] =
    ["-Wall", "-Wextra", "-pedantic", "-Wshadow", "-Wpadded", "-Wconversion", "-Werror"];

/// A compiler with every warning, of which `warning` is for its language alone, and the header's folder.
pub(crate) fn strict(compiler: &str, warning: &str) -> Command {
    let mut command = Command::new(compiler);
    command.args(WARNINGS).arg(warning).arg("-I").arg(repository("include"));
    command
}

/// The C compiler.
pub(crate) fn cc() -> Command {
    strict(&env::var("CC").unwrap_or("cc".into()), "-Wstrict-prototypes")
}

/// The C++ compiler.
pub(crate) fn cxx() -> Command {
    strict(&env::var("CXX").unwrap_or("c++".into()), "-Wold-style-cast")
}

pub(crate) fn c(text: impl Into<Vec<u8>>) -> CString {
    CString::new(text).unwrap()
}

/// This thread's last error.
pub(crate) fn last_error() -> String {
    let mut buf = [0 as c_char; 1000];
    assert_eq!(unsafe { svdq_last_error(buf.as_mut_ptr(), buf.len(), ptr::null_mut()) }, SVDQ_OK);
    unsafe { CStr::from_ptr(buf.as_ptr()) }.to_str().unwrap().to_owned()
}

/// Fails with the error text unless `result` is success.
#[track_caller]
pub(crate) fn ok(result: svdq_result) {
    assert_eq!(result, SVDQ_OK, "{}", last_error());
}

/// A struct whose fields are all zero but for its `struct_size`.
pub(crate) fn sized<T>() -> T {
    // All structs of the API hold integers, floats and raw pointers, and begin with their size.
    unsafe {
        let mut value: T = mem::zeroed();
        ptr::from_mut(&mut value).cast::<u32>().write(size_of::<T>() as u32);
        value
    }
}

pub(crate) fn source(path: &CStr) -> svdq_source {
    svdq_source { kind: SVDQ_SOURCE_PATH, path: path.as_ptr(), ..sized() }
}

pub(crate) fn model_params(sources: &[svdq_source]) -> svdq_model_params {
    svdq_model_params { source_count: sources.len() as u32, sources: sources.as_ptr(), ..sized() }
}

pub(crate) fn create() -> *mut svdq_context {
    let mut context = ptr::null_mut();
    ok(unsafe { svdq_context_create(ptr::null(), &mut context) });
    context
}

/// A model of one source.
pub(crate) fn load_into(context: *mut svdq_context, path: &CStr) -> *mut svdq_model {
    let mut model = ptr::null_mut();
    ok(unsafe { svdq_model_load(context, &model_params(&[source(path)]), &mut model) });
    model
}

/// The demo model in a context of its own, which is gone before the model is used.
pub(crate) fn load(path: &CStr) -> *mut svdq_model {
    let context = create();
    let model = load_into(context, path);
    unsafe { svdq_context_release(context) };
    model
}

/// The folder of the demo model.
pub(crate) fn demo() -> CString {
    c(repository("assets/demo").to_str().unwrap())
}

/// The demo model, loaded once for all tests.
pub(crate) fn model() -> *mut svdq_model {
    struct Shared(*mut svdq_model);
    // SAFETY: the header promises that any thread may use a model.
    unsafe impl Send for Shared {}
    unsafe impl Sync for Shared {}
    static MODEL: LazyLock<Shared> = LazyLock::new(|| Shared(load(&demo())));
    MODEL.0
}

/// A LoRA for the demo model: one double block's image MLP and one single block, in two namings.
pub(crate) fn lora_file() -> CString {
    use safetensors::{Dtype, tensor::TensorView};
    let path = scratch(&format!("lora-{:?}", std::thread::current().id())).join("style.safetensors");
    let (hidden, rank) = (256, 4);
    let layers = [
        ("lora_unet_double_blocks_0_img_mlp_0.lora_down.weight", vec![rank, hidden]),
        ("lora_unet_double_blocks_0_img_mlp_0.lora_up.weight", vec![4 * hidden, rank]),
        ("transformer.single_transformer_blocks.0.attn.to_v.lora_A.weight", vec![rank, hidden]),
        ("transformer.single_transformer_blocks.0.attn.to_v.lora_B.weight", vec![hidden, rank]),
        ("not_of_this_model.lora_A.weight", vec![1, 1]),
    ];
    // bfloat16 values between -1/4 and 1/4
    let data = |shape: &[usize]| -> Vec<u8> {
        let sign = |i: usize| if i * i % 7 < 3 { 0xbe } else { 0x3e };
        (0..shape.iter().product()).flat_map(|i: usize| [i as u8 & 0x7f, sign(i)]).collect()
    };
    let data = layers.iter().map(|(_, shape)| data(shape)).collect::<Vec<_>>();
    let views = layers
        .iter()
        .zip(&data)
        .map(|((name, shape), data)| (name, TensorView::new(Dtype::BF16, shape.clone(), data).unwrap()));
    fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
    c(path.to_str().unwrap())
}

pub(crate) fn lora(model: *mut svdq_model, path: &CStr) -> *mut svdq_lora {
    let mut lora = ptr::null_mut();
    ok(unsafe { svdq_lora_load(model, &source(path), &mut lora) });
    lora
}
