//! Fuzzes a script's code, within an archive of one module.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kasmina::artifact::fuzzing::torchscript(bytes));
