//! Random numbers by counter: a number depends on (seed, stream, index) alone, never on what was drawn before.
//!
//! So weights do not depend on the order in which layers are made, and the order of an epoch not on earlier epochs: a
//! resumed run draws what an uninterrupted one would.

/// Streams that never overlap: one for each purpose.
#[derive(Clone, Copy, Debug)]
pub enum Stream {
    /// Initial values of the parameter of this index.
    Param(usize),
    /// The order of the images in this epoch.
    Epoch(usize),
}

/// 64 random bits: two rounds of the SplitMix64 finaliser (Steele, Lea & Flood 2014) over seed, stream and index.
pub fn bits(seed: u64, stream: Stream, index: u64) -> u64 {
    let stream = match stream {
        Stream::Param(i) => 2 * i as u64,
        Stream::Epoch(i) => 2 * i as u64 + 1,
    };
    mix(mix(seed ^ 0x9E37_79B9_7F4A_7C15).wrapping_add(mix(stream)).wrapping_add(index.wrapping_mul(0x9E37_79B9_7F4A_7C15)))
}

fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// A float in `[0, 1)`, a multiple of 2⁻²⁴.
pub fn uniform(seed: u64, stream: Stream, index: u64) -> f32 {
    (bits(seed, stream, index) >> 40) as f32 / (1u64 << 24) as f32
}

/// A random order of `0..count` (Fisher & Yates), each index drawn without bias worth speaking of (2⁻³²).
pub fn permutation(seed: u64, stream: Stream, count: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..count as u32).collect();
    for i in (1..count).rev() {
        let j = ((bits(seed, stream, i as u64) >> 32) * (i as u64 + 1)) >> 32;
        order.swap(i, j as usize);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_permutation_holds_every_index_once_and_differs_by_epoch_and_seed() {
        let first = permutation(0, Stream::Epoch(0), 1000);
        let mut sorted = first.clone();
        sorted.sort_unstable();
        assert!(sorted.iter().copied().eq(0..1000));
        assert_ne!(first, permutation(0, Stream::Epoch(1), 1000));
        assert_ne!(first, permutation(1, Stream::Epoch(0), 1000));
        assert_eq!(first, permutation(0, Stream::Epoch(0), 1000));
    }

    #[test]
    fn uniform_numbers_fill_their_interval_evenly() {
        let mut tenths = [0; 10];
        for i in 0..100_000 {
            tenths[(uniform(7, Stream::Param(3), i) * 10.0) as usize] += 1;
        }
        assert!(tenths.iter().all(|count| (9_500..10_500).contains(count)), "{tenths:?}");
    }
}
