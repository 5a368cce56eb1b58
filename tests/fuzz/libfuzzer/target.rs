//! One target: that with the name of the binary.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    persona_fuzz::run(env!("CARGO_BIN_NAME"), data);
});
