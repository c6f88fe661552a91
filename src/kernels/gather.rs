//! The batch of a step on the CPU.

use super::tasks::share;
use crate::ops::gather::Scale;

/// `y[n]` = the scaled bytes of image `order[start + n]`, or zeros where `find` has no such image.
pub(crate) fn images<'a>(
    find: impl Fn(usize) -> Option<&'a [u8]> + Sync + Send,
    scale: Scale,
    bytes: usize,
    order: &[u32],
    start: usize,
    y: &mut [f32],
) {
    let scaled: [f32; 256] = std::array::from_fn(|byte| scale.apply(byte as u8));
    share(y, bytes, |n, y| match order.get(start + n).and_then(|&image| find(image as usize)) {
        Some(image) => y.iter_mut().zip(image).for_each(|(y, &byte)| *y = scaled[usize::from(byte)]),
        None => y.fill(0.0),
    });
}

/// `y[n] = labels[order[start + n]]`, or 0 where there is none.
pub(crate) fn labels(labels: &[u32], order: &[u32], start: usize, y: &mut [u32]) {
    for (n, y) in y.iter_mut().enumerate() {
        *y = order.get(start + n).and_then(|&index| labels.get(index as usize)).copied().unwrap_or(0);
    }
}
