//! Fuzzes an exported program's JSON, within a golden archive.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kasmina::artifact::fuzzing::pt2(bytes));
