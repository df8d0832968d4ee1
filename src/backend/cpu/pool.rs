//! The thread pool: one job at a time, the caller takes part, idle workers sleep.
//!
//! A pass is a row of jobs, often of some microseconds each, in which a sleeping thread would not have woken. So a worker that
//! has left a job looks for the next one for a while before it sleeps, and the caller for the last worker to leave.

use std::{
    any::Any,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, TryLockError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// How long a thread looks for what it waits for before it sleeps.
const SPIN: Duration = Duration::from_micros(20);

/// Workers that help callers with tasks of one job.
///
/// A job's tasks are numbered, and which thread runs which never decides a result: every task writes what
/// its number says. Two callers may come at one time; the second finds the workers taken and works alone.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    /// [`State::generation`] and [`State::inside`], for those who look without the lock.
    generation: AtomicU64,
    inside: AtomicUsize,
    /// Workers wait here for a job.
    posted: Condvar,
    /// The caller waits here for the last worker to leave its job.
    left: Condvar,
    /// Held for as long as a job is posted.
    turn: Mutex<()>,
}

#[derive(Default)]
struct State {
    job: Option<Job>,
    /// Changes with each job, so that a worker does not join the same one twice.
    generation: u64,
    /// Workers that may still join.
    places: usize,
    /// Workers that are in the job.
    inside: usize,
    /// Workers that sleep.
    asleep: usize,
    panic: Option<Box<dyn Any + Send>>,
    closing: bool,
}

#[derive(Clone, Copy)]
struct Job {
    run: *const (dyn Fn(usize) + Sync),
    next: *const AtomicUsize,
    tasks: usize,
}

// SAFETY: the pointers are followed only by threads counted in `State::inside`, and the caller whose stack
// they point to waits until that count is zero and the job withdrawn.
unsafe impl Send for Job {}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pool({} threads)", self.threads())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Looks for a while whether something has come to be.
fn spin_until(is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while start.elapsed() < SPIN {
        for _ in 0..16 {
            if is_so() {
                return;
            }
            std::hint::spin_loop();
        }
    }
}

impl Pool {
    /// A pool of `threads` threads, the caller's own included.
    ///
    /// A worker that the system refuses to start is done without.
    pub fn new(threads: usize) -> Self {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            generation: AtomicU64::new(0),
            inside: AtomicUsize::new(0),
            posted: Condvar::new(),
            left: Condvar::new(),
            turn: Mutex::new(()),
        });
        let workers = (1..threads.max(1))
            .filter_map(|n| {
                let shared = Arc::clone(&shared);
                std::thread::Builder::new().name(format!("kasmina-cpu-{n}")).spawn(move || work(&shared)).ok()
            })
            .collect();
        Self { shared, workers }
    }

    /// How many threads work on a job at most, the caller's own included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `task(0)`, …, `task(tasks - 1)`, each once, on the caller's thread and at most `threads - 1`
    /// workers.
    ///
    /// # Panics
    /// When a task does; the others are finished or skipped, and the pool stays fit for use.
    pub fn run(&self, threads: usize, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        let helpers = threads.min(self.threads()).min(tasks).saturating_sub(1);
        let turn = if helpers == 0 {
            None
        } else {
            match self.shared.turn.try_lock() {
                Ok(turn) => Some(turn),
                // A job that panicked held the turn: nothing behind it is damaged.
                Err(TryLockError::Poisoned(turn)) => Some(turn.into_inner()),
                Err(TryLockError::WouldBlock) => None,
            }
        };
        let Some(_turn) = turn else {
            (0..tasks).for_each(task);
            return;
        };
        let next = AtomicUsize::new(0);
        // SAFETY: only the lifetime is erased. `Withdraw` below, on every way out of this function, waits
        // until no worker follows the pointer any more.
        let run: *const (dyn Fn(usize) + Sync) = unsafe {
            std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), *const (dyn Fn(usize) + Sync + 'static)>(
                task,
            )
        };
        let asleep = {
            let mut state = lock(&self.shared.state);
            state.job = Some(Job { run, next: &next, tasks });
            state.generation += 1;
            state.places = helpers;
            self.shared.generation.store(state.generation, Ordering::Release);
            state.asleep
        };
        // Who is awake looks for itself.
        for _ in 0..helpers.min(asleep) {
            self.shared.posted.notify_one();
        }
        let withdraw = Withdraw { shared: &self.shared, next: &next, done: false };
        take_tasks(task, &next, tasks);
        if let Some(panic) = withdraw.finish() {
            resume_unwind(panic);
        }
    }
}

