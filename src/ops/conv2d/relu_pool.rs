//! A convolution with what usually follows it, in one: bias, ReLU, and max-pooling by 2; and its two gradients.
//!
//! No user's graph holds these operators: `plan/fuse.rs` puts them in the place of the chains they equal, and nothing between
//! the images and the pooled result is ever stored, but the place of each window's maximum: one byte an element, 0 to 3 in
//! row-major order, the first where pixels tie, as in [`MaxPool2d`](crate::ops::MaxPool2d).
//!
//! The gradient of the convolution's own output is zero but at those places, and there that of the pooled result, where ReLU
//! lets it through; the gradients build it as they go and never store it either.

use super::geometry::{Geometry, image, mismatch, weight};
use super::{AREA, Conv2d, grad, tile_columns};
use crate::error::Result;
use crate::graph::{Graph, TensorId};
use crate::kernels::conv2d_relu_pool as kernels;
use crate::ops::{Cpu, Kernel, Launch, Reference, Rules, Workgroups, kernel, no_second_gradient};
use crate::shape::{DType, Shape, TensorType};

/// `y = max_pool2d(relu(conv2d(x, w) + b))` of operands x `[N, H, W, I]`, w `[KH, KW, I, O]`, b `[O]`: `[N, PH, PW, O]`, and, extra,
/// the place of each maximum, u8 of the same shape. Windows are 2×2 pixels and do not overlap; an odd last row or column is
/// dropped. The convolution has one group and a multiple of 4 filters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2dReluPool {
    /// The convolution.
    pub conv: Conv2d,
}

/// Gradient of a [`Conv2dReluPool`] for its images: dx `[N, H, W, I]` of operands dy, y, the places, and w.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2dReluPoolInputGrad {
    /// The convolution.
    pub conv: Conv2d,
    /// H and W of its images.
    pub input: [usize; 2],
}

/// Gradient of a [`Conv2dReluPool`] for its weight and bias, as partial sums: dw `[slices, KH, KW, I, O]` and, extra, db
/// `[slices, O]` of operands x, dy, y, and the places. The `N·PH·PW` pixels of y are cut into `slices` runs of equal
/// length, the last ones shorter or empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2dReluPoolWeightGrad {
    /// The convolution.
    pub conv: Conv2d,
    /// KH and KW of its weight.
    pub kernel: [usize; 2],
    /// How many partial sums there are.
    pub slices: usize,
}

/// A convolution's extents, and those of what comes out of the block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Block {
    /// Of the convolution.
    pub(crate) conv: Geometry,
}

/// Pixels along each axis of a pooling window.
pub(crate) const EDGE: usize = 2;

/// Pixels of a pooling window.
pub(crate) const PLACES: usize = EDGE * EDGE;

impl Block {
    fn new(conv: Geometry) -> Result<Self, String> {
        let block = Self { conv };
        if conv.groups != 1 || !conv.filters.is_multiple_of(4) {
            return Err(format!("{} groups of {} filters, expected 1 group of a multiple of 4", conv.groups, conv.filters));
        }
        if block.output().contains(&0) {
            return Err(format!("pooling leaves nothing of {} by {} pixels", conv.output[0], conv.output[1]));
        }
        Ok(block)
    }

    /// PH and PW.
    pub(crate) fn output(&self) -> [usize; 2] {
        self.conv.output.map(|extent| extent / EDGE)
    }

    /// Pixels of one image of y.
    pub(crate) fn pixels(&self) -> usize {
        self.output()[0] * self.output()[1]
    }

    fn y(&self) -> TensorType {
        let [h, w] = self.output();
        TensorType::f32(Shape::batched(&[h, w, self.conv.outputs()]))
    }

    fn place(&self) -> TensorType {
        TensorType { dtype: DType::U8, ..self.y() }
    }

