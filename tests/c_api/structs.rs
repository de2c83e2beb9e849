//! The structs are the same in C and in Rust, and stay what they are: their layout is the ABI.

use std::fmt::Write as _;
use std::mem::offset_of;
use std::{fs, iter};

use svdq::capi::*;

use crate::support::{cc, header, run, scratch};

/// Name, size and fields with their offsets.
type Layout = (&'static str, usize, Vec<(&'static str, usize)>);

/// The layouts in Rust. All fields have to be listed, or the pattern does not compile.
macro_rules! layouts {
    ($($name:ident { $($field:ident),* })*) => {{
        $(let _ = |$name { $($field: _),* }: $name| ();)*
        vec![$((stringify!($name), size_of::<$name>(),
                vec![$((stringify!($field), offset_of!($name, $field))),*])),*]
    }};
}

fn layouts() -> Vec<Layout> {
    layouts! {
        svdq_context_params {
            struct_size, header_version, threads, device_select, device_index, reserved, memory_budget
        }
        svdq_source { struct_size, kind, path }
        svdq_model_params { struct_size, source_count, sources, profile, reserved }
        svdq_model_info {
            struct_size, family, precision, rank, default_steps, default_guidance, size_multiple,
            default_width, default_height, profile
        }
        svdq_image { struct_size, format, width, height, row_stride, flags, reserved, pixels, capacity }
        svdq_generate_params {
            struct_size, width, height, steps, guidance, reserved, seed, prompt, loras, lora_count, reserved2
        }
        svdq_lora_info { struct_size, rank, modules, unused_tensors, control_channels }
        svdq_lora_ref { struct_size, strength, lora }
    }
}

/// What programs have been compiled with, where pointers have 8 bytes. Sizes may grow, and nothing
/// else may change.
#[cfg(target_pointer_width = "64")]
#[test]
fn layouts_are_those_of_0_1() {
    let pinned: [(&str, usize, &[usize]); 8] = [
        ("svdq_context_params", 32, &[0, 4, 8, 12, 16, 20, 24]),
        ("svdq_source", 16, &[0, 4, 8]),
        ("svdq_model_params", 24, &[0, 4, 8, 16, 20]),
        ("svdq_model_info", 40, &[0, 4, 8, 12, 16, 20, 24, 28, 32, 36]),
        ("svdq_image", 48, &[0, 4, 8, 12, 16, 24, 28, 32, 40]),
        ("svdq_generate_params", 56, &[0, 4, 8, 12, 16, 20, 24, 32, 40, 48, 52]),
        ("svdq_lora_info", 16, &[0, 4, 8, 12]),
        ("svdq_lora_ref", 16, &[0, 4, 8]),
    ];
    for ((name, size, fields), (pinned_name, pinned_size, offsets)) in iter::zip(layouts(), pinned) {
        assert_eq!(name, pinned_name);
        assert!(size >= pinned_size, "{name} has shrunk to {size} bytes");
        for ((field, offset), &pinned) in iter::zip(fields, offsets) {
            assert_eq!(offset, pinned, "{name}.{field} has moved");
        }
    }
}

#[test]
fn c_has_the_same_layouts() {
    let header = header();
    let mut program = String::from("#include \"svdq.h\"\n#include <stddef.h>\n");
    for (name, size, fields) in layouts() {
        assert!(header.contains(&format!("typedef struct {name} {{")), "{name} is not in the header");
        writeln!(program, "_Static_assert(sizeof({name}) == {size}, \"sizeof({name})\");").unwrap();
        for (field, offset) in fields {
            let what = format!("offsetof({name}, {field})");
            writeln!(program, "_Static_assert({what} == {offset}, \"{what}\");").unwrap();
        }
    }
    assert_eq!(header.matches("} svdq_").count(), layouts().len(), "a struct is missing in this test");
    let source = scratch("layouts").join("layouts.c");
    fs::write(&source, program).unwrap();
    run(cc().args(["-std=c11", "-fsyntax-only"]).arg(&source));
}
