//! Sums over axes, and their mirror image, repetition along axes.

mod slices;

use super::{Cpu, Launch, Reference, Rules, Variant, Workgroups, kernel};
use crate::error::{Error, Result};
use crate::graph::{Graph, TensorId};
use crate::kernels;
use crate::shape::{DType, MAX_RANK, Shape, TensorType};

pub use slices::SumSlices;

/// A set of axes, the batch being axis 0 of a batched tensor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Axes(u8);

impl Axes {
    /// The set of these axes; those past [`MAX_RANK`] are refused by the operators.
    pub fn new(axes: &[usize]) -> Self {
        Self(axes.iter().fold(0, |set, &axis| set | 1 << axis.min(7)))
    }

    /// Whether it holds `axis`.
    pub fn contains(self, axis: usize) -> bool {
        self.0 >> axis & 1 == 1
    }
}

/// `y[kept] = Σ x[…]` over the reduced axes, which vanish from the shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sum {
    /// The axes to sum over.
    pub axes: Axes,
}

impl Graph {
    /// Sums `x` over `axes` (axis 0 of a batched tensor is the batch). They vanish from the shape.
    pub fn sum(&mut self, x: TensorId, axes: &[usize]) -> Result<TensorId> {
        self.apply(Sum { axes: Axes::new(axes) }, &[x])
    }
}

impl Sum {
    /// Neighbouring axes of one kind taken together: `(extent, is summed)`, the batch's factor apart.
    fn groups(self, x: Shape) -> Vec<(usize, bool)> {
        let mut groups: Vec<(usize, bool)> = Vec::new();
        for (axis, extent) in x.extents(1).into_iter().enumerate() {
            let summed = self.axes.contains(axis);
            match groups.last_mut() {
                Some((product, kind)) if *kind == summed => *product *= extent,
                _ => groups.push((extent, summed)),
            }
        }
        groups
    }
}

impl Rules for Sum {
    fn name(&self) -> &'static str {
        "sum"
    }

    fn arity(&self) -> usize {
        1
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        let x = inputs[0];
        let rank = x.shape.rank();
        if x.dtype != DType::F32 || self.axes.0 == 0 || (rank..8).any(|axis| self.axes.contains(axis)) {
            let problem = format!("cannot sum over axes {:?} of {rank}", (0..8).filter(|&a| self.axes.contains(a)).collect::<Vec<_>>());
            return Err(Error::Shape { op: self.name(), problem, operands: vec![("x", x, "one axis or more, f32")] });
        }
        let batched = usize::from(x.shape.is_batched());
        let kept: Vec<usize> =
            x.shape.inner().iter().enumerate().filter(|(i, _)| !self.axes.contains(i + batched)).map(|(_, &extent)| extent).collect();
        let keeps_batch = batched == 1 && !self.axes.contains(0);
        Ok(TensorType::f32(if keeps_batch { Shape::batched(&kept) } else { Shape::fixed(&kept) }))
    }

    fn backward(&self, graph: &mut Graph, inputs: &[TensorId], _: TensorId, dy: TensorId) -> Result<Vec<Option<TensorId>>> {
        let shape = graph.shape(inputs[0]);
        Ok(vec![Some(graph.apply(Broadcast { shape, axes: self.axes }, &[dy])?)])
    }

    fn reference(&self, args: &mut Reference<'_>) {
        let x = &args.inputs[0];
        args.output.fill(0.0);
        for (i, value) in x.data.iter().enumerate() {
            args.output[kept_index(i, &x.extents, self.axes)] += value;
        }
    }

    fn cpu(&self, args: &mut Cpu<'_>) -> bool {
        let x = args.inputs[0];
        let mut groups = self.groups(x.ty.shape);
        if x.ty.shape.is_batched() {
            groups[0].0 *= args.batch;
        }
        match groups[..] {
            [(_, true)] => kernels::reduce::sum_rows(x.f32(), 1, args.output),
            [(_, true), (columns, false)] => kernels::reduce::sum_rows(x.f32(), columns, args.output),
            _ => return false,
        }
        true
    }

    fn launch(&self, inputs: &[TensorType], output: TensorType) -> Launch {
        let x = inputs[0].shape;
        let groups = self.groups(x);
        let extent = |i: usize| groups.get(i).map_or(1.0, |&(extent, _)| extent as f64);
        // Eight neighbouring outputs a workgroup fill a memory sector where the last axis stays.
        let outputs = if groups.last().is_some_and(|&(_, summed)| summed) { 1 } else { 8 };
        let constants = vec![
            ("E0", extent(0)),
            ("E1", extent(1)),
            ("E2", extent(2)),
            ("E3", extent(3)),
            ("E4", extent(4)),
            ("FIRST_SUMMED", f64::from(groups[0].1)),
            ("BATCHED", f64::from(x.is_batched())),
            ("OUTPUTS", outputs as f64),
        ];
        Launch { kernel: kernel!("sum"), constants, workgroups: Workgroups::over(output, outputs) }
    }

    // Over leading axes, four neighbours an invocation: where there are so many that they keep an adapter busy.
    fn variants(&self, inputs: &[TensorType], _output: TensorType) -> Vec<Variant> {
        let x = inputs[0].shape;
        let [(terms, true), (columns, false)] = self.groups(x)[..] else { return Vec::new() };
        if !columns.is_multiple_of(4) || columns < 256 {
            return Vec::new();
        }
        let constants = vec![("TERMS", terms as f64), ("COLUMNS", columns as f64), ("BATCHED", f64::from(x.is_batched()))];
        let workgroups = Workgroups { fixed: columns / 4, per_image: 0, tile: 64, times: 1 };
        Variant::registers(Launch { kernel: kernel!("sum_registers"), constants, workgroups })
    }

    fn terms(&self, inputs: &[TensorType], batch: usize) -> usize {
        let extents = inputs[0].shape.extents(batch);
        extents.iter().enumerate().filter(|(axis, _)| self.axes.contains(*axis)).map(|(_, extent)| extent).product()
    }

    fn flops(&self, inputs: &[TensorType], batch: usize) -> u64 {
        inputs[0].shape.len(batch) as u64
    }
}

