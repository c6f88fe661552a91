//! The two gradients of a convolution with ReLU and pooling, each an operator.

use super::super::geometry::{Geometry, image, mismatch, weight};
use super::super::{Conv2d, grad};
use super::{Block, PLACES, registers, summed, type_of};
use crate::error::{Error, Result};
use crate::graph::{Graph, TensorId};
use crate::kernels::conv2d_relu_pool as kernels;
use crate::ops::stored::stored;
use crate::ops::{Cpu, Kernel, Launch, MatrixTiles, Reference, Rules, Tiles, Variant, Workgroups, kernel, no_second_gradient};
use crate::shape::{DType, Shape, TensorType};

/// Gradient of a [`Conv2dReluPool`](super::Conv2dReluPool) for its images: dx `[N, H, W, I]` of operands dy, the places, and w.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2dReluPoolInputGrad {
    /// The convolution.
    pub conv: Conv2d,
    /// H and W of its images.
    pub input: [usize; 2],
    /// What dx is stored as.
    pub output: DType,
}

/// Gradient of a [`Conv2dReluPool`](super::Conv2dReluPool) for its weight and bias, as partial sums: dw `[slices, KH, KW, I, O]` and, extra, db
/// `[slices, O]` of operands x, dy, and the places. The `N·PH·PW` pixels of y are cut into `slices` runs of equal
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

/// What ReLU and pooling let through of dy to one element of the convolution's output.
fn through(dy: f64, place: f64, here: usize) -> f64 {
    if place != here as f64 { 0.0 } else { dy }
}

/// Calls `each(n, pixel of the convolution's output, filter, pixel of y over the batch, gradient there)`.
fn gradient(block: &Block, batch: usize, [dy, place]: [&[f64]; 2], mut each: impl FnMut(usize, [usize; 2], usize, usize, f64)) {
    let outputs = block.conv.outputs();
    for pixel in 0..batch * block.pixels() {
        let [n, h, w] = [pixel / block.pixels(), pixel / block.output()[1] % block.output()[0], pixel % block.output()[1]];
        for here in 0..PLACES {
            for o in 0..outputs {
                let i = pixel * outputs + o;
                each(n, block.conv_pixel([h, w], here), o, pixel, through(dy[i], place[i], here));
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
            block.agrees(dy, inputs[1]).map(|()| block)
        });
        block.map_err(|problem| mismatch(self.name(), problem, [("dy", dy, "(N, PH, PW, O)"), ("w", w, "(KH, KW, I, O)")]))
    }

    fn known(&self, inputs: &[TensorType]) -> Block {
        self.block(inputs).expect("shapes were checked when the graph was built")
    }

    fn stored(&self, kernel: Kernel, inputs: &[TensorType]) -> Kernel {
        stored(kernel, &[("DY", inputs[0].dtype), ("DX", self.output)])
    }

    /// The launch of the tiled kernel.
    fn tiled(&self, block: &Block, inputs: &[TensorType], tiles: Tiles) -> Launch {
        let mut launch = block.launch_over_input(self.stored(kernel!("conv2d_relu_pool_input_grad"), inputs), tiles);
        launch.constants.push(("PARTS", tiles.parts as f64));
        launch
    }

    fn usual(&self, block: &Block) -> Tiles {
        Tiles::usual_in_parts(self.input[0] * self.input[1], block.conv.channels)
    }
}

