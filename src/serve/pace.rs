//! How soon a connection is read again after its request was turned away.
//!
//! A request turned away costs little, but a client that at once sends the next one can have thousands of them in the time of one answer,
//! and where server and network share a processor, they take it from the requests that are answered. So the server has a pace for
//! turning away: while it turns away less than that, nothing changes; above it, connections wait for their turn before the
//! next request is read from them, and their clients are slowed by the network's own flow control. A client that comes again
//! when `Retry-After` says finds its connection read.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The pace of one server.
#[derive(Debug)]
pub(super) struct Pace {
    began: Instant,
    /// Nanoseconds between two turns.
    interval: u64,
    /// When the next turn is, in nanoseconds from the beginning.
    next: AtomicU64,
}

/// So many may be turned away in a second for each core: at 24 to 30 µs each, an eighth of it.
const EACH_SECOND: u64 = 5000;
/// How much of the pace may be saved up while nobody is turned away, for what comes in bursts: nanoseconds.
const SAVED: u64 = 100_000_000;
/// Longest pause, in nanoseconds: much less than what `Retry-After` says.
const LONGEST: u64 = 250_000_000;

impl Pace {
    /// For a machine of so many cores.
    pub(super) fn new(cores: usize) -> Self {
        Self { began: Instant::now(), interval: 1_000_000_000 / (EACH_SECOND * cores as u64), next: AtomicU64::new(0) }
    }

    /// A request was turned away: how long its connection is not read.
    pub(super) fn pause(&self) -> Duration {
        self.pause_at(self.began.elapsed().as_nanos() as u64 + SAVED)
    }

    fn pause_at(&self, now: u64) -> Duration {
        let turn = |next: u64| next.clamp(now - SAVED, now + LONGEST);
        let taken = self.next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| Some(turn(next) + self.interval));
        let (Ok(next) | Err(next)) = taken;
        Duration::from_nanos(turn(next).saturating_sub(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_begin_above_the_pace_grow_to_a_bound_and_end() {
        let pace = Pace::new(2);
        let second = 1_000_000_000;
        let burst: Vec<Duration> = (0..6000).map(|_| pace.pause_at(10 * second)).collect();
        assert!(burst[..1000].iter().all(Duration::is_zero), "what was saved up");
        assert_eq!(burst[1001], Duration::from_micros(100));
        assert_eq!(burst[2000], Duration::from_millis(100), "10,000 a second");
        assert_eq!(burst[5999], Duration::from_millis(250), "the longest");
        assert!(!pace.pause_at(10 * second + second / 10).is_zero());
        assert!(pace.pause_at(11 * second).is_zero(), "a second later nobody waits");
        // At half the pace there are no pauses, however long it goes on.
        assert!((0..10_000).all(|i| pace.pause_at(12 * second + i * 200_000).is_zero()));
    }
}
