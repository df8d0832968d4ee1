//! Fuzzes the zip archive's directory, headers and files.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kasmina::artifact::fuzzing::zip(bytes));
