//! One run of the same work at a time, however many ask for it.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::OnceCell;

type Flight<T> = Arc<OnceCell<T>>;

/// Lets the first who asks for a key do the work and gives all who ask meanwhile its result, errors
/// included; so `T` is cheap to clone.
///
/// If the one at work is cancelled or panics, one of those who wait starts the work anew. Nothing is
/// remembered once the work is done.
#[derive(Debug)]
pub struct SingleFlight<K, T> {
    flights: Mutex<HashMap<K, Flight<T>>>,
    led: AtomicU64,
    joined: AtomicU64,
}

impl<K, T> Default for SingleFlight<K, T> {
    fn default() -> Self {
        Self { flights: Mutex::default(), led: AtomicU64::new(0), joined: AtomicU64::new(0) }
    }
}

/// Takes a finished or abandoned flight out of the map.
struct Seat<'a, K: Eq + Hash, T> {
    owner: &'a SingleFlight<K, T>,
    key: &'a K,
    flight: Flight<T>,
}

impl<K: Eq + Hash, T> Drop for Seat<'_, K, T> {
    fn drop(&mut self) {
        let mut flights = self.owner.lock();
        // Who joins takes its reference under this lock, so the count cannot rise while we look: two means
        // the map and this seat.
        let last = Arc::strong_count(&self.flight) == 2;
        let current = flights.get(self.key).is_some_and(|other| Arc::ptr_eq(other, &self.flight));
        if current && (last || self.flight.initialized()) {
            flights.remove(self.key);
        }
    }
}

impl<K: Eq + Hash + Clone, T: Clone> SingleFlight<K, T> {
    /// Does the work, or waits for who does it.
    ///
    /// Cancel safety: dropping the future gives the work to another who waits, if there is one.
    pub async fn run<F, Fut>(&self, key: &K, work: F) -> T
    where
        F: FnOnce() -> Fut,
        Fut: Future<Output = T>,
    {
        let flight = self.lock().entry(key.clone()).or_default().clone();
        let seat = Seat { owner: self, key, flight };
        let mut led = false;
        let result = seat.flight.get_or_init(|| {
            led = true;
            work()
        });
        let result = result.await.clone();
        let counter = if led { &self.led } else { &self.joined };
        counter.fetch_add(1, Ordering::Relaxed);
        result
    }

    /// How many calls did the work, and how many were spared it.
    pub fn counts(&self) -> (u64, u64) {
        (self.led.load(Ordering::Relaxed), self.joined.load(Ordering::Relaxed))
    }

    /// How many keys are being worked on.
    pub fn in_flight(&self) -> usize {
        self.lock().len()
    }
}

impl<K: Eq + Hash, T> SingleFlight<K, T> {
    fn lock(&self) -> MutexGuard<'_, HashMap<K, Flight<T>>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::{future::pending, sync::atomic::AtomicUsize};

    use tokio::{sync::oneshot, task::yield_now};

    use super::*;

    type Flights = Arc<SingleFlight<&'static str, Result<u32, String>>>;

    #[tokio::test]
    async fn all_who_ask_share_one_run_and_its_error() {
        let flights = Flights::default();
        let runs = Arc::new(AtomicUsize::new(0));
        let (open, gate) = oneshot::channel::<()>();
        let mut gate = Some(gate);
        let asks: Vec<_> = (0..20)
            .map(|_| {
                let (flights, runs, gate) = (flights.clone(), runs.clone(), gate.take());
                tokio::spawn(async move {
                    let work = || async {
                        runs.fetch_add(1, Ordering::SeqCst);
                        gate.expect("only the first runs").await.unwrap();
                        Err("no".to_owned())
                    };
                    flights.run(&"k", work).await
                })
            })
            .collect();
        while runs.load(Ordering::SeqCst) == 0 {
            yield_now().await;
        }
        open.send(()).unwrap();
        for ask in asks {
            assert_eq!(ask.await.unwrap(), Err("no".to_owned()));
        }
        assert_eq!(runs.load(Ordering::SeqCst), 1);
        assert_eq!(flights.counts(), (1, 19));
        assert_eq!(flights.in_flight(), 0);
    }

    #[tokio::test]
    async fn a_follower_takes_over_from_a_cancelled_or_panicked_leader() {
        for panics in [false, true] {
            let flights = Flights::default();
            let (started, wait_started) = oneshot::channel::<()>();
            let (fall, wait_fall) = oneshot::channel::<()>();
            let leader = tokio::spawn({
                let flights = flights.clone();
                async move {
                    let work = || async {
                        started.send(()).unwrap();
                        wait_fall.await.unwrap();
                        assert!(!panics, "the leader falls");
                        pending().await
                    };
                    flights.run(&"k", work).await
                }
            });
            wait_started.await.unwrap();
            let follower = tokio::spawn({
                let flights = flights.clone();
                async move { flights.run(&"k", || async { Ok(7) }).await }
            });
            yield_now().await;
            fall.send(()).unwrap();
            if !panics {
                leader.abort();
            }
            assert!(leader.await.is_err());
            assert_eq!(follower.await.unwrap(), Ok(7));
            assert_eq!(flights.in_flight(), 0);
        }
    }

    #[tokio::test]
    async fn an_abandoned_flight_leaves_nothing_behind() {
        let flights = Flights::default();
        let ask = tokio::spawn({
            let flights = flights.clone();
            async move { flights.run(&"k", pending).await }
        });
        while flights.in_flight() == 0 {
            yield_now().await;
        }
        ask.abort();
        assert!(ask.await.unwrap_err().is_cancelled());
        assert_eq!(flights.in_flight(), 0);
        assert_eq!(flights.run(&"k", || async { Ok(1) }).await, Ok(1));
    }
}
