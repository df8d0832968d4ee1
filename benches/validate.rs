//! How long an artifact takes to be read and judged. Arguments: an artifact and its input's sizes without the
//! batch, such as `k.pt2 64,14,14`, any number of times. Prints one line of JSON, in milliseconds.

use std::{sync::Arc, time::Instant};

use kasmina::{
    artifact,
    validation::{Metadata, Policy, validate},
};

const SAMPLES: usize = 31;

fn median(mut run: impl FnMut()) -> f64 {
    run();
    let mut times: Vec<f64> = (0..SAMPLES)
        .map(|_| {
            let start = Instant::now();
            run();
            start.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[SAMPLES / 2]
}

fn main() {
    // cargo adds `--bench`.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let rows = arguments.as_chunks::<2>().0.iter().map(|[file, sizes]| {
        let bytes: Arc<[u8]> = std::fs::read(file).expect("the artifact can be read").into();
        let sizes: Vec<usize> = sizes.split(',').map(|size| size.parse().expect("a size")).collect();
        let id = "k".parse().expect("a letter is a kernel's name");
        let metadata = Metadata { input_shape: Some((&sizes[..]).into()), ..Metadata::bare(id) };
        let tried = Policy::default();
        let untried = Policy { trial: None, ..tried.clone() };
        let judge = |policy: &Policy| {
            let outcome = validate(bytes.clone(), Some(&metadata), policy);
            assert!(outcome.verdict.accepted, "{:?}", outcome.verdict.first_failure());
        };
        let read = median(|| drop(artifact::read(bytes.clone(), &tried.read).expect("it was judged")));
        let (judged, tried) = (median(|| judge(&untried)), median(|| judge(&tried)));
        format!(
            "{{\"bytes\": {}, \"read_ms\": {read:.3}, \"judged_ms\": {judged:.3}, \"tried_ms\": {tried:.3}}}",
            bytes.len()
        )
    });
    println!("[{}]", rows.collect::<Vec<_>>().join(", "));
}
