//! How long a hit in L1 takes inside the daemon, beside two cache crates on the same keys and threads. Prints one
//! line of JSON.

use std::{
    hint::black_box,
    sync::{Arc, Barrier},
    thread,
    time::Instant,
};

use kasmina::{
    cache::{Budget, DeviceCache},
    clock::SystemClock,
    id::KernelId,
};

const KERNELS: usize = 100;
const HITS_A_SAMPLE: usize = 100;
const SAMPLES: usize = 10_000;

type Value = Arc<[u8]>;

/// Median and 99th percentile of one hit in nanoseconds, over samples of a hundred hits each, on so many threads.
fn measure(threads: usize, hit: impl Fn(usize) + Sync) -> (f64, f64) {
    let start_together = Barrier::new(threads);
    let one_thread = || {
        start_together.wait();
        (0..SAMPLES)
            .map(|sample| {
                let start = Instant::now();
                (0..HITS_A_SAMPLE).for_each(|n| hit((sample * 31 + n * 7) % KERNELS));
                start.elapsed().as_nanos() as f64 / HITS_A_SAMPLE as f64
            })
            .collect::<Vec<f64>>()
    };
    let mut nanoseconds: Vec<f64> = thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(one_thread)).collect();
        running.into_iter().flat_map(|thread| thread.join().expect("a hit does not panic")).collect()
    });
    nanoseconds.sort_by(f64::total_cmp);
    (nanoseconds[nanoseconds.len() / 2], nanoseconds[nanoseconds.len() * 99 / 100])
}

fn main() {
    let budget = Budget { max_entries: KERNELS, max_bytes: 1 << 30 };
    let ours = DeviceCache::new(budget, |_: &Value| 1024, Arc::new(SystemClock));
    // Room to spare for both: they keep part of it back for newcomers.
    let quick: quick_cache::sync::Cache<KernelId, Value> = quick_cache::sync::Cache::new(KERNELS * 4);
    let moka: moka::sync::Cache<KernelId, Value> = moka::sync::Cache::new(KERNELS as u64 * 4);
    let ids: Vec<KernelId> =
        (0..KERNELS).map(|n| format!("kernel-{n}").parse().expect("it is of the alphabet")).collect();
    for id in &ids {
        let value: Value = Arc::from([0; 16]);
        drop(ours.admit(id.clone(), value.clone()).expect("the budget has room for all"));
        quick.insert(id.clone(), value.clone());
        moka.insert(id.clone(), value);
    }
    moka.run_pending_tasks();
    let fields: Vec<String> = [1, 2]
        .into_iter()
        .flat_map(|threads| {
            // Warmed up first, and then in turns, so that no one has the machine's better minute.
            let all: [(&str, &(dyn Fn(usize) + Sync)); 3] = [
                ("lease", &|n| drop(black_box(ours.lease(&ids[n])))),
                ("quick_cache", &|n| drop(black_box(quick.get(&ids[n])).expect("it fits"))),
                ("moka", &|n| drop(black_box(moka.get(&ids[n])).expect("it fits"))),
            ];
            all.map(|(name, hit)| {
                measure(threads, hit);
                let (p50, p99) = measure(threads, hit);
                let name = if threads == 1 { name.to_owned() } else { format!("{name}_{threads}_threads") };
                format!("\"{name}_p50_ns\": {p50:.1}, \"{name}_p99_ns\": {p99:.1}")
            })
        })
        .collect();
    println!("{{{}}}", fields.join(", "));
}