/// Where the element at flat index `i` of a tensor goes when `axes` vanish.
fn kept_index(mut i: usize, extents: &[usize], axes: Axes) -> usize {
    let (mut index, mut stride) = (0, 1);
    for (axis, extent) in extents.iter().enumerate().rev() {
        if !axes.contains(axis) {
            index += i % extent * stride;
            stride *= extent;
        }
        i /= extent;
    }
    index
}

/// `y[…] = x[kept]`: the input repeated along `axes` of the output; what [`Sum`] turns into in a gradient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broadcast {
    /// The output's shape.
    pub shape: Shape,
    /// The axes of the output that the input lacks.
    pub axes: Axes,
}

impl Rules for Broadcast {
    fn name(&self) -> &'static str {
        "broadcast"
    }

    fn arity(&self) -> usize {
        1
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        let y = TensorType::f32(self.shape);
        if (Sum { axes: self.axes }).infer(&[y])? == inputs[0] {
            return Ok(y);
        }
        let problem = format!("{} without the repeated axes is not {}", self.shape, inputs[0]);
        Err(Error::Shape { op: self.name(), problem, operands: vec![("x", inputs[0], "the axes kept, f32")] })
    }

    fn backward(&self, graph: &mut Graph, _: &[TensorId], _: TensorId, dy: TensorId) -> Result<Vec<Option<TensorId>>> {
        Ok(vec![Some(graph.apply(Sum { axes: self.axes }, &[dy])?)])
    }

    fn reference(&self, args: &mut Reference<'_>) {
        let extents = self.shape.extents(args.batch);
        for (i, y) in args.output.iter_mut().enumerate() {
            *y = args.inputs[0].data[kept_index(i, &extents, self.axes)];
        }
    }

    fn launch(&self, _inputs: &[TensorType], output: TensorType) -> Launch {
        let groups = Sum { axes: self.axes }.groups(self.shape);
        let extent = |i: usize| groups.get(i).map_or(1.0, |&(extent, _)| extent as f64);
        let constants = vec![
            ("E0", extent(0)),
            ("E1", extent(1)),
            ("E2", extent(2)),
            ("E3", extent(3)),
            ("E4", extent(4)),
            ("FIRST_REPEATED", f64::from(groups[0].1)),
            ("BATCHED", f64::from(self.shape.is_batched())),
        ];
        Launch { kernel: kernel!("broadcast"), constants, workgroups: Workgroups::over(output, super::LANES) }
    }

    fn flops(&self, _inputs: &[TensorType], _batch: usize) -> u64 {
        0
    }
}

const _: () = assert!(MAX_RANK <= 5, "sum.wgsl and broadcast.wgsl hold five axes");
