//! Windows over images: which pixels each output of a convolution or a pooling sees.
//!
//! Output `o` of an axis sees the pixels `o · stride + k · dilation - pad` for `k` in `0..kernel`; those outside the image are
//! padding. What fits, and how much `same` pads, is decided here once for all operators that slide.

use serde::{Deserialize, Serialize};

/// The longest padded axis. Kernels place pixels with 32-bit signed numbers; this leaves room for one sum of two of them.
const LONGEST: usize = 1 << 30;

/// What surrounds an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Padding {
    /// Nothing: windows stay inside the image.
    Valid,
    /// As much as makes an axis of the output `ceil(input / stride)` long, an odd pixel at the bottom and the right, as Keras
    /// has it.
    Same,
    /// So many pixels on each side.
    Explicit {
        /// Rows above.
        top: usize,
        /// Rows below.
        bottom: usize,
        /// Columns on the left.
        left: usize,
        /// Columns on the right.
        right: usize,
    },
}

/// A window and how it slides. Pairs are height, width.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// Extents of the window, in taps.
    pub kernel: [usize; 2],
    /// Pixels from one window to the next.
    pub stride: [usize; 2],
    /// Pixels from one tap to the next.
    pub dilation: [usize; 2],
    /// What surrounds the image.
    pub padding: Padding,
}

impl Window {
    /// Extents of the output over an image of `[H, W]`, or the reason why there is none, as a sentence for
    /// [`Error::Shape`](crate::Error::Shape).
    pub fn check(&self, input: [usize; 2]) -> Result<[usize; 2], String> {
        Ok([self.check_axis(0, input[0])?, self.check_axis(1, input[1])?])
    }

    /// Extents of the output over an image of `[H, W]`, `None` if the window does not fit.
    pub fn output(&self, input: [usize; 2]) -> Option<[usize; 2]> {
        self.check(input).ok()
    }

    /// Rows of padding above and columns on the left of an image of `[H, W]` that the window fits.
    pub fn pads(&self, input: [usize; 2]) -> [usize; 2] {
        [0, 1].map(|axis| self.sides(axis, input[axis])[0])
    }

    fn check_axis(&self, axis: usize, input: usize) -> Result<usize, String> {
        let side = ["height", "width"][axis];
        let [kernel, stride, dilation] = [self.kernel[axis], self.stride[axis], self.dilation[axis]];
        for (what, value) in [("kernel", kernel), ("stride", stride), ("dilation", dilation), ("input", input)] {
            if value == 0 {
                return Err(format!("{what} {side} is 0, expected at least 1"));
            }
            if value > LONGEST {
                return Err(format!("{what} {side} is {value}, expected at most {LONGEST}"));
            }
        }
        let [before, after] = self.sides(axis, input);
        let padded = input.saturating_add(before).saturating_add(after);
        if padded > LONGEST {
            return Err(format!("padded input {side} is {padded}, expected at most {LONGEST}"));
        }
        let span = self.span(axis);
        if span > padded {
            return Err(format!("the window's {side} spans {span} pixels but the padded input has {padded}"));
        }
        Ok((padded - span) / stride + 1)
    }

    /// Pixels from a window's first tap to its last, both included.
    fn span(&self, axis: usize) -> usize {
        self.kernel[axis].saturating_sub(1).saturating_mul(self.dilation[axis]).saturating_add(1)
    }

    /// Padding before and after an axis.
    fn sides(&self, axis: usize, input: usize) -> [usize; 2] {
        match self.padding {
            Padding::Valid => [0, 0],
            Padding::Explicit { top, bottom, left, right } => [[top, bottom], [left, right]][axis],
            Padding::Same => {
                let stride = self.stride[axis].max(1);
                let last = (input.div_ceil(stride).max(1) - 1).saturating_mul(stride);
                let total = last.saturating_add(self.span(axis)).saturating_sub(input);
                [total / 2, total - total / 2]
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn square(kernel: usize, stride: usize, dilation: usize, padding: Padding) -> Window {
        Window { kernel: [kernel; 2], stride: [stride; 2], dilation: [dilation; 2], padding }
    }

    #[test]
    fn same_padding_divides_by_the_stride_and_pads_the_end_more() {
        for input in 1..12usize {
            for (kernel, stride, dilation) in [(1, 1, 1), (2, 1, 1), (3, 1, 2), (3, 2, 1), (2, 3, 1), (5, 4, 2)] {
                let window = square(kernel, stride, dilation, Padding::Same);
                let out = input.div_ceil(stride);
                assert_eq!(window.output([input; 2]), Some([out; 2]), "{window:?} over {input}");
                let [before, after] = window.sides(0, input);
                assert!(after == before || after == before + 1);
            }
        }
        assert_eq!(square(3, 2, 1, Padding::Same).pads([4, 5]), [0, 1]);
        assert_eq!(square(2, 1, 1, Padding::Same).pads([4, 4]), [0, 0]);
    }

    #[test]
    fn valid_and_explicit_padding_count_whole_windows() {
        assert_eq!(square(3, 1, 1, Padding::Valid).output([32, 15]), Some([30, 13]));
        assert_eq!(square(3, 2, 2, Padding::Valid).output([8, 5]), Some([2, 1]));
        let window = square(3, 2, 1, Padding::Explicit { top: 2, bottom: 0, left: 0, right: 1 });
        assert_eq!(window.output([4, 4]), Some([2, 2]));
        assert_eq!(window.pads([4, 4]), [2, 0]);
    }

    #[test]
    fn what_does_not_fit_is_told_with_its_numbers() {
        let reason = |window: Window, input| window.check(input).unwrap_err();
        assert_eq!(reason(square(5, 1, 1, Padding::Valid), [5, 4]), "the window's width spans 5 pixels but the padded input has 4");
        assert_eq!(reason(square(3, 0, 1, Padding::Same), [5, 5]), "stride height is 0, expected at least 1");
        assert_eq!(reason(square(0, 1, 1, Padding::Same), [5, 5]), "kernel height is 0, expected at least 1");
        assert_eq!(reason(square(3, 1, 0, Padding::Valid), [5, 5]), "dilation height is 0, expected at least 1");
    }

    #[test]
    fn absurd_numbers_are_refused_without_overflow() {
        let all = [0, 1, 3, 1 << 30, usize::MAX / 2, usize::MAX];
        for value in all {
            for other in all {
                let explicit = Padding::Explicit { top: value, bottom: other, left: other, right: value };
                for padding in [Padding::Valid, Padding::Same, explicit] {
                    for window in [square(value, other, 1, padding), square(3, value, other, padding), square(other, 1, value, padding)] {
                        for input in all {
                            let _ = (window.output([input, 4]), window.pads([input, 4]));
                        }
                    }
                }
            }
        }
        let padding = Padding::Explicit { top: usize::MAX, bottom: 1, left: 0, right: 0 };
        assert!(square(3, 1, 1, padding).check([4, 4]).unwrap_err().starts_with("padded input height is"));
    }
}
