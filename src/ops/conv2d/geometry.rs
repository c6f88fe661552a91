//! Every extent of one convolution, checked once; what reference, CPU kernel and launch all read.

use super::Conv2d;
use crate::error::{Error, Result};
use crate::shape::{DType, TensorType};

/// The most elements one image or one weight may have: kernels index them with 32 bits, and a batch of them must follow.
const LARGEST: usize = 1 << 30;

/// Extents of a convolution. Pairs are height, width.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Geometry {
    /// Of x.
    pub(crate) input: [usize; 2],
    /// Of y.
    pub(crate) output: [usize; 2],
    /// Of w.
    pub(crate) kernel: [usize; 2],
    pub(crate) stride: [usize; 2],
    pub(crate) dilation: [usize; 2],
    /// Padding above and on the left.
    pub(crate) pads: [usize; 2],
    pub(crate) groups: usize,
    /// Channels of x in one group.
    pub(crate) channels: usize,
    /// Channels of y in one group.
    pub(crate) filters: usize,
}

impl Geometry {
    /// Of a convolution of `[H, W, I]` images with `[KH, KW, I / groups, O]` weights, or what does not fit.
    pub(super) fn new(conv: &Conv2d, image: [usize; 3], weight: [usize; 4]) -> Result<Self, String> {
        let [h, w, channels] = image;
        let [kh, kw, group_channels, filters] = weight;
        let groups = conv.groups;
        for (what, len) in [("x", product(&image)), ("w", product(&weight))] {
            if len.is_none_or(|len| len == 0) {
                return Err(format!("{what} has an extent of 0, or more than {LARGEST} elements"));
            }
        }
        if groups == 0 || !channels.is_multiple_of(groups) {
            return Err(format!("the {channels} channels of x do not divide into {groups} groups"));
        }
        if !filters.is_multiple_of(groups) {
            return Err(format!("the {filters} filters of w do not divide into {groups} groups"));
        }
        if channels / groups != group_channels {
            let each = if groups == 1 { String::new() } else { format!(" in each of {groups} groups") };
            return Err(format!("x has {} channels{each} but w takes {group_channels}", channels / groups));
        }
        let window = conv.window([kh, kw]);
        let output = window.check([h, w])?;
        if product(&[output[0], output[1], filters]).is_none() {
            return Err(format!("y would be {} by {} pixels of {filters} channels, more than {LARGEST} elements", output[0], output[1]));
        }
        Ok(Self {
            input: [h, w],
            output,
            kernel: [kh, kw],
            stride: conv.stride,
            dilation: conv.dilation,
            pads: window.pads([h, w]),
            groups,
            channels: group_channels,
            filters: filters / groups,
        })
    }

    /// Pixels of one output image.
    pub(crate) fn pixels(&self) -> usize {
        self.output[0] * self.output[1]
    }

    /// Taps of the window times the channels of a group: what one output element sums.
    pub(crate) fn depth(&self) -> usize {
        self.kernel[0] * self.kernel[1] * self.channels
    }

    /// Multiply-adds of a batch, those with padding left out: as many in either gradient as in the convolution.
    pub(super) fn multiply_adds(&self, batch: usize) -> u64 {
        let inside = |axis: usize| {
            let taps = (0..self.output[axis]).flat_map(|out| (0..self.kernel[axis]).map(move |tap| (out, tap)));
            taps.filter(|&(out, tap)| self.place(axis, out, tap).is_some()).count() as u64
        };
        inside(0) * inside(1) * (self.channels * self.outputs()) as u64 * batch as u64
    }

    /// Channels of x.
    pub(crate) fn inputs(&self) -> usize {
        self.groups * self.channels
    }

    /// Channels of y.
    pub(crate) fn outputs(&self) -> usize {
        self.groups * self.filters
    }

    /// The pixel of x that an output pixel sees through a tap, unless it is padding.
    pub(super) fn pixel(&self, out: [usize; 2], tap: [usize; 2]) -> Option<[usize; 2]> {
        Some([self.place(0, out[0], tap[0])?, self.place(1, out[1], tap[1])?])
    }

    /// The same along one axis.
    fn place(&self, axis: usize, out: usize, tap: usize) -> Option<usize> {
        let at = (out * self.stride[axis] + tap * self.dilation[axis]).checked_sub(self.pads[axis])?;
        (at < self.input[axis]).then_some(at)
    }

    /// Where x and w are read for one term of an output element: image `n`, pixel `out`, filter `o`, and channel `c` of its
    /// group through a tap; nothing where that is padding.
    pub(super) fn at(&self, n: usize, out: [usize; 2], tap: [usize; 2], o: usize, c: usize) -> Option<[usize; 2]> {
        let [h, w] = self.pixel(out, tap)?;
        let channel = o / self.filters * self.channels + c;
        let x = ((n * self.input[0] + h) * self.input[1] + w) * self.inputs() + channel;
        Some([x, ((tap[0] * self.kernel[1] + tap[1]) * self.channels + c) * self.outputs() + o])
    }

    /// The `override` constants that every convolution kernel has.
    pub(super) fn constants(&self) -> Vec<(&'static str, f64)> {
        let pairs = [
            (["H", "W"], self.input),
            (["OH", "OW"], self.output),
            (["KH", "KW"], self.kernel),
            (["STRIDE_H", "STRIDE_W"], self.stride),
            (["DILATION_H", "DILATION_W"], self.dilation),
            (["PAD_H", "PAD_W"], self.pads),
        ];
        let mut constants: Vec<_> =
            pairs.into_iter().flat_map(|(names, values)| [(names[0], values[0] as f64), (names[1], values[1] as f64)]).collect();
        constants.extend([("GROUPS", self.groups as f64), ("CHANNELS", self.channels as f64), ("FILTERS", self.filters as f64)]);
        constants
    }
}

/// The product of extents, unless it is more than [`LARGEST`].
fn product(extents: &[usize]) -> Option<usize> {
    extents.iter().try_fold(1usize, |product, &extent| product.checked_mul(extent)).filter(|&product| product <= LARGEST)
}

/// The `[H, W, C]` of a batch of float images.
pub(super) fn image(name: &str, ty: TensorType) -> Result<[usize; 3], String> {
    match (ty.shape.is_batched(), ty.shape.inner(), ty.dtype) {
        (true, &[h, w, c], DType::F32) => Ok([h, w, c]),
        (true, &[_, _, _], _) => Err(format!("{name} is not of floats")),
        (false, ..) => Err(format!("{name} has no batch as its first axis")),
        _ => Err(format!("{name} has {} axes, expected 4", ty.shape.rank())),
    }
}

/// The `[KH, KW, I / groups, O]` of a float weight.
pub(super) fn weight(ty: TensorType) -> Result<[usize; 4], String> {
    match (ty.shape.is_batched(), ty.shape.inner(), ty.dtype) {
        (false, &[kh, kw, channels, filters], DType::F32) => Ok([kh, kw, channels, filters]),
        (false, &[_, _, _, _], _) => Err("w is not of floats".to_owned()),
        (true, ..) => Err("the first axis of w is the batch".to_owned()),
        _ => Err(format!("w has {} axes, expected 4", ty.shape.rank())),
    }
}

/// An [`Error::Shape`] of two operands.
pub(super) fn mismatch(op: &'static str, problem: String, operands: [(&'static str, TensorType, &'static str); 2]) -> Error {
    Error::Shape { op, problem, operands: operands.to_vec() }
}