    /// Of the matrix product, over the pixels that pooling does not drop.
    fn flops(&self, batch: usize) -> u64 {
        2 * Geometry { output: self.output().map(|extent| extent * EDGE), ..self.conv }.multiply_adds(batch)
    }

    fn constants(&self, columns: usize) -> Vec<(&'static str, f64)> {
        let mut constants = self.conv.constants();
        constants.retain(|(name, _)| !["OH", "OW", "GROUPS"].contains(name));
        let [h, w] = self.output();
        constants.extend([("PH", h as f64), ("PW", w as f64), ("TILE_N", tile_columns(columns) as f64)]);
        constants
    }

    /// The tiled kernel whose rows are the places of y's pixels and whose columns the filters.
    fn launch_over(&self, kernel: Kernel) -> Launch {
        let (columns, tile) = (self.conv.filters, tile_columns(self.conv.filters));
        let workgroups = Workgroups { fixed: 0, per_image: self.pixels() * PLACES, tile: AREA / tile, times: columns.div_ceil(tile) };
        Launch { kernel, constants: self.constants(columns), workgroups }
    }

    /// The tiled kernel whose rows are the pixels of x and whose columns its channels.
    fn launch_over_input(&self, kernel: Kernel) -> Launch {
        let (columns, tile) = (self.conv.channels, tile_columns(self.conv.channels));
        let per_image = self.conv.input[0] * self.conv.input[1];
        let workgroups = Workgroups { fixed: 0, per_image, tile: AREA / tile, times: columns.div_ceil(tile) };
        Launch { kernel, constants: self.constants(columns), workgroups }
    }

    /// The tiled kernel over a weight, once for each slice.
    fn launch_slices(&self, kernel: Kernel, slices: usize) -> Launch {
        let mut constants = self.constants(self.conv.filters);
        constants.push(("SLICES", slices as f64));
        Launch { kernel, constants, workgroups: Workgroups::fixed(slices * grad::tiles(&self.conv)) }
    }

    /// The pixel of the convolution's output at a place of y's pixel `[h, w]`.
    fn conv_pixel(&self, [h, w]: [usize; 2], place: usize) -> [usize; 2] {
        [h * EDGE + place / EDGE, w * EDGE + place % EDGE]
    }

    /// Whether dy, y and the places are of the shapes that the block has.
    fn agrees(&self, dy: TensorType, y: TensorType, place: TensorType) -> Result<(), String> {
        if dy == self.y() && y == self.y() && place == self.place() {
            return Ok(());
        }
        Err(format!("dy is {dy}, y {y} and the places {place}, but the pooled result is {}", self.y()))
    }
}

impl Conv2dReluPool {
    fn block(&self, inputs: &[TensorType]) -> Result<Block> {
        let [x, w, b] = [inputs[0], inputs[1], inputs[2]];
        let block = image("x", x).and_then(|x| Block::new(Geometry::new(&self.conv, x, weight(w)?)?)).and_then(|block| {
            let bias = TensorType::f32(Shape::fixed(&[block.conv.outputs()]));
            if b == bias { Ok(block) } else { Err(format!("the bias is {b}, expected {bias}")) }
        });
        block.map_err(|problem| mismatch(self.name(), problem, [("x", x, "(N, H, W, I)"), ("w", w, "(KH, KW, I, O)")]))
    }

    fn known(&self, inputs: &[TensorType]) -> Block {
        self.block(inputs).expect("shapes were checked when the graph was built")
    }
}