impl Rules for Conv2dReluPoolInputGrad {
    fn name(&self) -> &'static str {
        "conv2d_relu_pool_input_grad"
    }

    fn arity(&self) -> usize {
        3
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        let block = self.block(inputs)?;
        let shape = Shape::batched(&[self.input[0], self.input[1], block.conv.inputs()]);
        if self.output.is_float() {
            return Ok(TensorType { shape, dtype: self.output });
        }
        let what = format!("what {}'s output is stored as", self.name());
        Err(Error::invalid(what, format!("{:?}", self.output), "a float type"))
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
        gradient(&block, args.batch, [0, 1].map(|i| args.inputs[i].data), |n, pixel, o, _, dy| {
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
        if types.iter().any(|ty| ty.dtype == DType::F16) || self.output == DType::F16 {
            return false;
        }
        let w = args.inputs[types.len() - 1].f32();
        let dy = kernels::Dy { dy: args.inputs[0].f32(), place: args.inputs[1].u8() };
        kernels::input_grad(&self.known(&types), dy, w, args.output, args.scratch);
        true
    }

    fn launch(&self, inputs: &[TensorType], _output: TensorType) -> Launch {
        let block = self.known(inputs);
        self.tiled(&block, inputs, self.usual(&block))
    }

    fn variants(&self, inputs: &[TensorType], _output: TensorType) -> Vec<Variant> {
        let block = self.known(inputs);
        let (columns, launch) = (block.conv.channels, |tiles| self.tiled(&block, inputs, tiles));
        let matrices = |tiles: MatrixTiles| {
            let kernel = tiles.cut(kernel!("conv2d_relu_pool_input_grad_cooperative"));
            block.launch_matrices(self.stored(kernel, inputs), tiles, [block.conv.input.iter().product(), columns])
        };
        let mut all = MatrixTiles::variants(&[inputs[0].dtype, self.output], columns, matrices);
        all.extend(registers::input_grad(&block, inputs[0], self.output));
        all.extend(Tiles::variants(self.usual(&block), columns, Tiles::in_parts, launch));
        all
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
        let block = image("x", summed(x)).and_then(|image| {
            let channels = image[2].checked_div(self.conv.groups).unwrap_or(0).max(1);
            let geometry = Geometry::new(&self.conv, image, [self.kernel[0], self.kernel[1], channels, dy.shape.last()])?;
            grad::check_slices(self.slices, &geometry)?;
            let block = Block::new(geometry)?;
            block.agrees(dy, inputs[2]).map(|()| block)
        });
        block.map_err(|problem| mismatch(self.name(), problem, [("x", x, "(N, H, W, I)"), ("dy", dy, "(N, PH, PW, O)")]))
    }

    pub(super) fn known(&self, inputs: &[TensorType]) -> Block {
        self.block(inputs).expect("shapes were checked when the graph was built")
    }

    fn stored(kernel: Kernel, inputs: &[TensorType]) -> Kernel {
        stored(kernel, &[("X", inputs[0].dtype), ("DY", inputs[1].dtype)])
    }

    fn kernel(&self, inputs: &[TensorType]) -> Kernel {
        Self::stored(kernel!("conv2d_relu_pool_weight_grad"), inputs)
    }

    /// The launch of the tiled kernel, which has one row more than dw: db.
    fn tiled(&self, block: &Block, inputs: &[TensorType], tiles: Tiles) -> Launch {
        block.launch_slices(self.kernel(inputs), self.slices, block.conv.depth() + 1, tiles)
    }

    fn usual(block: &Block) -> Tiles {
        Tiles::usual_of_rows(block.conv.depth() + 1)
    }

    /// The launch of the kernel of cooperative matrices.
    fn launch_matrices(&self, block: &Block, inputs: &[TensorType], tiles: MatrixTiles) -> Launch {
        let kernel = if block.conv.channels.is_multiple_of(4) {
            kernel!("conv2d_relu_pool_weight_grad_cooperative_quads")
        } else {
            kernel!("conv2d_relu_pool_weight_grad_cooperative")
        };
        let kernel = Self::stored(tiles.cut(kernel), inputs);
        let mut constants = block.constants(tiles.constants());
        constants.push(("SLICES", self.slices as f64));
        let count = block.conv.depth().div_ceil(tiles.tile[0]) * block.conv.filters.div_ceil(tiles.tile[1]);
        Launch { kernel, constants, workgroups: Workgroups::fixed(self.slices * count) }
    }
}

impl Rules for Conv2dReluPoolWeightGrad {
    fn name(&self) -> &'static str {
        "conv2d_relu_pool_weight_grad"
    }

    fn arity(&self) -> usize {
        3
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
        gradient(&block, args.batch, [1, 2].map(|i| args.inputs[i].data), |n, pixel, o, y_pixel, dy| {
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
        if types.iter().any(|ty| ty.dtype == DType::F16) {
            return false;
        }
        let dy = kernels::Dy { dy: args.inputs[1].f32(), place: args.inputs[2].u8() };
        kernels::weight_grad(&self.known(&types), self.slices, args.inputs[0].f32(), dy, (args.output, args.extra[0]), args.scratch);
        true
    }

    fn launch(&self, inputs: &[TensorType], _output: TensorType) -> Launch {
        let block = self.known(inputs);
        self.tiled(&block, inputs, Self::usual(&block))
    }

    fn variants(&self, inputs: &[TensorType], _output: TensorType) -> Vec<Variant> {
        let block = self.known(inputs);
        let (columns, launch) = (block.conv.filters, |tiles| self.tiled(&block, inputs, tiles));
        let matrices = |tiles| self.launch_matrices(&block, inputs, tiles);
        let mut all = MatrixTiles::variants(&inputs[..2].iter().map(|ty| ty.dtype).collect::<Vec<_>>(), columns, matrices);
        all.extend(registers::weight_grad(&block, self.slices, [inputs[0], inputs[1]]));
        all.extend(Tiles::variants(Self::usual(&block), columns, Tiles::in_parts_of_one_row_each, launch));
        all
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

/// Places are 0 to 4; everything else is about 0.
pub(super) fn domain(ty: TensorType) -> (f64, f64) {
    if ty.dtype == DType::U8 { (0.0, 4.0) } else { (-1.0, 1.0) }
}