/// Takes the job back, waiting for the workers in it; on a panic of the caller's own task too.
struct Withdraw<'a> {
    shared: &'a Shared,
    next: &'a AtomicUsize,
    done: bool,
}

impl Withdraw<'_> {
    /// Waits for the workers and gives a panic of one of them.
    fn finish(mut self) -> Option<Box<dyn Any + Send>> {
        self.done = true;
        self.wait()
    }

    fn wait(&self) -> Option<Box<dyn Any + Send>> {
        let mut state = lock(&self.shared.state);
        state.job = None;
        state.places = 0;
        if state.inside > 0 {
            drop(state);
            spin_until(|| self.shared.inside.load(Ordering::Acquire) == 0);
            state = lock(&self.shared.state);
        }
        while state.inside > 0 {
            state = self.shared.left.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        state.panic.take()
    }
}

impl Drop for Withdraw<'_> {
    fn drop(&mut self) {
        if !self.done {
            // The caller's own task panics: no worker takes another one.
            self.next.store(usize::MAX / 2, Ordering::Relaxed);
            self.wait();
        }
    }
}

fn take_tasks(task: &(dyn Fn(usize) + Sync), next: &AtomicUsize, tasks: usize) {
    loop {
        let n = next.fetch_add(1, Ordering::Relaxed);
        if n >= tasks {
            return;
        }
        task(n);
    }
}

fn work(shared: &Shared) {
    // The last job that this worker was in, and whether it has just left it.
    let (mut seen, mut is_fresh) = (0, false);
    let mut state = lock(&shared.state);
    loop {
        if state.closing {
            return;
        }
        let open = state.job.filter(|_| state.places > 0 && state.generation != seen);
        let Some(job) = open else {
            if is_fresh {
                let known = state.generation;
                drop(state);
                spin_until(|| shared.generation.load(Ordering::Acquire) != known);
                state = lock(&shared.state);
                is_fresh = false;
                continue;
            }
            state.asleep += 1;
            state = shared.posted.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
            state.asleep -= 1;
            continue;
        };
        seen = state.generation;
        state.places -= 1;
        state.inside += 1;
        shared.inside.store(state.inside, Ordering::Release);
        drop(state);
        // SAFETY: this thread is counted in `inside`, so the caller keeps both alive.
        let (run, next) = unsafe { (&*job.run, &*job.next) };
        let result = catch_unwind(AssertUnwindSafe(|| take_tasks(run, next, job.tasks)));
        if result.is_err() {
            next.store(usize::MAX / 2, Ordering::Relaxed);
        }
        state = lock(&shared.state);
        if let Err(panic) = result {
            state.panic = Some(panic);
        }
        state.inside -= 1;
        shared.inside.store(state.inside, Ordering::Release);
        if state.inside == 0 {
            shared.left.notify_one();
        }
        is_fresh = true;
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        lock(&self.shared.state).closing = true;
        self.shared.posted.notify_all();
        for worker in self.workers.drain(..) {
            // A worker catches its tasks' panics, so there is nothing to learn from joining it.
            let _ = worker.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once() {
        let pool = Pool::new(3);
        for tasks in [0, 1, 2, 7, 1000] {
            let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
            pool.run(3, tasks, &|n| {
                counts[n].fetch_add(1, Ordering::Relaxed);
            });
            assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
        }
    }

    #[test]
    fn a_panic_is_the_callers_and_the_pool_lives_on() {
        let pool = Pool::new(2);
        for bad in [0, 5, 99] {
            let result = catch_unwind(AssertUnwindSafe(|| {
                pool.run(2, 100, &|n| assert!(n != bad, "task {bad}"));
            }));
            assert!(result.is_err(), "{bad}");
        }
        // Two tasks that wait for each other end only if two threads take part.
        let both = std::sync::Barrier::new(2);
        pool.run(2, 2, &|_| {
            both.wait();
        });
    }

    #[test]
    fn callers_from_many_threads_do_not_wait_for_each_other() {
        let pool = Pool::new(2);
        let sum = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        // A task may itself run a job: the inner one is done by its own thread.
                        pool.run(2, 4, &|_| {
                            pool.run(2, 2, &|_| {
                                sum.fetch_add(1, Ordering::Relaxed);
                            })
                        });
                    }
                });
            }
        });
        assert_eq!(sum.into_inner(), 8 * 200 * 8);
    }
}
