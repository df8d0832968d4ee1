//! Fuzzes the reader of records of failing passes.

#![no_main]

use kasmina::record::Record;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| drop(Record::read(&bytes.into())));
