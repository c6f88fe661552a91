//! The batch of a step on the CPU, and bytes to floats.

use pulp::NullaryFnOnce;

use super::arch;
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
    share(y, bytes, |n, y| match order.get(start + n).and_then(|&image| find(image as usize)) {
        Some(image) => arch().dispatch(Scaled { image, scale, y }),
        None => y.fill(0.0),
    });
}

/// `y` = the scaled bytes, in blocks that threads share.
pub(crate) fn bytes(scale: Scale, x: &[u8], y: &mut [f32]) {
    const BLOCK: usize = 4096;
    let whole = y.len() / BLOCK * BLOCK;
    let (blocks, rest) = y.split_at_mut(whole);
    share(blocks, BLOCK, |n, y| arch().dispatch(Scaled { image: &x[n * BLOCK..][..BLOCK], scale, y }));
    arch().dispatch(Scaled { image: &x[whole..], scale, y: rest });
}

/// An image's bytes, scaled.
struct Scaled<'a> {
    image: &'a [u8],
    scale: Scale,
    y: &'a mut [f32],
}

impl NullaryFnOnce for Scaled<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        for (y, &byte) in self.y.iter_mut().zip(self.image) {
            *y = self.scale.apply(byte);
        }
    }
}

/// `y[n] = labels[order[start + n]]`, or 0 where there is none.
pub(crate) fn labels(labels: &[u32], order: &[u32], start: usize, y: &mut [u32]) {
    for (n, y) in y.iter_mut().enumerate() {
        *y = order.get(start + n).and_then(|&index| labels.get(index as usize)).copied().unwrap_or(0);
    }
}
