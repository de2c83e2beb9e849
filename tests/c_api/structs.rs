//! Layouts and numbers are the ABI: Rust, C and C++ agree on them, and they are those of abi.txt.
//!
//! The tests of the bindings read abi.txt too. `SVDQ_BLESS=1 cargo test --release --test c_api structs`
//! writes it anew; after a release the change may only add lines, and let structs grow.

use std::fmt::Write as _;
use std::mem::offset_of;
use std::{env, fs};

use svdq::capi::*;

use crate::support::{cc, cxx, header, repository, run, scratch};

/// Name, size and fields with their offsets and sizes.
type Layout = (&'static str, usize, Vec<(&'static str, usize, usize)>);

/// The size of what a function takes out of a struct.
fn size<S, F>(_: fn(S) -> F) -> usize {
    size_of::<F>()
}

/// The layouts in Rust. All fields have to be listed, or the pattern does not compile.
macro_rules! layouts {
    ($($name:ident { $($field:ident),* $(,)? })*) => {{
        $(let _ = |$name { $($field: _),* }: $name| ();)*
        vec![$((stringify!($name), size_of::<$name>(), vec![$((
            stringify!($field), offset_of!($name, $field), size(|value: $name| value.$field)
        )),*])),*]
    }};
}

fn layouts() -> Vec<Layout> {
    layouts! {
        svdq_device_info {
            struct_size, compute_capability, name, uuid, luid, luid_valid, driver_version, int4_profiles,
            nvfp4_profiles, memory_total, memory_free
        }
        svdq_context_params {
            struct_size, header_version, threads, device_select, device_index, gpu_priority, device_id,
            memory_budget, log, log_user, alloc, free, alloc_user
        }
        svdq_memory_info {
            struct_size, reserved, device_used, device_peak, device_budget, device_free, host_used, host_peak
        }
        svdq_source { struct_size, kind, path, data, size, read_at, user }
        svdq_model_params { struct_size, source_count, sources, profile, flags }
        svdq_model_info {
            struct_size, family, precision, rank, default_steps, default_guidance, size_multiple,
            default_width, default_height, profile, flags, max_loras, stored_bytes, device_bytes, host_bytes
        }
        svdq_image { struct_size, format, width, height, row_stride, flags, reserved, pixels, capacity }
        svdq_generate_params {
            struct_size, width, height, steps, guidance, lora_count, seed, prompt, encoded, loras, init,
            init_strength, preview_every
        }
        svdq_lora_info { struct_size, rank, modules, unused_tensors, control_channels }
        svdq_lora_ref { struct_size, strength, lora }
        svdq_prompt_params { struct_size, lora_count, text, loras }
        svdq_generate_cost { struct_size, fits, device_bytes, host_bytes, image_bytes }
        svdq_job_status {
            struct_size, state, phase, step, steps, fraction, result, preview_serial, preview_width,
            preview_height, queue_ms, load_ms, encode_ms, denoise_ms, decode_ms, seed
        }
    }
}

/// Names and values of the header's constants, but for its version.
fn constants(header: &str) -> Vec<(&str, i32)> {
    let defines = header.lines().filter_map(|line| line.strip_prefix("#define ")?.split_once(' '));
    let numbers = defines.filter_map(|(name, value)| Some((name, value.parse().ok()?)));
    numbers.filter(|(name, _)| !name.starts_with("SVDQ_VERSION_")).collect()
}

/// abi.txt as this library would have it.
fn table() -> String {
    let mut table = String::from(
        "# The ABI of libsvdq where pointers have 8 bytes, made by tests/c_api/structs.rs: a constant and its value,\n\
         # a struct and its size in bytes, or a field, its offset and its size in bytes.\n",
    );
    let header = header();
    for (name, value) in constants(&header) {
        writeln!(table, "{name} {value}").unwrap();
    }
    for (name, size, fields) in layouts() {
        writeln!(table, "{name} {size}").unwrap();
        for (field, offset, size) in fields {
            writeln!(table, "{name}.{field} {offset} {size}").unwrap();
        }
    }
    table
}

#[cfg(target_pointer_width = "64")]
#[test]
fn layouts_and_numbers_are_those_of_the_table() {
    let path = repository("tests/c_api/abi.txt");
    if env::var_os("SVDQ_BLESS").is_some() {
        fs::write(&path, table()).unwrap();
    }
    let (pinned, now) = (fs::read_to_string(path).unwrap(), table());
    let lost: Vec<_> = pinned.lines().filter(|line| !now.lines().any(|other| other == *line)).collect();
    let gained: Vec<_> = now.lines().filter(|line| !pinned.lines().any(|other| other == *line)).collect();
    let stale = "tests/c_api/abi.txt: SVDQ_BLESS=1 cargo test --release --test c_api structs";
    assert!(pinned == now, "not those of {stale}\nlost: {lost:#?}\ngained: {gained:#?}");
}

/// A translation unit of C11 or C++11 that does not compile unless all layouts are those of Rust.
fn assertions() -> String {
    let mut unit = String::from(
        "#include \"svdq.h\"\n#include <stddef.h>\n\
         #ifndef __cplusplus\n#define static_assert _Static_assert\n#endif\n",
    );
    for (name, size, fields) in layouts() {
        writeln!(unit, "static_assert(sizeof({name}) == {size}, \"sizeof({name})\");").unwrap();
        for (field, offset, size) in fields {
            writeln!(unit, "static_assert(offsetof({name}, {field}) == {offset}, \"{name}.{field}\");")
                .unwrap();
            writeln!(unit, "static_assert(sizeof((({name} *)0)->{field}) == {size}, \"{name}.{field}\");")
                .unwrap();
        }
    }
    unit
}

#[test]
fn c_has_the_same_layouts() {
    let header = header();
    for (name, ..) in layouts() {
        assert!(header.contains(&format!("typedef struct {name} {{")), "{name} is not in the header");
    }
    assert_eq!(header.matches("} svdq_").count(), layouts().len(), "a struct is missing in this test");
    let source = scratch("layouts_c").join("layouts.c");
    fs::write(&source, assertions()).unwrap();
    run(cc().args(["-std=c11", "-fsyntax-only"]).arg(&source));
}

#[test]
#[ignore = "needs a C++ compiler, $CXX or c++"]
fn cpp_has_the_same_layouts() {
    let source = scratch("layouts_cpp").join("layouts.cpp");
    fs::write(&source, assertions()).unwrap();
    run(cxx().args(["-std=c++11", "-Wno-old-style-cast", "-fsyntax-only"]).arg(&source));
}
