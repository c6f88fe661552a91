//! Two parameters' steps of Adam in one dispatch: as many as fit the eight bindings that a kernel may have.

use super::{Adam, check, flops, is_scaled, sharers, slices};
use crate::error::Result;
use crate::graph::{Graph, TensorId};
use crate::ops::{Cpu, LANES, Launch, Reference, Rules, Workgroups, kernel};
use crate::shape::TensorType;

/// [`Adam`] for two parameters. Operands `param`, `moments` and `grad` of the first, those of the second, and `rate`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamPair {
    /// The settings of both.
    pub adam: Adam,
}

impl Rules for AdamPair {
    fn name(&self) -> &'static str {
        "adam_pair"
    }

    fn arity(&self) -> usize {
        7
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        self.adam.check(self.name())?;
        check(self.name(), ["param 0", "moments 0", "grad 0", "rate"], [inputs[0], inputs[1], inputs[2], inputs[6]])?;
        check(self.name(), ["param 1", "moments 1", "grad 1", "rate"], [inputs[3], inputs[4], inputs[5], inputs[6]])?;
        Ok(inputs[0])
    }

    fn backward(&self, _: &mut Graph, _: &[TensorId], _: TensorId, _: TensorId) -> Result<Vec<Option<TensorId>>> {
        super::super::no_second_gradient(self.name())
    }

    fn reference(&self, args: &mut Reference<'_>) {
        let rate = args.inputs[6].data;
        for (pair, grad) in args.updated.chunks_exact_mut(2).zip([2, 5]) {
            let [param, moments] = pair else { unreachable!("it comes in pairs") };
            self.adam.step(param, moments, args.inputs[grad].data, rate);
        }
    }

    fn cpu(&self, args: &mut Cpu<'_>) -> bool {
        let rate = args.inputs[6].f32();
        if is_scaled(rate.len()) {
            return false;
        }
        for (pair, grad) in args.updated.chunks_exact_mut(2).zip([2, 5]) {
            let [param, moments] = pair else { unreachable!("it comes in pairs") };
            self.adam.cpu_step(param, moments, args.inputs[grad].f32(), rate);
        }
        true
    }

    fn launch(&self, inputs: &[TensorType], _output: TensorType) -> Launch {
        let slices = [slices(inputs[0], inputs[2]), slices(inputs[3], inputs[5])];
        let sharers = sharers(slices[0].max(slices[1]));
        let groups = [0, 3].map(|i| inputs[i].shape.inner_len().div_ceil(LANES / sharers));
        let mut constants = vec![
            ("LEN0", inputs[0].shape.inner_len() as f64),
            ("LEN1", inputs[3].shape.inner_len() as f64),
            ("SLICES0", slices[0] as f64),
            ("SLICES1", slices[1] as f64),
            ("SHARERS", sharers as f64),
            ("GROUPS0", groups[0] as f64),
        ];
        constants.extend(self.adam.constants(inputs[6]));
        Launch { kernel: kernel!("adam_pair"), constants, workgroups: Workgroups::fixed(groups[0] + groups[1]) }
    }

    fn updates(&self) -> &[usize] {
        &[0, 1, 3, 4]
    }

    // As those of one parameter.
    fn domain(&self, input: usize, _inputs: &[TensorType]) -> (f64, f64) {
        if matches!(input, 1 | 4 | 6) { (0.01, 1.0) } else { (-1.0, 1.0) }
    }

    fn terms(&self, inputs: &[TensorType], _batch: usize) -> usize {
        slices(inputs[0], inputs[2]).max(slices(inputs[3], inputs[5])).max(1)
    }

    fn flops(&self, inputs: &[TensorType], _batch: usize) -> u64 {
        flops(inputs[0], inputs[2]) + flops(inputs[3], inputs[5])
    }
}
