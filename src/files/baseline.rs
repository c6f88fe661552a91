//! What a model saw and answered when it was validated: what a server holds against what it sees and answers later.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::nn::Model;

/// Statistics of a data set and of a model's answers to it. Stored with the model; how a server compares is in `/metrics`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Baseline {
    /// Images looked at.
    pub images: u64,
    /// Mean of each channel, as the network takes it: bytes divided by 255.
    pub mean: Vec<f64>,
    /// Standard deviation of each channel.
    pub deviation: Vec<f64>,
    /// Share of the images for which each class was found most probable; they sum to 1.
    pub classes: Vec<f64>,
    /// Mean probability of the class found most probable.
    pub confidence: f64,
}

impl Baseline {
    /// An error if it cannot be of this model.
    pub(crate) fn check(&self, model: &Model) -> Result<()> {
        let lengths = [self.mean.len(), self.deviation.len(), self.classes.len()];
        let (channels, classes) = (model.input[2], model.classes.len());
        if lengths != [channels, channels, classes] {
            let found = format!("{} means, {} deviations, {} classes", lengths[0], lengths[1], lengths[2]);
            return Err(Error::invalid("statistics of a model", found, format!("{channels} channels and {classes} classes")));
        }
        let numbers = self.mean.iter().chain(&self.deviation).chain(&self.classes).chain([&self.confidence]);
        if let Some(wrong) = numbers.copied().find(|value| !value.is_finite()) {
            return Err(Error::invalid("statistics of a model", wrong, "finite numbers"));
        }
        let shares = self.classes.iter().chain([&self.confidence]);
        match self.deviation.iter().find(|&&value| value < 0.0).or(shares.clone().find(|&&value| !(0.0..=1.0).contains(&value))) {
            Some(wrong) => Err(Error::invalid("statistics of a model", wrong, "deviations from 0, shares from 0 to 1")),
            None => Ok(()),
        }
    }
}

/// Sums over images and answers, from which a [`Baseline`] is made and with which it is compared.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Tally {
    pub(crate) images: u64,
    /// Values of each channel.
    pub(crate) values: u64,
    /// Sums of the values of each channel, and of their squares.
    pub(crate) sums: Vec<[f64; 2]>,
    pub(crate) classes: Vec<u64>,
    /// Sum of the largest probabilities.
    pub(crate) confidence: f64,
}

impl Tally {
    pub(crate) fn new(channels: usize, classes: usize) -> Self {
        Self { sums: vec![[0.0; 2]; channels], classes: vec![0; classes], ..Self::default() }
    }

    /// Adds images of bytes.
    pub(crate) fn add_bytes(&mut self, bytes: &[u8]) {
        /// Values added side by side: a whole number of pixels of 1, 2, 3 or 4 channels and more.
        const SIDE: usize = 48;
        let channels = self.sums.len();
        self.values += (bytes.len() / channels) as u64;
        let whole = if SIDE.is_multiple_of(channels) { bytes.len() / SIDE * SIDE } else { 0 };
        // Blocks short enough for 32 bits, so that the sums are of vectors.
        for block in bytes[..whole].chunks(SIDE << 15) {
            let (mut sums, mut squares) = ([0u32; SIDE], [0u32; SIDE]);
            for pixels in block.chunks_exact(SIDE) {
                for ((sum, square), &byte) in sums.iter_mut().zip(&mut squares).zip(pixels) {
                    let byte = u32::from(byte);
                    *sum += byte;
                    *square += byte * byte;
                }
            }
            for (i, (sum, square)) in sums.into_iter().zip(squares).enumerate() {
                self.sums[i % channels][0] += f64::from(sum) / 255.0;
                self.sums[i % channels][1] += f64::from(square) / (255.0 * 255.0);
            }
        }
        self.add_values(bytes[whole..].iter().map(|&byte| f64::from(byte) / 255.0));
    }

