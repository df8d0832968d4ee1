//! How long a hit in L1 takes inside the daemon. Prints one line of JSON.

use std::{sync::Arc, time::Instant};

use kasmina::{
    cache::{Budget, DeviceCache},
    clock::SystemClock,
    id::KernelId,
};

const KERNELS: usize = 100;
const HITS_A_SAMPLE: usize = 100;
const SAMPLES: usize = 10_000;

/// Median and 99th percentile of one hit, over samples of a hundred hits each.
fn measure(mut hit: impl FnMut(usize)) -> (f64, f64) {
    let mut nanoseconds: Vec<f64> = (0..SAMPLES)
        .map(|sample| {
            let start = Instant::now();
            (0..HITS_A_SAMPLE).for_each(|n| hit((sample * 31 + n * 7) % KERNELS));
            start.elapsed().as_nanos() as f64 / HITS_A_SAMPLE as f64
        })
        .collect();
    nanoseconds.sort_by(f64::total_cmp);
    (nanoseconds[SAMPLES / 2], nanoseconds[SAMPLES * 99 / 100])
}

fn main() {
    let budget = Budget { max_entries: KERNELS, max_bytes: 1 << 30 };
    let cache = DeviceCache::new(budget, |_: &Arc<[u8]>| 1024, Arc::new(SystemClock));
    let ids: Vec<KernelId> =
        (0..KERNELS).map(|n| format!("kernel-{n}").parse().expect("it is of the alphabet")).collect();
    for id in &ids {
        let value: Arc<[u8]> = Arc::from([0; 16]);
        drop(cache.admit(id.clone(), value).expect("the budget has room for all"));
    }
    let get = measure(|n| drop(std::hint::black_box(cache.get(&ids[n]))));
    let lease = measure(|n| drop(std::hint::black_box(cache.lease(&ids[n]))));
    println!(
        "{{\"get_p50_ns\": {:.1}, \"get_p99_ns\": {:.1}, \"lease_p50_ns\": {:.1}, \"lease_p99_ns\": {:.1}}}",
        get.0, get.1, lease.0, lease.1
    );
}
