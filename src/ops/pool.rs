//! Pooling over windows of an image: maximum and mean, and who takes the gradient.
//!
//! Padding takes no part: it never wins a maximum and is not counted in a mean, as Keras has it. Where two pixels of a window
//! tie, the first in row-major order is its maximum and takes the gradient; a NaN counts as larger than any number, so the first
//! NaN of a window is its maximum and a diverged network shows.

mod avg;

pub use avg::{AvgPool2d, AvgPool2dGrad};

use super::window::{Padding, Window};
use super::{Cpu, LANES, Launch, Reference, Rules, Variant, Workgroups, kernel};
use crate::error::{Error, Result};
use crate::graph::{Graph, TensorId};
use crate::kernels;
use crate::shape::{DType, Shape, TensorType};

/// `y[n, oy, ox, c]`, the maximum of `x` `[N, H, W, C]` over each window.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MaxPool2d {
    /// The window.
    pub window: Window,
}

/// `dx` of operands `x`, `dy`: each window's gradient goes to its first maximum in row-major order.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MaxPool2dGrad {
    /// The window.
    pub window: Window,
}

impl Graph {
    /// The maximum of each window of `x` `[N, H, W, C]`: `[N, OH, OW, C]`. Padding never wins.
    ///
    /// # Errors
    /// If `x` is no batch of images, the window does not fit, or one of its places holds nothing but padding.
    pub fn max_pool2d(&mut self, x: TensorId, window: Window) -> Result<TensorId> {
        self.apply(MaxPool2d { window }, &[x])
    }

    /// The mean of each window of `x` `[N, H, W, C]`: `[N, OH, OW, C]`. Padding is not counted.
    ///
    /// # Errors
    /// As for [`max_pool2d`](Self::max_pool2d).
    pub fn avg_pool2d(&mut self, x: TensorId, window: Window) -> Result<TensorId> {
        self.apply(AvgPool2d { window }, &[x])
    }

    /// The mean of each channel of `x` `[N, H, W, C]` over its whole image: `[N, C]`.
    ///
    /// # Errors
    /// If `x` is no batch of images.
    pub fn global_avg_pool2d(&mut self, x: TensorId) -> Result<TensorId> {
        let kernel = match self.shape(x).inner() {
            &[height, width, _] => [height, width],
            _ => [1, 1], // refused below, with its shape
        };
        let y = self.avg_pool2d(x, Window { kernel, stride: [1, 1], dilation: [1, 1], padding: Padding::Valid })?;
        self.flatten(y)
    }
}

/// The numbers of one pooling: where each window's taps fall.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pool {
    /// Height and width of the image.
    pub(crate) input: [usize; 2],
    /// Height and width of the result.
    pub(crate) output: [usize; 2],
    /// Channels of both.
    pub(crate) channels: usize,
    window: Window,
    pads: [usize; 2],
}

impl Pool {
    /// The pooling of images `[H, W]`, or why there is none.
    fn new(window: Window, input: [usize; 2], channels: usize) -> Result<Self, String> {
        let output = window.check(input)?;
        if channels == 0 {
            return Err("the image has 0 channels, expected at least 1".to_owned());
        }
        let pool = Self { input, output, channels, window, pads: window.pads(input) };
        for axis in [0, 1] {
            if let Some(o) = (0..output[axis]).find(|&o| pool.taps(axis, o).next().is_none()) {
                let side = ["row", "column"][axis];
                return Err(format!("the window at {side} {o} of the output holds nothing but padding"));
            }
        }
        Ok(pool)
    }

    /// The pooling of a tensor `[N, H, W, C]` that was checked when the graph was built.
    fn of(window: Window, x: TensorType) -> Self {
        let &[height, width, channels] = x.shape.inner() else { panic!("a pooling was built over {x}, which is no batch of images") };
        Self::new(window, [height, width], channels).expect("windows were checked when the graph was built")
    }

    /// The pooling of a tensor, or the error that names it.
    fn check(op: &'static str, window: Window, x: TensorType) -> Result<Self> {
        let problem = match *x.shape.inner() {
            [height, width, channels] if x.shape.is_batched() && x.dtype == DType::F32 => {
                match Self::new(window, [height, width], channels) {
                    Ok(pool) => return Ok(pool),
                    Err(problem) => problem,
                }
            }
            _ => format!("expected a batch of images of floats, got {} axes", x.shape.rank()),
        };
        Err(Error::Shape { op, problem, operands: vec![("x", x, "(N, H, W, C) f32")] })
    }

