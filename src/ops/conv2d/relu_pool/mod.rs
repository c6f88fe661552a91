//! A convolution with what usually follows it, in one: bias, ReLU, and max-pooling by 2; and its two gradients.
//!
//! No user's graph holds these operators: `plan/fuse.rs` puts them in the place of the chains they equal, and nothing between
//! the images and the pooled result is ever stored, but the place of each window's maximum: one byte an element, 0 to 3 in
//! row-major order, the first where pixels tie, as in [`MaxPool2d`](crate::ops::MaxPool2d), and 4 where ReLU left nothing of it.
//!
//! The gradient of the convolution's own output is zero but at those places, and there that of the pooled result, where ReLU
//! lets it through; the gradients build it as they go and never store it either.

mod both;
mod grad;
mod registers;
#[cfg(test)]
mod tests;

pub use both::Conv2dReluPoolGrad;
pub use grad::{Conv2dReluPoolInputGrad, Conv2dReluPoolWeightGrad};

use super::Conv2d;
use super::geometry::{Geometry, image, mismatch, weight};
use crate::error::{Error, Result};
use crate::graph::{Graph, TensorId};
use crate::kernels::conv2d_relu_pool as kernels;
use crate::ops::stored::stored;
use crate::ops::{Cpu, Kernel, Launch, MatrixTiles, Reference, Rules, Tiles, Variant, Workgroups, kernel, no_second_gradient};
use crate::shape::{DType, Shape, TensorType};

/// `y = max_pool2d(relu(conv2d(x, w) + b))` of operands x `[N, H, W, I]`, w `[KH, KW, I, O]`, b `[O]`: `[N, PH, PW, O]`, and, extra,
/// the place of each maximum, u8 of the same shape, 0 to 3, or 4 where ReLU left nothing of it. Windows are 2×2 pixels and do not
/// overlap; an odd last row or column is dropped. The convolution has one group and a multiple of 4 filters. x and y may each be f16:
/// they are stored so, and summed in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2dReluPool {
    /// The convolution.
    pub conv: Conv2d,
    /// What y is stored as.
    pub output: DType,
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

    /// The type of y, or of what else has its shape.
    fn y(&self, dtype: DType) -> TensorType {
        let [h, w] = self.output();
        TensorType { shape: Shape::batched(&[h, w, self.conv.outputs()]), dtype }
    }

    /// Of the matrix product, over the pixels that pooling does not drop.
    fn flops(&self, batch: usize) -> u64 {
        2 * Geometry { output: self.output().map(|extent| extent * EDGE), ..self.conv }.multiply_adds(batch)
    }

    fn constants(&self, tiles: impl IntoIterator<Item = (&'static str, f64)>) -> Vec<(&'static str, f64)> {
        let mut constants = self.conv.constants();
        constants.retain(|(name, _)| !["OH", "OW", "GROUPS"].contains(name));
        let [h, w] = self.output();
        constants.extend([("PH", h as f64), ("PW", w as f64)]);
        constants.extend(tiles);
        constants
    }

    /// The tiled kernel whose rows are the places of y's pixels and whose columns the filters.
    fn launch_over(&self, kernel: Kernel, tiles: Tiles) -> Launch {
        let per_image = self.pixels() * PLACES;
        let workgroups = Workgroups { fixed: 0, per_image, tile: tiles.tile[0], times: tiles.across(self.conv.filters) };
        Launch { kernel, constants: self.constants(tiles.constants()), workgroups }
    }

    /// The tiled kernel whose rows are the pixels of x and whose columns its channels.
    fn launch_over_input(&self, kernel: Kernel, tiles: Tiles) -> Launch {
        let per_image = self.conv.input[0] * self.conv.input[1];
        let workgroups = Workgroups { fixed: 0, per_image, tile: tiles.tile[0], times: tiles.across(self.conv.channels) };
        Launch { kernel, constants: self.constants(tiles.constants()), workgroups }
    }

    /// The tiled kernel over so many rows of a weight, once for each slice.
    fn launch_slices(&self, kernel: Kernel, slices: usize, rows: usize, tiles: Tiles) -> Launch {
        let mut constants = self.constants(tiles.constants());
        constants.extend([("SLICES", slices as f64), ("PARTS", tiles.parts as f64)]);
        let of_slice = rows.div_ceil(tiles.tile[0]) * tiles.across(self.conv.filters);
        Launch { kernel, constants, workgroups: Workgroups::fixed(slices * of_slice) }
    }

    /// The launch of a kernel of cooperative matrices that has so many rows an image, and columns.
    fn launch_matrices(&self, kernel: Kernel, tiles: MatrixTiles, [per_image, columns]: [usize; 2]) -> Launch {
        let workgroups = Workgroups { fixed: 0, per_image, tile: tiles.tile[0], times: columns.div_ceil(tiles.tile[1]) };
        Launch { kernel, constants: self.constants(tiles.constants()), workgroups }
    }

    /// The pixel of the convolution's output at a place of y's pixel `[h, w]`.
    fn conv_pixel(&self, [h, w]: [usize; 2], place: usize) -> [usize; 2] {
        [h * EDGE + place / EDGE, w * EDGE + place % EDGE]
    }

    /// Whether dy and the places are of the shape that the block's result has.
    fn agrees(&self, dy: TensorType, place: TensorType) -> Result<(), String> {
        let shape = self.y(DType::F32).shape;
        if dy.dtype.is_float() && dy.shape == shape && place == self.y(DType::U8) {
            return Ok(());
        }
        Err(format!("dy is {dy} and the places {place}, but the pooled result is {shape}"))
    }
}

