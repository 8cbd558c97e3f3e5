//! Counters, gauges and histograms: atomic numbers.

use std::{
    sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// What takes from a tenth of a millisecond to ten seconds.
pub const FAST: &[f64] =
    &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// What takes from milliseconds to a day.
pub const SLOW: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0,
    3600.0, 14_400.0, 43_200.0, 86_400.0,
];

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub fn inc(&self) {
        self.add(1);
    }

    /// So many more.
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Relaxed);
    }

    /// The number.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A number that grows and shrinks.
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

/// One that a gauge counts, until it is dropped.
#[derive(Debug)]
#[must_use]
pub struct Counted<'a>(&'a Gauge);

impl Gauge {
    /// So many more, or fewer.
    pub fn add(&self, more: i64) {
        self.0.fetch_add(more, Relaxed);
    }

    /// The number.
    pub fn get(&self) -> i64 {
        self.0.load(Relaxed)
    }

    /// One more, as long as what is returned lives.
    pub fn count(&self) -> Counted<'_> {
        self.add(1);
        Counted(self)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.add(-1);
    }
}

/// How many values were how large.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [f64],
    /// One for each bound, and one for what is beyond them.
    buckets: Box<[AtomicU64]>,
    /// In millionths.
    sum: AtomicU64,
}

impl Histogram {
    /// A histogram with buckets up to these bounds, which rise.
    pub fn new(bounds: &'static [f64]) -> Self {
        Self {
            bounds,
            buckets: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(),
            sum: AtomicU64::new(0),
        }
    }

    /// Adds a time.
    pub fn observe(&self, time: Duration) {
        self.add(time.as_secs_f64(), u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    }

    /// Adds a number of things.
    pub fn observe_count(&self, count: usize) {
        self.add(count as f64, (count as u64).saturating_mul(1_000_000));
    }

    fn add(&self, value: f64, millionths: u64) {
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        self.buckets[bucket].fetch_add(1, Relaxed);
        self.sum.fetch_add(millionths, Relaxed);
    }

    /// Each bound with how many values are not above it; all of them; their sum.
    pub(super) fn read(&self) -> (Vec<(f64, u64)>, u64, f64) {
        let mut count = 0;
        let mut up_to = |bucket: &AtomicU64| {
            count += bucket.load(Relaxed);
            count
        };
        let below =
            self.bounds.iter().zip(&self.buckets).map(|(bound, bucket)| (*bound, up_to(bucket))).collect();
        let all = up_to(&self.buckets[self.bounds.len()]);
        (below, all, self.sum.load(Relaxed) as f64 / 1e6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_counted_up_to_its_own_bound_and_above() {
        let histogram = Histogram::new(&[0.5, 1.0, 2.0]);
        for millis in [100, 500, 501, 2000, 9000] {
            histogram.observe(Duration::from_millis(millis));
        }
        let (below, all, sum) = histogram.read();
        assert_eq!(below, [(0.5, 2), (1.0, 3), (2.0, 4)]);
        assert_eq!((all, sum), (5, 12.101));
    }

    #[test]
    fn what_is_counted_is_counted_as_long_as_it_lives() {
        let gauge = Gauge::default();
        let one = gauge.count();
        assert_eq!(gauge.get(), 1);
        drop(one);
        assert_eq!(gauge.get(), 0);
    }

    #[test]
    fn bounds_rise() {
        for bounds in [FAST, SLOW, super::super::EVENTS] {
            assert!(bounds.is_sorted_by(|a, b| a < b), "{bounds:?}");
        }
    }
}
