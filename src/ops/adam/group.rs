//! Several parameters' steps of Adam in one dispatch, as PyTorch's multi-tensor optimisers take them.

use std::ops::Range;

use super::{Adam, check, flops, is_scaled, sharers, slices};
use crate::error::{Error, Result};
use crate::graph::{Graph, TensorId};
use crate::ops::{Cpu, LANES, Launch, Op, Reference, Rules, Workgroups, kernel};
use crate::shape::TensorType;

/// The most parameters of a group.
pub const GROUP: usize = 16;

/// The first operands, of which an operator updates as many as it has.
const UPDATED: [usize; 2 * GROUP] = {
    let mut all = [0; 2 * GROUP];
    let mut i = 0;
    while i < all.len() {
        all[i] = i;
        i += 1;
    }
    all
};

/// [`Adam`] for several parameters. Operands: every `param`, then the `moments` of each, then the `grad` of each, and `rate`. Each of the
/// three is a pack of tensors, so that the kernel has four bindings whatever the count.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamGroup {
    /// The settings of all.
    pub adam: Adam,
    /// How many parameters, 1 to [`GROUP`].
    pub count: usize,
}

impl AdamGroup {
    /// The operands of one of its parameters, as [`Adam`] has them.
    fn of(&self, i: usize) -> [usize; 4] {
        [i, self.count + i, 2 * self.count + i, 3 * self.count]
    }

    /// Each parameter with its gradient, and the operations of both.
    fn each<'a>(&'a self, inputs: &'a [TensorType]) -> impl Iterator<Item = [TensorType; 2]> + 'a {
        (0..self.count).map(|i| [inputs[i], inputs[2 * self.count + i]])
    }
}

/// The names of a kernel's constants of each parameter: its elements, the slices of its gradient, and who shares a sum of them.
const CONSTANTS: [[&str; 3]; GROUP] = [
    ["LEN0", "SLICES0", "SHARERS0"],
    ["LEN1", "SLICES1", "SHARERS1"],
    ["LEN2", "SLICES2", "SHARERS2"],
    ["LEN3", "SLICES3", "SHARERS3"],
    ["LEN4", "SLICES4", "SHARERS4"],
    ["LEN5", "SLICES5", "SHARERS5"],
    ["LEN6", "SLICES6", "SHARERS6"],
    ["LEN7", "SLICES7", "SHARERS7"],
    ["LEN8", "SLICES8", "SHARERS8"],
    ["LEN9", "SLICES9", "SHARERS9"],
    ["LEN10", "SLICES10", "SHARERS10"],
    ["LEN11", "SLICES11", "SHARERS11"],
    ["LEN12", "SLICES12", "SHARERS12"],
    ["LEN13", "SLICES13", "SHARERS13"],
    ["LEN14", "SLICES14", "SHARERS14"],
    ["LEN15", "SLICES15", "SHARERS15"],
];

impl Rules for AdamGroup {
    fn name(&self) -> &'static str {
        "adam_group"
    }

    fn arity(&self) -> usize {
        3 * self.count + 1
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        if !(1..=GROUP).contains(&self.count) {
            return Err(Error::invalid("parameters of adam_group", self.count, format!("1 to {GROUP}")));
        }
        self.adam.check(self.name())?;
        for i in 0..self.count {
            check(self.name(), ["param", "moments", "grad", "rate"], self.of(i).map(|operand| inputs[operand]))?;
        }
        Ok(inputs[0])
    }

    fn backward(&self, _: &mut Graph, _: &[TensorId], _: TensorId, _: TensorId) -> Result<Vec<Option<TensorId>>> {
        super::super::no_second_gradient(self.name())
    }

    fn reference(&self, args: &mut Reference<'_>) {
        let (params, moments) = args.updated.split_at_mut(self.count);
        for (i, (param, moments)) in params.iter_mut().zip(moments).enumerate() {
            self.adam.step(param, moments, args.inputs[2 * self.count + i].data, args.inputs[3 * self.count].data);
        }
    }

    fn cpu(&self, args: &mut Cpu<'_>) -> bool {
        let rate = args.inputs[3 * self.count].f32();
        if is_scaled(rate.len()) {
            return false;
        }
        let (params, moments) = args.updated.split_at_mut(self.count);
        for (i, (param, moments)) in params.iter_mut().zip(moments).enumerate() {
            self.adam.cpu_step(param, moments, args.inputs[2 * self.count + i].f32(), rate);
        }
        true
    }

    fn launch(&self, inputs: &[TensorType], _output: TensorType) -> Launch {
        let (mut constants, mut groups) = (Vec::new(), 0);
        for (names, [param, grad]) in CONSTANTS.iter().zip(self.each(inputs)) {
            let (len, slices) = (param.shape.inner_len(), slices(param, grad));
            let sharers = sharers(slices);
            constants.extend(names.iter().copied().zip([len, slices, sharers].map(|value| value as f64)));
            groups += len.div_ceil(LANES / sharers);
        }
        constants.extend(self.adam.constants(inputs[3 * self.count]));
        Launch { kernel: kernel!("adam_group"), constants, workgroups: Workgroups::fixed(groups) }
    }

    fn updates(&self) -> &[usize] {
        &UPDATED[..2 * self.count.min(GROUP)]
    }

    fn packs(&self) -> Vec<Range<usize>> {
        (0..3).map(|pack| pack * self.count..(pack + 1) * self.count).collect()
    }

    fn parts(&self) -> Vec<(Op, Vec<usize>)> {
        (0..self.count).map(|i| (self.adam.into(), self.of(i).to_vec())).collect()
    }

    // As those of one parameter.
    fn domain(&self, input: usize, _inputs: &[TensorType]) -> (f64, f64) {
        if (self.count..2 * self.count).contains(&input) || input == 3 * self.count { (0.01, 1.0) } else { (-1.0, 1.0) }
    }

    fn terms(&self, inputs: &[TensorType], _batch: usize) -> usize {
        self.each(inputs).map(|[param, grad]| slices(param, grad)).max().unwrap_or(1).max(1)
    }

    fn flops(&self, inputs: &[TensorType], _batch: usize) -> u64 {
        self.each(inputs).map(|[param, grad]| flops(param, grad)).sum()
    }
}