impl Rules for Conv2dReluPool {
    fn name(&self) -> &'static str {
        "conv2d_relu_pool"
    }

    fn arity(&self) -> usize {
        3
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        Ok(self.block(inputs)?.y())
    }

    fn extra_outputs(&self, inputs: &[TensorType]) -> Vec<TensorType> {
        vec![self.known(inputs).place()]
    }

    fn backward(&self, _: &mut Graph, _: &[TensorId], _: TensorId, _: TensorId) -> Result<Vec<Option<TensorId>>> {
        no_second_gradient(self.name()) // it comes into a graph after its gradients have
    }

    fn reference(&self, args: &mut Reference<'_>) {
        let types = args.inputs.iter().zip([true, false, false]).map(|(view, batched)| type_of(&view.extents, batched));
        let block = self.known(&types.collect::<Vec<_>>());
        let (g, pixels) = (&block.conv, block.pixels());
        let [x, w, b] = [&args.inputs[0], &args.inputs[1], &args.inputs[2]];
        for (i, y) in args.output.iter_mut().enumerate() {
            let [n, pixel, o] = [i / g.outputs() / pixels, i / g.outputs() % pixels, i % g.outputs()];
            let pixel = [pixel / block.output()[1], pixel % block.output()[1]];
            let mut best = (f64::NAN, 0);
            for place in 0..PLACES {
                let mut sum = b.data[o];
                for tap in 0..g.kernel[0] * g.kernel[1] {
                    let tap = [tap / g.kernel[1], tap % g.kernel[1]];
                    for c in 0..g.channels {
                        sum += g.at(n, block.conv_pixel(pixel, place), tap, o, c).map_or(0.0, |[x_at, w_at]| x.data[x_at] * w.data[w_at]);
                    }
                }
                let value = if sum < 0.0 { 0.0 } else { sum };
                if place == 0 || (!best.0.is_nan() && (value.is_nan() || value > best.0)) {
                    best = (value, place);
                }
            }
            *y = best.0;
            args.extra[0][i] = best.1 as f64;
        }
    }

    fn cpu(&self, args: &mut Cpu<'_>) -> bool {
        let [x, w, b] = [args.inputs[0], args.inputs[1], args.inputs[2]];
        let block = self.known(&[x.ty, w.ty, b.ty]);
        let places = &mut bytemuck::cast_slice_mut(args.extra[0])[..args.output.len()];
        kernels::forward(&block, x.f32(), w.f32(), b.f32(), args.output, places);
        true
    }

    fn launch(&self, inputs: &[TensorType], _output: TensorType) -> Launch {
        self.known(inputs).launch_over(kernel!("conv2d_relu_pool"))
    }

    fn terms(&self, inputs: &[TensorType], _batch: usize) -> usize {
        self.known(inputs).conv.depth() + 1
    }

    fn flops(&self, inputs: &[TensorType], batch: usize) -> u64 {
        self.known(inputs).flops(batch)
    }
}

/// The type of a float operand as a reference sees it.
fn type_of(extents: &[usize], batched: bool) -> TensorType {
    TensorType::f32(if batched { Shape::batched(&extents[1..]) } else { Shape::fixed(extents) })
}

/// What ReLU and pooling let through of dy to one element of the convolution's output.
fn through(dy: f64, y: f64, place: f64, here: usize) -> f64 {
    if place != here as f64 || y <= 0.0 { 0.0 } else { dy }
}

/// Calls `each(n, pixel of the convolution's output, filter, pixel of y over the batch, gradient there)`.
fn gradient(block: &Block, batch: usize, [dy, y, place]: [&[f64]; 3], mut each: impl FnMut(usize, [usize; 2], usize, usize, f64)) {
    let outputs = block.conv.outputs();
    for pixel in 0..batch * block.pixels() {
        let [n, h, w] = [pixel / block.pixels(), pixel / block.output()[1] % block.output()[0], pixel % block.output()[1]];
        for here in 0..PLACES {
            for o in 0..outputs {
                let i = pixel * outputs + o;
                each(n, block.conv_pixel([h, w], here), o, pixel, through(dy[i], y[i], place[i], here));
            }
        }
    }
}

