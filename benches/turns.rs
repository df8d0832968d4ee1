//! What a turn costs a pass while there is a place for everybody, beside a mutex that nobody else wants. Prints one line
//! of JSON.

use std::{
    hint::black_box,
    sync::{Barrier, Mutex},
    thread,
    time::Instant,
};

use kasmina::engine::{Entrant, Turns, TurnsSettings};

const TURNS_A_SAMPLE: usize = 100;
const SAMPLES: usize = 10_000;

/// The median of one turn in nanoseconds, over samples of a hundred each; each thread does what is made for it.
fn measure<W: FnMut() + Send>(mut works: Vec<W>) -> f64 {
    let start_together = Barrier::new(works.len());
    let one_thread = |work: &mut W| {
        start_together.wait();
        let sample = |_| {
            let start = Instant::now();
            (0..TURNS_A_SAMPLE).for_each(|_| work());
            start.elapsed().as_nanos() as f64 / TURNS_A_SAMPLE as f64
        };
        (0..SAMPLES).map(sample).collect::<Vec<f64>>()
    };
    let mut nanoseconds: Vec<f64> = thread::scope(|scope| {
        let running: Vec<_> = works.iter_mut().map(|work| scope.spawn(|| one_thread(work))).collect();
        running.into_iter().flat_map(|thread| thread.join().expect("a turn does not panic")).collect()
    });
    nanoseconds.sort_by(f64::total_cmp);
    nanoseconds[nanoseconds.len() / 2]
}

fn turn(entrant: &mut Entrant) {
    let turn = entrant.begin(|| false).expect("nobody gives up");
    black_box(turn.end(false));
}

fn main() {
    let fields = [1, 2].map(|threads| {
        let turns = Turns::new(TurnsSettings { places: threads, ..TurnsSettings::default() });
        let entrants: Vec<Entrant> = (0..threads).map(|uid| turns.join(uid as u32)).collect();
        let of_turns = measure(entrants.into_iter().map(|mut entrant| move || turn(&mut entrant)).collect());
        // Two readings of the clock are part of a turn: a pass is charged what it took.
        let clock = || _ = black_box((Instant::now(), Instant::now()));
        let of_clock = measure((0..threads).map(|_| clock).collect());
        let mutex = Mutex::new(0u64);
        let lock = || *mutex.lock().expect("nobody panics with it") += 1;
        let of_mutex = measure((0..threads).map(|_| lock).collect());
        format!(
            "\"turn_{threads}_ns\": {of_turns:.1}, \"clock_{threads}_ns\": {of_clock:.1}, \
             \"mutex_{threads}_ns\": {of_mutex:.1}"
        )
    });
    println!("{{{}}}", fields.join(", "));
}
