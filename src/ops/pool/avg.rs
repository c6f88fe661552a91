//! Mean pooling and its gradient, each an operator.

use super::{Pool, overlap, pool_of};
use crate::error::{Error, Result};
use crate::graph::{Graph, TensorId};
use crate::kernels;
use crate::ops::window::Window;
use crate::ops::{Cpu, Launch, Reference, Rules, kernel, no_second_gradient};
use crate::shape::TensorType;

/// `y[n, oy, ox, c]`, the mean of `x` `[N, H, W, C]` over the pixels of each window.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AvgPool2d {
    /// The window.
    pub window: Window,
}

/// `dx` of operand `dy`: each window's gradient is shared equally by its pixels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AvgPool2dGrad {
    /// The window.
    pub window: Window,
    /// Height and width of `x`.
    pub input: [usize; 2],
}

impl Rules for AvgPool2d {
    fn name(&self) -> &'static str {
        "avg_pool2d"
    }

    fn arity(&self) -> usize {
        1
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        Ok(Pool::check(self.name(), self.window, inputs[0])?.output_type())
    }

    fn backward(&self, graph: &mut Graph, inputs: &[TensorId], _y: TensorId, dy: TensorId) -> Result<Vec<Option<TensorId>>> {
        let input = Pool::of(self.window, graph.ty(inputs[0])).input;
        Ok(vec![Some(graph.apply(AvgPool2dGrad { window: self.window, input }, &[dy])?)])
    }

    fn reference(&self, args: &mut Reference<'_>) {
        let x = &args.inputs[0];
        pool_of(self.window, &x.extents).windows(args.batch, |o, pixels| {
            args.output[o] = pixels.iter().map(|&pixel| x.data[pixel]).sum::<f64>() / pixels.len() as f64;
        });
    }

    fn cpu(&self, args: &mut Cpu<'_>) -> bool {
        kernels::pool::avg(&Pool::of(self.window, args.inputs[0].ty), args.inputs[0].f32(), args.output);
        true
    }

    fn launch(&self, inputs: &[TensorType], output: TensorType) -> Launch {
        Pool::of(self.window, inputs[0]).launch(kernel!("avg_pool2d"), output)
    }

    fn terms(&self, _inputs: &[TensorType], _batch: usize) -> usize {
        self.window.kernel.iter().product()
    }

    fn flops(&self, inputs: &[TensorType], batch: usize) -> u64 {
        Pool::of(self.window, inputs[0]).seen(batch)
    }
}

impl AvgPool2dGrad {
    /// The pooling whose gradient this is, of `dy` `[N, OH, OW, C]`.
    fn pool(&self, dy: TensorType) -> Result<Pool, String> {
        let pool = Pool::new(self.window, self.input, dy.shape.last())?;
        if dy == pool.output_type() {
            return Ok(pool);
        }
        Err(format!("the pooling of {:?} pixels has shape {}, dy has {dy}", self.input, pool.output_type()))
    }
}

impl Rules for AvgPool2dGrad {
    fn name(&self) -> &'static str {
        "avg_pool2d_grad"
    }

    fn arity(&self) -> usize {
        1
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        match self.pool(inputs[0]) {
            Ok(pool) => Ok(pool.input_type()),
            Err(problem) => Err(Error::Shape { op: self.name(), problem, operands: vec![("dy", inputs[0], "(N, OH, OW, C) f32")] }),
        }
    }

    fn backward(&self, _: &mut Graph, _: &[TensorId], _: TensorId, _: TensorId) -> Result<Vec<Option<TensorId>>> {
        no_second_gradient(self.name())
    }

    fn reference(&self, args: &mut Reference<'_>) {
        let dy = &args.inputs[0];
        args.output.fill(0.0);
        let extents = [args.batch, self.input[0], self.input[1], dy.extents[3]];
        pool_of(self.window, &extents).windows(args.batch, |o, pixels| {
            pixels.iter().for_each(|&pixel| args.output[pixel] += dy.data[o] / pixels.len() as f64);
        });
    }

    fn cpu(&self, args: &mut Cpu<'_>) -> bool {
        let dy = args.inputs[0];
        let pool = self.pool(dy.ty).expect("windows were checked when the graph was built");
        kernels::pool::avg_grad(&pool, dy.f32(), args.output);
        true
    }

    fn launch(&self, inputs: &[TensorType], output: TensorType) -> Launch {
        let pool = self.pool(inputs[0]).expect("windows were checked when the graph was built");
        pool.launch(kernel!("avg_pool2d_grad"), output)
    }

    fn terms(&self, _inputs: &[TensorType], _batch: usize) -> usize {
        overlap(self.window)
    }

    fn flops(&self, inputs: &[TensorType], batch: usize) -> u64 {
        self.pool(inputs[0]).map_or(0, |pool| pool.seen(batch))
    }
}
