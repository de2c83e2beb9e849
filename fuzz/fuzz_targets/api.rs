#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| libsvdq_fuzz::api::run(input));