    /// The pixels along an axis that output `o` sees, in order.
    pub(crate) fn taps(&self, axis: usize, o: usize) -> impl Iterator<Item = usize> + use<> {
        let (dilation, pad, extent) = (self.window.dilation[axis], self.pads[axis], self.input[axis]);
        let start = o * self.window.stride[axis];
        // The taps before the image are stepped over at once, so a window is found empty without walking its kernel.
        let skipped = pad.saturating_sub(start).div_ceil(dilation);
        (skipped..self.window.kernel[axis]).map(move |k| start + k * dilation - pad).take_while(move |&at| at < extent)
    }

    fn input_type(&self) -> TensorType {
        TensorType::f32(Shape::batched(&[self.input[0], self.input[1], self.channels]))
    }

    fn output_type(&self) -> TensorType {
        TensorType::f32(Shape::batched(&[self.output[0], self.output[1], self.channels]))
    }

    /// Elements of one image.
    pub(crate) fn input_len(&self) -> usize {
        self.input[0] * self.input[1] * self.channels
    }

    /// Pixels that all windows of a batch see together, in all channels.
    fn seen(&self, batch: usize) -> u64 {
        let taps = |axis: usize| (0..self.output[axis]).map(|o| self.taps(axis, o).count() as u64).sum::<u64>();
        taps(0) * taps(1) * (self.channels * batch) as u64
    }

    /// Calls `visit(output element, its pixels' elements in row-major order)` for every window and channel of the batch.
    fn windows(&self, batch: usize, mut visit: impl FnMut(usize, &[usize])) {
        let mut pixels = Vec::new();
        let mut o = 0;
        for n in 0..batch {
            for oy in 0..self.output[0] {
                for ox in 0..self.output[1] {
                    for c in 0..self.channels {
                        pixels.clear();
                        for iy in self.taps(0, oy) {
                            pixels.extend(self.taps(1, ox).map(|ix| ((n * self.input[0] + iy) * self.input[1] + ix) * self.channels + c));
                        }
                        visit(o, &pixels);
                        o += 1;
                    }
                }
            }
        }
    }

    /// The maximum's gradient window by window, for windows that neither overlap nor have holes. It goes over all pixels from
    /// one window to the next, so only for small strides.
    fn grad_by_window(&self, output: TensorType) -> Vec<Variant> {
        let Window { kernel, stride, dilation, .. } = self.window;
        let apart = [0, 1].iter().all(|&i| dilation[i] == 1 && kernel[i] <= stride[i] && stride[i] <= 8);
        if !apart || !self.channels.is_multiple_of(4) {
            return Vec::new();
        }
        let [rows, columns] = [0, 1].map(|i| (self.input[i] + self.pads[i]).div_ceil(stride[i]));
        let mut launch = self.launch(kernel!("max_pool2d_grad_registers"), output);
        launch.constants.retain(|(name, _)| !matches!(*name, "DY" | "DX"));
        launch.constants.extend([("CELLS_H", rows as f64), ("CELLS_W", columns as f64)]);
        launch.workgroups = Workgroups { fixed: 0, per_image: rows * columns * self.channels / 4, tile: 64, times: 1 };
        Variant::registers(launch)
    }

    fn launch(&self, kernel: super::Kernel, output: TensorType) -> Launch {
        let Self { input, output: out, channels, window, pads } = *self;
        let values = [
            ("H", input[0]),
            ("W", input[1]),
            ("C", channels),
            ("OH", out[0]),
            ("OW", out[1]),
            ("KH", window.kernel[0]),
            ("KW", window.kernel[1]),
            ("SY", window.stride[0]),
            ("SX", window.stride[1]),
            ("DY", window.dilation[0]),
            ("DX", window.dilation[1]),
            ("PY", pads[0]),
            ("PX", pads[1]),
        ];
        let constants = values.map(|(name, value)| (name, value as f64)).to_vec();
        Launch { kernel, constants, workgroups: Workgroups::over(output, LANES) }
    }
}