    /// Adds images of floats.
    #[cfg(any(test, feature = "serve"))]
    pub(crate) fn add_floats(&mut self, values: &[f32]) {
        self.values += (values.len() / self.sums.len()) as u64;
        self.add_values(values.iter().map(|&value| f64::from(value)));
    }

    fn add_values(&mut self, values: impl Iterator<Item = f64>) {
        let channels = self.sums.len();
        for (i, value) in values.enumerate() {
            let sums = &mut self.sums[i % channels];
            sums[0] += value;
            sums[1] += value * value;
        }
    }

    /// Adds the answer to an image, and says which class it is.
    pub(crate) fn add_answer(&mut self, probabilities: &[f32]) -> usize {
        let best = (0..probabilities.len()).reduce(|best, class| if probabilities[class] > probabilities[best] { class } else { best });
        let best = best.unwrap_or(0);
        self.images += 1;
        self.classes[best] += 1;
        self.confidence += f64::from(probabilities[best]);
        best
    }

    /// Adds another tally of the same model.
    #[cfg(any(test, feature = "serve"))]
    pub(crate) fn merge(&mut self, other: &Self) {
        self.images += other.images;
        self.values += other.values;
        self.confidence += other.confidence;
        for (sum, more) in self.sums.iter_mut().flatten().zip(other.sums.iter().flatten()) {
            *sum += more;
        }
        self.classes.iter_mut().zip(&other.classes).for_each(|(count, more)| *count += more);
    }

    /// Means and shares, if there was an image.
    pub(crate) fn baseline(&self) -> Option<Baseline> {
        if self.images == 0 || self.values == 0 {
            return None;
        }
        let (images, values) = (self.images as f64, self.values as f64);
        Some(Baseline {
            images: self.images,
            mean: self.sums.iter().map(|sums| sums[0] / values).collect(),
            deviation: self.sums.iter().map(|sums| (sums[1] / values - (sums[0] / values).powi(2)).max(0.0).sqrt()).collect(),
            classes: self.classes.iter().map(|&count| count as f64 / images).collect(),
            confidence: self.confidence / images,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_of_bytes_are_those_of_their_fractions_for_any_channels() {
        for channels in [1, 2, 3, 4, 5, 7, 48, 50] {
            let bytes: Vec<u8> = (0..channels * 4001).map(|i| if i % 3 == 0 { 255 } else { (i * 7 % 256) as u8 }).collect();
            let floats: Vec<f32> = bytes.iter().map(|&byte| f32::from(byte) / 255.0).collect();
            let (mut of_bytes, mut of_floats) = (Tally::new(channels, 2), Tally::new(channels, 2));
            of_bytes.add_bytes(&bytes);
            of_floats.add_floats(&floats);
            assert_eq!(of_bytes.values, 4001);
            assert_eq!(of_bytes.values, of_floats.values);
            for (a, b) in of_bytes.sums.iter().flatten().zip(of_floats.sums.iter().flatten()) {
                assert!((a - b).abs() < 1e-3 && *a > 0.0, "{channels} channels: {a} and {b}");
            }
        }
    }

    #[test]
    fn baseline_has_means_deviations_and_shares() {
        let mut tally = Tally::new(2, 3);
        assert_eq!(tally.baseline(), None);
        tally.add_floats(&[0.0, 0.5, 1.0, 0.5]);
        tally.add_answer(&[0.2, 0.7, 0.1]);
        let mut other = Tally::new(2, 3);
        other.add_floats(&[0.0, 0.5, 1.0, 0.5]);
        assert_eq!(other.add_answer(&[0.9, 0.0, 0.1]), 0);
        tally.merge(&other);
        let baseline = tally.baseline().unwrap();
        assert_eq!((baseline.images, &baseline.mean, &baseline.deviation), (2, &vec![0.5, 0.5], &vec![0.5, 0.0]));
        assert_eq!(baseline.classes, [0.5, 0.5, 0.0]);
        assert!((baseline.confidence - 0.8).abs() < 1e-6);
    }
}
