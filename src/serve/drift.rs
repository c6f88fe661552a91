//! What is served, and how far it is lately from what the model was validated with.

use super::queue::Images;
use crate::files::{Baseline, Tally};

/// All images and answers; the latest, between one and two spans of them, apart from those before.
#[derive(Debug, Default)]
pub(super) struct Seen {
    now: Tally,
    before: Tally,
    long_ago: Tally,
}

/// Images of a span.
const SPAN: u64 = 1000;

/// How far apart; 0, and 1 for `deviation`, where nothing changed.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Drift {
    /// Images compared.
    pub(super) images: u64,
    /// Of each channel, how far its mean went, in standard deviations of then.
    pub(super) mean: Vec<f64>,
    /// Of each channel, its standard deviation as a multiple of what it was.
    pub(super) deviation: Vec<f64>,
    /// Share of the images that would have to be of other classes for the classes to be as frequent as they were: 0 to 1.
    pub(super) classes: f64,
    /// Mean probability of the class found, less what it was.
    pub(super) confidence: f64,
}

/// A deviation no smaller than this is divided by: half a step of bytes.
const LEAST: f64 = 0.5 / 255.0;

impl Seen {
    pub(super) fn new(channels: usize, classes: usize) -> Self {
        let none = Tally::new(channels, classes);
        Self { now: none.clone(), before: none.clone(), long_ago: none }
    }

    /// Adds images and their probabilities `[images, classes]`; `found` hears the class of each.
    pub(super) fn add(&mut self, images: &Images, probabilities: &[f32], mut found: impl FnMut(usize)) {
        if self.now.images >= SPAN {
            let none = Tally::new(self.now.sums.len(), self.now.classes.len());
            self.long_ago.merge(&self.before);
            self.before = std::mem::replace(&mut self.now, none);
        }
        match images {
            Images::Bytes(bytes) => self.now.add_bytes(bytes),
            Images::Floats(values) => self.now.add_floats(values),
        }
        let classes = self.now.classes.len();
        probabilities.chunks_exact(classes).for_each(|row| found(self.now.add_answer(row)));
    }

    /// Of everything since the start.
    pub(super) fn all(&self) -> Tally {
        let mut all = self.long_ago.clone();
        all.merge(&self.before);
        all.merge(&self.now);
        all
    }

    /// The comparison, if there is something to compare.
    pub(super) fn against(&self, then: &Baseline) -> Option<Drift> {
        let mut latest = self.before.clone();
        latest.merge(&self.now);
        let now = latest.baseline()?;
        let channels = || now.mean.iter().zip(&now.deviation).zip(then.mean.iter().zip(&then.deviation));
        let moved = now.classes.iter().zip(&then.classes).map(|(now, then)| (now - then).abs()).sum::<f64>();
        Some(Drift {
            images: now.images,
            mean: channels().map(|((now, _), (then, deviation))| (now - then).abs() / deviation.max(LEAST)).collect(),
            deviation: channels().map(|((_, now), (_, then))| now.max(LEAST) / then.max(LEAST)).collect(),
            classes: moved / 2.0,
            confidence: now.confidence - then.confidence,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drift_shows_in_the_latest_images_and_leaves_with_them() {
        let then = Baseline { images: 9, mean: vec![0.5], deviation: vec![0.25], classes: vec![0.5, 0.5], confidence: 0.7 };
        let mut seen = Seen::new(1, 2);
        assert_eq!(seen.against(&then), None);
        // As it was: mean 0.5, deviation 0.25.
        for i in 0..1500 {
            let answer = if i % 2 == 0 { [0.7, 0.3] } else { [0.3, 0.7] };
            seen.add(&Images::Floats(vec![0.25, 0.75]), &answer, |class| assert_eq!(class, i % 2));
        }
        let drift = seen.against(&then).unwrap();
        assert!(drift.mean[0] < 1e-9 && (drift.deviation[0] - 1.0).abs() < 1e-9 && drift.classes < 1e-3, "{drift:?}");
        assert!(drift.confidence.abs() < 1e-6);
        // Brighter by two deviations, of half the spread, all of one class and surer of it.
        for _ in 0..3000 {
            seen.add(&Images::Floats(vec![0.875, 1.125]), &[0.9, 0.1], |_| {});
        }
        let drift = seen.against(&then).unwrap();
        assert!((1000..=2000).contains(&drift.images), "{drift:?}");
        assert!((drift.mean[0] - 2.0).abs() < 1e-9 && (drift.deviation[0] - 0.5).abs() < 1e-9, "{drift:?}");
        assert_eq!((seen.all().images, seen.all().values), (4500, 9000));
        assert!((drift.classes - 0.5).abs() < 1e-9 && (drift.confidence - 0.2).abs() < 1e-6, "{drift:?}");
    }
}
