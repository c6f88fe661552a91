//! Sums over all axes but the last, left in slices: the part of a long sum that can be shared out, for who adds the slices anyway.

use crate::error::{Error, Result};
use crate::graph::{Graph, TensorId};
use crate::ops::{Launch, Reference, Rules, Workgroups, kernel, no_second_gradient};
use crate::shape::{DType, Shape, TensorType};

/// `y[s, c] = Σ x[row, c]` over the rows of slice `s` of x `[…, C]`: `[slices, C]`. The rows, over every axis but the last, are cut into
/// `slices` runs of equal length, the last ones shorter or empty. C is a multiple of 4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SumSlices {
    /// How many partial sums there are.
    pub slices: usize,
}

impl Rules for SumSlices {
    fn name(&self) -> &'static str {
        "sum_slices"
    }

    fn arity(&self) -> usize {
        1
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        let x = inputs[0];
        let channels = x.shape.last();
        if x.dtype == DType::F32 && !x.shape.inner().is_empty() && channels > 0 && channels.is_multiple_of(4) && self.slices > 0 {
            return Ok(TensorType::f32(Shape::fixed(&[self.slices, channels])));
        }
        let problem = format!("cannot sum {x} in {} slices", self.slices);
        Err(Error::Shape { op: self.name(), problem, operands: vec![("x", x, "(…, C) f32, C a multiple of 4")] })
    }

    fn backward(&self, _: &mut Graph, _: &[TensorId], _: TensorId, _: TensorId) -> Result<Vec<Option<TensorId>>> {
        no_second_gradient(self.name())
    }

    fn reference(&self, args: &mut Reference<'_>) {
        let x = &args.inputs[0];
        let channels = x.extents[x.extents.len() - 1];
        let run = (x.data.len() / channels).div_ceil(self.slices);
        args.output.fill(0.0);
        for (row, values) in x.data.chunks_exact(channels).enumerate() {
            let y = &mut args.output[row / run * channels..][..channels];
            y.iter_mut().zip(values).for_each(|(y, x)| *y += x);
        }
    }

    fn launch(&self, inputs: &[TensorType], _output: TensorType) -> Launch {
        let x = inputs[0].shape;
        let constants = vec![
            ("ROWS", (x.inner_len() / x.last()) as f64),
            ("COLUMNS", x.last() as f64),
            ("BATCHED", f64::from(x.is_batched())),
            ("SLICES", self.slices as f64),
        ];
        let workgroups = Workgroups { fixed: self.slices * x.last() / 4, per_image: 0, tile: 64, times: 1 };
        Launch { kernel: kernel!("sum_slices"), constants, workgroups }
    }

    fn terms(&self, inputs: &[TensorType], batch: usize) -> usize {
        (inputs[0].shape.len(batch) / inputs[0].shape.last()).div_ceil(self.slices).max(1)
    }

    fn flops(&self, inputs: &[TensorType], batch: usize) -> u64 {
        inputs[0].shape.len(batch) as u64
    }
}