impl Conv2dReluPoolInputGrad {
    fn block(&self, inputs: &[TensorType]) -> Result<Block> {
        let (dy, w) = (inputs[0], inputs[inputs.len() - 1]);
        let block = weight(w).and_then(|weight| {
            let channels = weight[2].saturating_mul(self.conv.groups);
            let block = Block::new(Geometry::new(&self.conv, [self.input[0], self.input[1], channels], weight)?)?;
            block.agrees(dy, inputs[1], inputs[2]).map(|()| block)
        });
        block.map_err(|problem| mismatch(self.name(), problem, [("dy", dy, "(N, PH, PW, O)"), ("w", w, "(KH, KW, I, O)")]))
    }

    fn known(&self, inputs: &[TensorType]) -> Block {
        self.block(inputs).expect("shapes were checked when the graph was built")
    }
}

impl Rules for Conv2dReluPoolInputGrad {
    fn name(&self) -> &'static str {
        "conv2d_relu_pool_input_grad"
    }

    fn arity(&self) -> usize {
        4
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        let block = self.block(inputs)?;
        Ok(TensorType::f32(Shape::batched(&[self.input[0], self.input[1], block.conv.inputs()])))
    }

    fn backward(&self, _: &mut Graph, _: &[TensorId], _: TensorId, _: TensorId) -> Result<Vec<Option<TensorId>>> {
        no_second_gradient(self.name())
    }

    fn reference(&self, args: &mut Reference<'_>) {
        let w = args.inputs.last().expect("it has operands");
        let channels = w.extents[2] * self.conv.groups;
        let conv =
            Geometry::new(&self.conv, [self.input[0], self.input[1], channels], [w.extents[0], w.extents[1], w.extents[2], w.extents[3]]);
        let block = Block::new(conv.expect("checked when the graph was built")).expect("checked when the graph was built");
        let g = &block.conv;
        args.output.fill(0.0);
        gradient(&block, args.batch, [0, 1, 2].map(|i| args.inputs[i].data), |n, pixel, o, _, dy| {
            for tap in 0..g.kernel[0] * g.kernel[1] {
                for c in 0..g.channels {
                    if let Some([x_at, w_at]) = g.at(n, pixel, [tap / g.kernel[1], tap % g.kernel[1]], o, c) {
                        args.output[x_at] += dy * w.data[w_at];
                    }
                }
            }
        });
    }

    fn cpu(&self, args: &mut Cpu<'_>) -> bool {
        let types: Vec<TensorType> = args.inputs.iter().map(|input| input.ty).collect();
        let w = args.inputs[types.len() - 1].f32();
        let dy = kernels::Dy { dy: args.inputs[0].f32(), y: args.inputs[1].f32(), place: args.inputs[2].u8() };
        kernels::input_grad(&self.known(&types), dy, w, args.output);
        true
    }

    fn launch(&self, inputs: &[TensorType], _output: TensorType) -> Launch {
        self.known(inputs).launch_over_input(kernel!("conv2d_relu_pool_input_grad"))
    }

    fn domain(&self, input: usize, inputs: &[TensorType]) -> (f64, f64) {
        domain(inputs[input])
    }

    fn terms(&self, inputs: &[TensorType], _batch: usize) -> usize {
        let geometry = self.known(inputs).conv;
        geometry.kernel[0] * geometry.kernel[1] * geometry.filters
    }

    fn flops(&self, inputs: &[TensorType], batch: usize) -> u64 {
        self.known(inputs).flops(batch)
    }
}

impl Conv2dReluPoolWeightGrad {
    fn block(&self, inputs: &[TensorType]) -> Result<Block> {
        let [x, dy] = [inputs[0], inputs[1]];
        let block = image("x", x).and_then(|image| {
            let channels = image[2].checked_div(self.conv.groups).unwrap_or(0).max(1);
            let geometry = Geometry::new(&self.conv, image, [self.kernel[0], self.kernel[1], channels, dy.shape.last()])?;
            grad::check_slices(self.slices, &geometry)?;
            let block = Block::new(geometry)?;
            block.agrees(dy, inputs[2], inputs[3]).map(|()| block)
        });
        block.map_err(|problem| mismatch(self.name(), problem, [("x", x, "(N, H, W, I)"), ("dy", dy, "(N, PH, PW, O)")]))
    }