/// Index into `pixels` of the first largest element of `x`, a NaN being larger than any number.
fn first_maximum(x: &[f64], pixels: &[usize]) -> usize {
    let mut best = pixels[0];
    for &pixel in pixels {
        if !x[best].is_nan() && (x[pixel].is_nan() || x[pixel] > x[best]) {
            best = pixel;
        }
    }
    best
}

impl Rules for MaxPool2d {
    fn name(&self) -> &'static str {
        "max_pool2d"
    }

    fn arity(&self) -> usize {
        1
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        Ok(Pool::check(self.name(), self.window, inputs[0])?.output_type())
    }

    fn backward(&self, graph: &mut Graph, inputs: &[TensorId], _y: TensorId, dy: TensorId) -> Result<Vec<Option<TensorId>>> {
        Ok(vec![Some(graph.apply(MaxPool2dGrad { window: self.window }, &[inputs[0], dy])?)])
    }

    fn reference(&self, args: &mut Reference<'_>) {
        let x = &args.inputs[0];
        pool_of(self.window, &x.extents).windows(args.batch, |o, pixels| args.output[o] = x.data[first_maximum(x.data, pixels)]);
    }

    fn cpu(&self, args: &mut Cpu<'_>) -> bool {
        kernels::pool::max(&Pool::of(self.window, args.inputs[0].ty), args.inputs[0].f32(), args.output);
        true
    }

    fn launch(&self, inputs: &[TensorType], output: TensorType) -> Launch {
        Pool::of(self.window, inputs[0]).launch(kernel!("max_pool2d"), output)
    }

    fn flops(&self, inputs: &[TensorType], batch: usize) -> u64 {
        Pool::of(self.window, inputs[0]).seen(batch)
    }
}

impl Rules for MaxPool2dGrad {
    fn name(&self) -> &'static str {
        "max_pool2d_grad"
    }

    fn arity(&self) -> usize {
        2
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        let [x, dy] = [inputs[0], inputs[1]];
        let pool = Pool::check(self.name(), self.window, x)?;
        if dy == pool.output_type() {
            return Ok(x);
        }
        let problem = format!("the pooling of x has shape {}, dy has {dy}", pool.output_type());
        Err(Error::Shape { op: self.name(), problem, operands: vec![("x", x, "(N, H, W, C) f32"), ("dy", dy, "(N, OH, OW, C) f32")] })
    }

    fn backward(&self, _: &mut Graph, _: &[TensorId], _: TensorId, _: TensorId) -> Result<Vec<Option<TensorId>>> {
        super::no_second_gradient(self.name())
    }

    // Scattered, window by window, where the WGSL kernel gathers: two ways to say the same.
    fn reference(&self, args: &mut Reference<'_>) {
        let [x, dy] = [&args.inputs[0], &args.inputs[1]];
        args.output.fill(0.0);
        pool_of(self.window, &x.extents).windows(args.batch, |o, pixels| args.output[first_maximum(x.data, pixels)] += dy.data[o]);
    }

    fn cpu(&self, args: &mut Cpu<'_>) -> bool {
        let [x, dy] = [args.inputs[0], args.inputs[1]];
        kernels::pool::max_grad(&Pool::of(self.window, x.ty), x.f32(), dy.f32(), args.output);
        true
    }

    fn launch(&self, inputs: &[TensorType], output: TensorType) -> Launch {
        Pool::of(self.window, inputs[0]).launch(kernel!("max_pool2d_grad"), output)
    }

    fn variants(&self, inputs: &[TensorType], output: TensorType) -> Vec<Variant> {
        Pool::of(self.window, inputs[0]).grad_by_window(output)
    }

    fn terms(&self, _inputs: &[TensorType], _batch: usize) -> usize {
        overlap(self.window)
    }

    fn flops(&self, inputs: &[TensorType], batch: usize) -> u64 {
        Pool::of(self.window, inputs[0]).seen(batch)
    }
}

/// The pooling of an operand `[N, H, W, C]` of a reference.
fn pool_of(window: Window, extents: &[usize]) -> Pool {
    Pool::of(window, TensorType::f32(Shape::batched(&extents[1..])))
}

/// The most windows that hold one pixel, or a little more.
fn overlap(window: Window) -> usize {
    window.kernel[0].div_ceil(window.stride[0]) * window.kernel[1].div_ceil(window.stride[1])
}

#[cfg(test)]
mod tests;
