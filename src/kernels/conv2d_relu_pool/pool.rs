//! What every forward kernel ends with: the four results of a window, in registers, become its largest and the place of that.

use pulp::Simd;

use crate::ops::conv2d::PLACES;

/// Vectors of filters in a tile; their lanes are the filters of a panel.
pub(super) const VECTORS: usize = 2;

/// Lanes of a panel at most.
const MOST: usize = VECTORS * 16;

/// ReLU and pooling of one window, whose results have their bias already; of a panel's filters as many as `y` has room for.
#[inline(always)]
pub(super) fn pool<S: Simd>(simd: S, results: [[S::f32s; VECTORS]; PLACES], y: &mut [f32], places: &mut [u8]) {
    let ([z0, z1, z2, z3], zero) = (results, simd.splat_f32s(0.0));
    // The first of the largest; a NaN is larger than any number.
    macro_rules! larger {
        ($best:ident, $place:ident, $z:expr, $p:literal) => {
            let takes = simd.and_m32s(simd.equal_f32s($best, $best), simd.not_m32s(simd.less_than_or_equal_f32s($z, $best)));
            $best = simd.select_f32s(takes, $z, $best);
            $place = simd.select_u32s(takes, simd.splat_u32s($p), $place);
        };
    }
    macro_rules! best {
        ($v:literal) => {{
            let (mut best, mut place) = (z0[$v], simd.splat_u32s(0));
            larger!(best, place, z1[$v], 1);
            larger!(best, place, z2[$v], 2);
            larger!(best, place, z3[$v], 3);
            // ReLU comes before pooling, so where it stops the largest all are zeros.
            let stopped = simd.less_than_or_equal_f32s(best, zero);
            (simd.select_f32s(stopped, zero, best), simd.select_u32s(stopped, simd.splat_u32s(PLACES as u32), place))
        }};
    }
    let ((best0, place0), (best1, place1)) = (best!(0), best!(1));
    let best = [best0, best1];
    // Taken from memory they are narrowed as vectors, from registers one by one: hence the black box.
    let place = std::hint::black_box([place0, place1]);
    let (best, place): (&[f32], &[u32]) = (bytemuck::cast_slice(&best), bytemuck::cast_slice(&place));
    let mut narrow = [0; MOST];
    for i in 0..VECTORS * S::F32_LANES {
        narrow[i] = place[i] as u8;
    }
    // A length that is known makes these a store of each vector.
    let len = if y.len() == VECTORS * S::F32_LANES { VECTORS * S::F32_LANES } else { y.len() };
    y.copy_from_slice(&best[..len]);
    places.copy_from_slice(&narrow[..len]);
}
