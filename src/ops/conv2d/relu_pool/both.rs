//! Both gradients of a convolution with ReLU and pooling in one dispatch: neither waits for the other.

use super::super::Conv2d;
use super::{Block, Conv2dReluPoolInputGrad, Conv2dReluPoolWeightGrad};
use crate::error::Result;
use crate::graph::{Graph, TensorId};
use crate::kernels::conv2d_relu_pool as kernels;
use crate::ops::{Cpu, Launch, Reference, Rules, Style, Tiles, Variant, Workgroups, kernel, no_second_gradient};
use crate::shape::{DType, TensorType};

/// What [`Conv2dReluPoolWeightGrad`] and [`Conv2dReluPoolInputGrad`] compute: dw `[slices, KH, KW, I, O]` and, extra, db `[slices, O]` and dx
/// `[N, H, W, I]` of operands x, dy, the places, and w. All floats are f32, and I is a multiple of 4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2dReluPoolGrad {
    /// The convolution.
    pub conv: Conv2d,
    /// How many partial sums there are of dw and db.
    pub slices: usize,
}

impl Conv2dReluPoolGrad {
    /// The two operators for images of these extents and a weight of these, axes in order.
    fn halves(&self, x: &[usize], w: &[usize]) -> (Conv2dReluPoolWeightGrad, Conv2dReluPoolInputGrad) {
        let extent = |extents: &[usize], axis: usize| extents.get(axis).copied().unwrap_or(0); // what does not fit is refused by both
        let weight = Conv2dReluPoolWeightGrad { conv: self.conv, kernel: [extent(w, 0), extent(w, 1)], slices: self.slices };
        (weight, Conv2dReluPoolInputGrad { conv: self.conv, input: [extent(x, 0), extent(x, 1)], output: DType::F32 })
    }

    fn of(&self, inputs: &[TensorType]) -> (Conv2dReluPoolWeightGrad, Conv2dReluPoolInputGrad) {
        self.halves(inputs[0].shape.inner(), inputs[3].shape.inner())
    }

    fn block(&self, inputs: &[TensorType]) -> Block {
        self.of(inputs).0.known(inputs)
    }

    /// The launch with these tiles of dw and of dx.
    fn tiled(&self, inputs: &[TensorType], [of_weight, of_input]: [Tiles; 2]) -> Launch {
        let block = self.block(inputs);
        let kernel = kernel!("conv2d_relu_pool_grad");
        let Launch { mut constants, workgroups: first, .. } = block.launch_slices(kernel, self.slices, block.conv.depth(), of_weight);
        let rest = block.launch_over_input(kernel, of_input).workgroups;
        let [rows, columns] = of_input.tile;
        constants.extend([("TILE_MX", rows), ("TILE_NX", columns)].map(|(name, value)| (name, value as f64)));
        let fixed = first.count(0).div_ceil(rest.times) * rest.tile;
        Launch { kernel, constants, workgroups: Workgroups { fixed, ..rest } }
    }

    fn usual(&self, inputs: &[TensorType]) -> [Tiles; 2] {
        // Those of dx for both: dw has slices, as many as it takes.
        let conv = self.block(inputs).conv;
        [Tiles::usual_in_parts(conv.input[0] * conv.input[1], conv.channels); 2]
    }
}

impl Rules for Conv2dReluPoolGrad {
    fn name(&self) -> &'static str {
        "conv2d_relu_pool_grad"
    }

    fn arity(&self) -> usize {
        4
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        let (weight, input) = self.of(inputs);
        let dx = input.infer(&inputs[1..])?;
        let dw = weight.infer(&inputs[..3])?;
        let problem = match inputs[..2].iter().find(|ty| ty.dtype != DType::F32) {
            Some(stored) => format!("an operand is {stored}, expected f32: what is stored as f16 is for either operator alone"),
            None if dx.shape != inputs[0].shape => format!("x is {}, but w has dx {}", inputs[0], dx.shape),
            None if dx.shape.last().is_multiple_of(4) => return Ok(dw),
            None => format!("x has {} channels, expected a multiple of 4: other gradients are for either operator alone", dx.shape.last()),
        };
        let operands = vec![("x", inputs[0], "(N, H, W, I)"), ("dy", inputs[1], "(N, PH, PW, O)"), ("w", inputs[3], "(KH, KW, I, O)")];
        Err(crate::Error::Shape { op: self.name(), problem, operands })
    }

    fn extra_outputs(&self, inputs: &[TensorType]) -> Vec<TensorType> {
        self.of(inputs).0.extra_outputs(&inputs[..3]).into_iter().chain([inputs[0]]).collect()
    }

    fn backward(&self, _: &mut Graph, _: &[TensorId], _: TensorId, _: TensorId) -> Result<Vec<Option<TensorId>>> {
        no_second_gradient(self.name())
    }

    fn reference(&self, args: &mut Reference<'_>) {
        let (weight, input) = self.halves(&args.inputs[0].extents[1..], &args.inputs[3].extents);
        let [db, dx] = &mut args.extra[..] else { unreachable!("it has two extra outputs") };
        let (batch, inputs) = (args.batch, &args.inputs);
        let whole = |inputs: &[_], output, extra| Reference { batch, inputs: inputs.to_vec(), updated: Vec::new(), output, extra };
        weight.reference(&mut whole(&inputs[..3], &mut *args.output, vec![&mut **db]));
        input.reference(&mut whole(&inputs[1..], &mut **dx, Vec::new()));
    }

    fn cpu(&self, args: &mut Cpu<'_>) -> bool {
        let types: Vec<TensorType> = args.inputs.iter().map(|input| input.ty).collect();
        let (block, [x, w]) = (self.block(&types), [0, 3].map(|i| args.inputs[i].f32()));
        let dy = || kernels::Dy { dy: args.inputs[1].f32(), place: args.inputs[2].u8() };
        let [db, dx] = &mut args.extra[..] else { unreachable!("it has two extra outputs") };
        kernels::weight_grad(&block, self.slices, x, dy(), (&mut *args.output, &mut **db), args.scratch);
        kernels::input_grad(&block, dy(), w, dx, args.scratch);
        true
    }

    fn launch(&self, inputs: &[TensorType], _output: TensorType) -> Launch {
        self.tiled(inputs, self.usual(inputs))
    }

    fn variants(&self, inputs: &[TensorType], _output: TensorType) -> Vec<Variant> {
        let conv = self.block(inputs).conv;
        let pairs = Tiles::pairs(self.usual(inputs), [conv.filters, conv.channels]).into_iter();
        let variant = |tiles: [Tiles; 2]| {
            let launch = self.tiled(inputs, tiles);
            let [[rows, columns], [rows_x, columns_x]] = tiles.map(|tiles| tiles.tile);
            let name = format!("{}/{rows}x{columns}+{rows_x}x{columns_x}x{}", launch.kernel.name, tiles[0].shares());
            Variant { name, style: Style::Portable, matrices: None, launch }
        };
        pairs.map(variant).collect()
    }

    fn domain(&self, input: usize, inputs: &[TensorType]) -> (f64, f64) {
        super::grad::domain(inputs[input])
    }

    fn terms(&self, inputs: &[TensorType], batch: usize) -> usize {
        let (weight, input) = self.of(inputs);
        weight.terms(&inputs[..3], batch).max(input.terms(&inputs[1..], batch))
    }

    fn flops(&self, inputs: &[TensorType], batch: usize) -> u64 {
        2 * self.block(inputs).flops(batch)
    }
}
