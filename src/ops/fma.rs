//! Work that is nothing but multiply-adds in registers: what a device can do at most is measured with it.

use super::{LANES, Launch, Reference, Rules, Workgroups, kernel};
use crate::error::{Error, Result};
use crate::graph::{Graph, TensorId};
use crate::shape::{Shape, TensorType};

/// Chains that one invocation computes side by side: enough to hide the latency of a multiply-add, few enough for registers.
const CHAINS: usize = 12;

/// Multiply-adds of a chain; 8 in the body of the kernel's loop.
const STEPS: usize = 512;

/// `y[n, i] = Σ z[j]` over twelve chains `j`, each `z = a·z + b` 512 times over from `z = (i + j) / 256`, of one operand
/// `[a, b]`: `[N, 256]`. The batch is the number of workgroups.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FmaChains;

impl Rules for FmaChains {
    fn name(&self) -> &'static str {
        "fma_chains"
    }

    fn arity(&self) -> usize {
        1
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        if inputs[0] == TensorType::f32(Shape::fixed(&[2])) {
            return Ok(TensorType::f32(Shape::batched(&[LANES])));
        }
        let problem = format!("expected two numbers, got {}", inputs[0]);
        Err(Error::Shape { op: self.name(), problem, operands: vec![("ab", inputs[0], "(2) f32")] })
    }

    fn backward(&self, _: &mut Graph, _: &[TensorId], _: TensorId, _: TensorId) -> Result<Vec<Option<TensorId>>> {
        super::no_second_gradient(self.name())
    }

    fn reference(&self, args: &mut Reference<'_>) {
        let &[a, b] = args.inputs[0].data else { unreachable!("the operand was checked when the graph was built") };
        let chain = |i: usize, j: usize| (0..STEPS).fold((i + j) as f64 / LANES as f64, |z, _| a * z + b);
        for (place, y) in args.output.iter_mut().enumerate() {
            *y = (0..CHAINS).map(|j| chain(place % LANES, j)).sum();
        }
    }

    fn launch(&self, _inputs: &[TensorType], output: TensorType) -> Launch {
        let constants = vec![("STEPS", STEPS as f64)];
        Launch { kernel: kernel!("fma_chains"), constants, workgroups: Workgroups::over(output, LANES) }
    }

    // Chains that shrink: the sum keeps its digits.
    fn domain(&self, _input: usize, _inputs: &[TensorType]) -> (f64, f64) {
        (-0.5, 0.5)
    }

    fn terms(&self, _inputs: &[TensorType], _batch: usize) -> usize {
        CHAINS
    }

    fn flops(&self, _inputs: &[TensorType], batch: usize) -> u64 {
        (2 * CHAINS * STEPS * LANES * batch) as u64
    }
}
