//! A panic behind any function of the API stays inside it.

#![allow(clippy::unwrap_used)]

use std::cell::Cell;
use std::collections::BTreeSet;
use std::ptr::{self, null, null_mut};

use super::boundary::last_error;
use super::*;

thread_local! {
    static ARMED: Cell<bool> = const { Cell::new(false) };
}

/// Panics once in this thread if that was asked for: the first thing that every exported function runs.
pub(super) fn bomb() {
    if ARMED.replace(false) {
        panic!("bomb");
    }
}

/// Functions with a result, and those without; arguments are not looked at before the panic.
macro_rules! functions {
    ({ $($name:ident($($argument:expr),*);)* } { $($release:ident;)* }) => {
        [
            $((stringify!($name), Box::new(|| unsafe { $name($($argument),*) }) as Box<dyn Fn() -> svdq_result>),)*
            $((stringify!($release), Box::new(|| {
                // SAFETY: the handle is not looked at.
                unsafe { $release(ptr::dangling_mut()) };
                SVDQ_ERR_INTERNAL
            })),)*
        ]
    };
}

/// These do nothing that could panic.
const STATIC: [&str; 3] = ["svdq_version_number", "svdq_version_string", "svdq_result_name"];

#[test]
fn a_panic_in_any_function_is_its_result() {
    #[allow(clippy::undocumented_unsafe_blocks, reason = "the arguments are NULL, and not looked at")]
    let functions = functions!({
        svdq_build_info(null_mut(), 0, null_mut());
        svdq_last_error(null_mut(), 0, null_mut());
        svdq_device_count(null_mut());
        svdq_device_get_info(0, null_mut());
        svdq_context_params_init(null_mut());
        svdq_context_create(null(), null_mut());
        svdq_context_set_memory_budget(null_mut(), 0);
        svdq_context_get_memory(null(), null_mut());
        svdq_context_read_log(null_mut(), null_mut(), null_mut(), 0, null_mut());
        svdq_context_shutdown(null_mut(), 0);
        svdq_model_inspect(null(), null_mut());
        svdq_model_load(null_mut(), null(), null_mut());
        svdq_model_get_info(null(), null_mut());
        svdq_lora_load(null_mut(), null(), null_mut());
        svdq_lora_get_info(null(), null_mut());
        svdq_prompt_encode(null_mut(), null(), null_mut());
        svdq_image_bytes(null(), null_mut());
        svdq_generate_params_init(null(), null_mut());
        svdq_generate_check(null(), null(), null_mut());
        svdq_generate(null_mut(), null(), null());
        svdq_job_submit(null_mut(), null(), null_mut());
        svdq_job_submit_load(null_mut(), null(), null_mut());
        svdq_job_poll(null(), null_mut());
        svdq_job_wait(null(), 0);
        svdq_job_cancel(null_mut());
        svdq_job_error(null(), null_mut(), 0, null_mut());
        svdq_job_read_image(null(), 0, null());
        svdq_job_take_model(null_mut(), null_mut());
    } {
        svdq_context_release;
        svdq_model_release;
        svdq_lora_release;
        svdq_prompt_release;
        svdq_job_release;
    });
    for (name, call) in &functions {
        ARMED.set(true);
        assert_eq!(call(), SVDQ_ERR_INTERNAL, "{name}");
        assert!(!ARMED.get(), "{name} has not come to the panic");
        if *name != "svdq_last_error" {
            assert_eq!(last_error(), "internal error: bomb", "{name}");
        }
    }
    let header = concat!(env!("CARGO_MANIFEST_DIR"), "/include/svdq.h");
    let header = std::fs::read_to_string(header).unwrap();
    let declared = header
        .split("\nSVDQ_API")
        .skip(1)
        .map(|text| text.split('(').next().unwrap().rsplit([' ', '*', '\n']).next().unwrap().to_owned());
    let tested = functions.iter().map(|(name, _)| *name).chain(STATIC).map(str::to_owned);
    assert_eq!(tested.collect::<BTreeSet<_>>(), declared.collect::<BTreeSet<_>>());
}