impl Conv2dReluPool {
    fn block(&self, inputs: &[TensorType]) -> Result<Block> {
        let [x, w, b] = [inputs[0], inputs[1], inputs[2]];
        let block = image("x", summed(x)).and_then(|x| Block::new(Geometry::new(&self.conv, x, weight(w)?)?)).and_then(|block| {
            let bias = TensorType::f32(Shape::fixed(&[block.conv.outputs()]));
            if b == bias { Ok(block) } else { Err(format!("the bias is {b}, expected {bias}")) }
        });
        block.map_err(|problem| mismatch(self.name(), problem, [("x", x, "(N, H, W, I)"), ("w", w, "(KH, KW, I, O)")]))
    }

    fn known(&self, inputs: &[TensorType]) -> Block {
        self.block(inputs).expect("shapes were checked when the graph was built")
    }

    fn stored(&self, kernel: Kernel, inputs: &[TensorType]) -> Kernel {
        stored(kernel, &[("X", inputs[0].dtype), ("Y", self.output)])
    }

    /// Whether channels come in fours.
    fn in_fours(&self, inputs: &[TensorType]) -> bool {
        inputs[0].shape.last().is_multiple_of(4)
    }

    /// The tiled kernel; with channels in fours the one that loads them so, which can have parts.
    fn tiled(&self, inputs: &[TensorType], tiles: Tiles) -> Launch {
        let block = self.known(inputs);
        if !self.in_fours(inputs) {
            return block.launch_over(self.stored(kernel!("conv2d_relu_pool"), inputs), tiles);
        }
        let mut launch = block.launch_over(self.stored(kernel!("conv2d_relu_pool_quads"), inputs), tiles);
        launch.constants.push(("PARTS", tiles.parts as f64));
        launch
    }

    fn usual(&self, inputs: &[TensorType]) -> Tiles {
        let block = self.known(inputs);
        let columns = block.conv.filters;
        if self.in_fours(inputs) { Tiles::usual_in_parts(block.pixels() * PLACES, columns) } else { Tiles::usual(columns) }
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
        let y = self.block(inputs)?.y(self.output);
        if y.dtype.is_float() {
            Ok(y)
        } else {
            Err(Error::invalid("what conv2d_relu_pool's output is stored as", format!("{:?}", y.dtype), "a float type"))
        }
    }

    fn extra_outputs(&self, inputs: &[TensorType]) -> Vec<TensorType> {
        vec![self.known(inputs).y(DType::U8)]
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
            args.extra[0][i] = if best.0 <= 0.0 { PLACES } else { best.1 } as f64;
        }
    }

    fn cpu(&self, args: &mut Cpu<'_>) -> bool {
        let [x, w, b] = [args.inputs[0], args.inputs[1], args.inputs[2]];
        if [x.ty.dtype, self.output].contains(&DType::F16) {
            return false;
        }
        let block = self.known(&[x.ty, w.ty, b.ty]);
        let places = &mut bytemuck::cast_slice_mut(args.extra[0])[..args.output.len()];
        kernels::forward(&block, x.f32(), [w.f32(), b.f32()], args.output, places, args.scratch);
        true
    }

    fn launch(&self, inputs: &[TensorType], _output: TensorType) -> Launch {
        self.tiled(inputs, self.usual(inputs))
    }

    fn variants(&self, inputs: &[TensorType], _output: TensorType) -> Vec<Variant> {
        let block = self.known(inputs);
        let columns = block.conv.filters;
        let fours = self.in_fours(inputs);
        let kernel = if fours { kernel!("conv2d_relu_pool_cooperative_quads") } else { kernel!("conv2d_relu_pool_cooperative") };
        let matrices =
            |tiles: MatrixTiles| block.launch_matrices(self.stored(tiles.cut(kernel), inputs), tiles, [block.pixels() * PLACES, columns]);
        let mut all = MatrixTiles::variants(&[inputs[0].dtype, self.output], columns, matrices);
        let legal = if fours { Tiles::in_parts } else { Tiles::any };
        all.extend(registers::forward(&block, inputs[0], self.output));
        all.extend(Tiles::variants(self.usual(inputs), columns, legal, |tiles| self.tiled(inputs, tiles)));
        all
    }

    fn terms(&self, inputs: &[TensorType], _batch: usize) -> usize {
        self.known(inputs).conv.depth() + 1
    }

    fn flops(&self, inputs: &[TensorType], batch: usize) -> u64 {
        self.known(inputs).flops(batch)
    }
}

/// The type that an operand is summed in, whatever float type it is stored as.
fn summed(ty: TensorType) -> TensorType {
    if ty.dtype == DType::F16 { TensorType::f32(ty.shape) } else { ty }
}

/// The type of a float operand as a reference sees it.
fn type_of(extents: &[usize], batched: bool) -> TensorType {
    TensorType::f32(if batched { Shape::batched(&extents[1..]) } else { Shape::fixed(extents) })
}
