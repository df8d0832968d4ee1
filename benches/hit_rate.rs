//! How often L1 has what is asked for, beside the best static choice and two cache crates, on the same skewed
//! requests; and what ten thousand loads leave behind in memory. Prints one line of JSON.

use std::{fs, sync::Arc, time::Duration};

use kasmina::{
    cache::{Budget, DeviceCache, Evictor},
    clock::{ManualClock, SystemClock},
    id::KernelId,
};

const KERNELS: usize = 100;
const REQUESTS: usize = 200_000;
/// Left out of the counting, so that every cache is full when it begins.
const WARMUP: usize = 20_000;

/// Numbers that look random and are the same in every run (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Requests for kernels of which the k-th is asked for in proportion to k^-exponent.
fn requests(exponent: f64) -> Vec<usize> {
    let weights: Vec<f64> = (1..=KERNELS).map(|k| (k as f64).powf(-exponent)).collect();
    let total: f64 = weights.iter().sum();
    let upto: Vec<f64> = weights
        .iter()
        .scan(0.0, |sum, weight| {
            *sum += weight / total;
            Some(*sum)
        })
        .collect();
    let mut random = Random(4);
    (0..WARMUP + REQUESTS)
        .map(|_| {
            let point = random.unit();
            upto.partition_point(|&sum| sum < point).min(KERNELS - 1)
        })
        .collect()
}

/// The share of requests, in percent, that `has_or_takes` finds there.
fn share(requests: &[usize], mut has_or_takes: impl FnMut(usize) -> bool) -> f64 {
    let found = requests.iter().map(|&kernel| has_or_takes(kernel)).skip(WARMUP).filter(|&found| found);
    found.count() as f64 / REQUESTS as f64 * 100.0
}

fn row(exponent: f64, room: usize, ids: &[KernelId]) -> String {
    let asked = requests(exponent);
    // In the time between two requests the clock ticks, as it does between the grafts of a daemon.
    let clock = ManualClock::default();
    let budget = Budget { max_entries: room, max_bytes: 1 << 40 };
    let ours = DeviceCache::new(budget, |_| 1, Arc::new(clock.clone()));
    let lru = share(&asked, |n| {
        clock.advance(Duration::from_millis(10));
        let found = ours.lease(&ids[n]).is_some();
        if !found {
            drop(ours.admit(ids[n].clone(), ()).expect("nothing is held"));
        }
        found
    });
    let quick = quick_cache::sync::Cache::<usize, ()>::new(room);
    let quick_cache = share(&asked, |n| quick.get(&n).is_some() || (quick.insert(n, ()), false).1);
    let moka = moka::sync::Cache::<usize, ()>::new(room as u64);
    let moka = share(&asked, |n| {
        let found = moka.get(&n).is_some();
        if !found {
            moka.insert(n, ());
        }
        // Its upkeep runs when it finds time; here it has all of it.
        moka.run_pending_tasks();
        found
    });
    let best = share(&asked, |n| n < room);
    format!(
        "{{\"exponent\": {exponent}, \"room\": {room}, \"kasmina\": {lru:.2}, \"best_static\": {best:.2}, \
         \"quick_cache\": {quick_cache:.2}, \"moka\": {moka:.2}}}"
    )
}

fn resident_bytes() -> u64 {
    let pages =
        fs::read_to_string("/proc/self/statm").ok().and_then(|s| s.split(' ').nth(1)?.parse::<u64>().ok());
    pages.unwrap_or_default() * 4096
}

/// Bytes by which the process has grown over ten thousand loads of kernels of many sizes into a full cache.
fn growth(ids: &[KernelId]) -> u64 {
    let budget = Budget { max_entries: 32, max_bytes: 8 << 20 };
    let cache = DeviceCache::new(budget, |v: &Arc<[u8]>| v.len() as u64, Arc::new(SystemClock));
    let mut random = Random(9);
    let mut cycle = || {
        let (id, bytes) = (&ids[random.next() as usize % KERNELS], 1 + random.next() as usize % (1 << 20));
        if cache.lease(id).is_none() {
            drop(cache.admit(id.clone(), vec![1u8; bytes].into()).expect("nothing is held"));
        }
    };
    // Emptied before each look: what happens to be resident is not what was left behind.
    let mut loads = |count: usize| {
        (0..count).for_each(|_| cycle());
        cache.clear(&Evictor::Operator { uid: 0 });
        resident_bytes()
    };
    let before = loads(1000);
    loads(10_000).saturating_sub(before)
}

fn main() {
    let ids: Vec<KernelId> =
        (0..KERNELS).map(|n| format!("kernel-{n}").parse().expect("it is of the alphabet")).collect();
    let grown = growth(&ids);
    let cases = [0.8, 1.0, 1.5].into_iter().flat_map(|exponent| [20, 60, 100].map(|room| (exponent, room)));
    let rows: Vec<String> = cases.map(|(exponent, room)| row(exponent, room, &ids)).collect();
    println!("{{\"growth_bytes\": {grown}, \"hit_rate_percent\": [{}]}}", rows.join(", "));
}
