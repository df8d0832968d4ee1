//! Fuzzes the restricted unpickler.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kasmina::artifact::fuzzing::pickle(bytes));