    fn known(&self, inputs: &[TensorType]) -> Block {
        self.block(inputs).expect("shapes were checked when the graph was built")
    }
}

impl Rules for Conv2dReluPoolWeightGrad {
    fn name(&self) -> &'static str {
        "conv2d_relu_pool_weight_grad"
    }

    fn arity(&self) -> usize {
        4
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        let g = self.block(inputs)?.conv;
        Ok(TensorType::f32(Shape::fixed(&[self.slices, g.kernel[0], g.kernel[1], g.channels, g.outputs()])))
    }

    fn extra_outputs(&self, inputs: &[TensorType]) -> Vec<TensorType> {
        vec![TensorType::f32(Shape::fixed(&[self.slices, inputs[1].shape.last()]))]
    }

    fn backward(&self, _: &mut Graph, _: &[TensorId], _: TensorId, _: TensorId) -> Result<Vec<Option<TensorId>>> {
        no_second_gradient(self.name())
    }

    fn reference(&self, args: &mut Reference<'_>) {
        let types: Vec<TensorType> = args.inputs.iter().map(|view| type_of(&view.extents, true)).collect();
        let x = &args.inputs[0];
        let conv = Geometry::new(
            &self.conv,
            [x.extents[1], x.extents[2], x.extents[3]],
            [self.kernel[0], self.kernel[1], x.extents[3] / self.conv.groups, types[1].shape.last()],
        );
        let block = Block::new(conv.expect("checked when the graph was built")).expect("checked when the graph was built");
        let (g, outputs) = (&block.conv, block.conv.outputs());
        let run = (args.batch * block.pixels()).div_ceil(self.slices);
        args.output.fill(0.0);
        args.extra[0].fill(0.0);
        gradient(&block, args.batch, [1, 2, 3].map(|i| args.inputs[i].data), |n, pixel, o, y_pixel, dy| {
            let slice = y_pixel / run;
            args.extra[0][slice * outputs + o] += dy;
            for tap in 0..g.kernel[0] * g.kernel[1] {
                for c in 0..g.channels {
                    if let Some([x_at, w_at]) = g.at(n, pixel, [tap / g.kernel[1], tap % g.kernel[1]], o, c) {
                        args.output[slice * g.depth() * outputs + w_at] += dy * x.data[x_at];
                    }
                }
            }
        });
    }

    fn cpu(&self, args: &mut Cpu<'_>) -> bool {
        let types: Vec<TensorType> = args.inputs.iter().map(|input| input.ty).collect();
        let dy = kernels::Dy { dy: args.inputs[1].f32(), y: args.inputs[2].f32(), place: args.inputs[3].u8() };
        kernels::weight_grad(&self.known(&types), self.slices, args.inputs[0].f32(), dy, args.output, args.extra[0]);
        true
    }

    fn launch(&self, inputs: &[TensorType], _output: TensorType) -> Launch {
        self.known(inputs).launch_slices(kernel!("conv2d_relu_pool_weight_grad"), self.slices)
    }

    fn domain(&self, input: usize, inputs: &[TensorType]) -> (f64, f64) {
        domain(inputs[input])
    }

    fn terms(&self, inputs: &[TensorType], batch: usize) -> usize {
        (batch * self.known(inputs).pixels() * PLACES).div_ceil(self.slices).max(1)
    }

    fn flops(&self, inputs: &[TensorType], batch: usize) -> u64 {
        self.known(inputs).flops(batch)
    }
}

/// Places are 0 to 3; everything else is about 0, negative too, so that ReLU stops some of it.
fn domain(ty: TensorType) -> (f64, f64) {
    if ty.dtype == DType::U8 { (0.0, 3.0) } else { (-1.0, 1.0) }
}
