//! Dynamic loss scaling (Micikevicius et al. 2018, section 3.2), on the device alone: gradients are scaled by a power of two so that f16
//! can hold them; a step in which one overflows changes no parameter and halves the scale; after some steps in which none does,
//! it doubles.
//!
//! All that it needs is in a longer `rate`, which [`Adam`](super::Adam) takes in the place of the usual one. Its elements:
//!
//! | | |
//! |---|---|
//! | 0 to 3 | as without scaling: the learning rate, 1 - β1ᵗ, 1 - β2ᵗ, and what is left of rounding the last |
//! | 4 | 1 / scale |
//! | 5 | 1 if a gradient of this step has overflowed, else 0 |
//! | 6 | steps without overflow since the scale was changed |
//! | 7 | nothing |

use super::step::{Expected, check as check_tick, expect, record};
use super::{Launch, Reference, Rules, Workgroups, kernel};
use crate::error::{Error, Result};
use crate::graph::{Graph, TensorId};
use crate::shape::{Shape, TensorType};

/// Gradients that one [`Overflow`] looks at.
pub const OVERFLOW_OPERANDS: usize = 4;

/// The largest number of f16. Drivers differ in whether what is larger becomes this or an infinity, so this counts as overflow too.
const LARGEST: f64 = 65_504.0;

/// The first scale, 2¹⁵.
const FIRST: f32 = 32_768.0;

/// The largest scale, 2²⁴; the least is its inverse.
const MOST: f64 = 16_777_216.0;

/// Sets element 5 of a scaled `rate` to 1 if an element of a gradient is NaN, infinite or the largest that f16 has. Operands: four
/// batched f16 gradients, of which the last may repeat the first, then `rate` `[8]`, which is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overflow {
    /// How many of the gradients are different, 1 to 4.
    pub count: usize,
}

/// The end of a training step with a scaled loss: what [`Tick`](super::Tick) does if nothing has overflowed, else that without the next
/// `rate`; and the scale for the next step. Operands as there, `rate` being `[8]`, then `loss_scale`, one number, which is
/// changed too.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScaledTick {
    /// As in [`Adam`](super::Adam).
    pub beta1: f64,
    /// As in [`Adam`](super::Adam).
    pub beta2: f64,
    /// Steps without overflow after which the scale doubles.
    pub growth_interval: u32,
}

impl super::Adam {
    /// What a scaled `rate` `[8]` holds before the first step.
    pub fn first_scaled_rate(&self, learning_rate: f32) -> [f32; 8] {
        let [lr, u1, u2, rest] = self.first_rate(learning_rate);
        [lr, u1, u2, rest, 1.0 / FIRST, 0.0, 0.0, 0.0]
    }

    /// The end of a step of this optimiser with a scaled loss. The scale doubles after 2,000 steps without overflow, as PyTorch has it.
    pub fn scaled_tick(&self) -> ScaledTick {
        ScaledTick { beta1: self.beta1, beta2: self.beta2, growth_interval: 2000 }
    }
}

/// The type of a scaled rate.
pub(super) fn scaled_rate_type() -> TensorType {
    TensorType::f32(Shape::fixed(&[8]))
}

pub(super) const SCALED_RATE: &str = "(8) f32";

impl Graph {
    /// Notes in a scaled `rate` whether one of these gradients, batched tensors of f16, has overflowed. Comes before the optimiser,
    /// and returns effects: roots for a plan.
    ///
    /// # Errors
    /// If a gradient is not batched or not f16, or `rate` is of another shape.
    pub fn overflow(&mut self, gradients: &[TensorId], rate: TensorId) -> Result<Vec<TensorId>> {
        let effect = |some: &[TensorId]| {
            let operand = |i: usize| some.get(i).copied().unwrap_or(some[0]);
            self.apply(Overflow { count: some.len() }, &[operand(0), operand(1), operand(2), operand(3), rate])
        };
        gradients.chunks(OVERFLOW_OPERANDS).map(effect).collect()
    }

    /// Ends a training step with a scaled loss, see [`ScaledTick`]. Returns an effect.
    ///
    /// # Errors
    /// If the shapes are others, a decay is not in `0..1`, or the interval is 0.
    pub fn scaled_tick(
        &mut self,
        tick: ScaledTick,
        [loss, correct]: [TensorId; 2],
        clock: TensorId,
        log: TensorId,
        [rate, loss_scale]: [TensorId; 2],
    ) -> Result<TensorId> {
        self.apply(tick, &[loss, correct, clock, log, rate, loss_scale])
    }
}

impl Rules for Overflow {
    fn name(&self) -> &'static str {
        "overflow"
    }

    fn arity(&self) -> usize {
        OVERFLOW_OPERANDS + 1
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        if !(1..=OVERFLOW_OPERANDS).contains(&self.count) {
            return Err(Error::invalid("gradients of overflow", self.count, format!("1 to {OVERFLOW_OPERANDS}")));
        }
        let names = ["grad 0", "grad 1", "grad 2", "grad 3"];
        let wanted = |ty: TensorType| if ty.shape.is_batched() { ty.shape } else { Shape::batched(&[]) };
        let mut expected: Vec<Expected> =
            names.iter().zip(inputs).map(|(name, ty)| (*name, TensorType::f16(wanted(*ty)), "(N, …) f16")).collect();
        expected.push(("rate", scaled_rate_type(), SCALED_RATE));
        expect(self.name(), inputs, &expected)?;
        Ok(inputs[OVERFLOW_OPERANDS])
    }

    fn backward(&self, _: &mut Graph, _: &[TensorId], _: TensorId, _: TensorId) -> Result<Vec<Option<TensorId>>> {
        super::no_second_gradient(self.name())
    }

    fn reference(&self, args: &mut Reference<'_>) {
        let gradients = args.inputs[..self.count].iter().flat_map(|gradient| gradient.data);
        if gradients.into_iter().any(|v| v.is_nan() || v.abs() >= LARGEST) {
            args.updated[0][5] = 1.0;
        }
    }

    fn launch(&self, inputs: &[TensorType], _output: TensorType) -> Launch {
        let len = |i: usize| if i < self.count { inputs[i].shape.inner_len() } else { 0 };
        let constants = ["LEN0", "LEN1", "LEN2", "LEN3"].into_iter().enumerate().map(|(i, name)| (name, len(i) as f64)).collect();
        // An invocation takes some 16 elements of the largest: 8 words.
        let per_image = (0..OVERFLOW_OPERANDS).map(len).max().unwrap_or(0);
        Launch { kernel: kernel!("overflow"), constants, workgroups: Workgroups { fixed: 0, per_image, tile: 16 * super::LANES, times: 1 } }
    }

    fn updates(&self) -> &[usize] {
        &[OVERFLOW_OPERANDS]
    }

    fn flops(&self, inputs: &[TensorType], batch: usize) -> u64 {
        inputs[..self.count].iter().map(|ty| ty.shape.len(batch) as u64).sum()
    }

    fn bytes_moved(&self, inputs: &[TensorType], batch: usize) -> u64 {
        inputs[..self.count].iter().map(|ty| ty.bytes(batch) as u64).sum()
    }
}

impl Rules for ScaledTick {
    fn name(&self) -> &'static str {
        "scaled_tick"
    }

    fn arity(&self) -> usize {
        6
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        for (name, decay) in [("beta1 of scaled_tick", self.beta1), ("beta2 of scaled_tick", self.beta2)] {
            if !(0.0..1.0).contains(&decay) {
                return Err(Error::invalid(name, decay, "at least 0 and below 1"));
            }
        }
        if self.growth_interval == 0 {
            return Err(Error::invalid("growth interval of scaled_tick", 0, "at least 1"));
        }
        check_tick(self.name(), inputs)?;
        Ok(inputs[2])
    }

    fn backward(&self, _: &mut Graph, _: &[TensorId], _: TensorId, _: TensorId) -> Result<Vec<Option<TensorId>>> {
        super::no_second_gradient(self.name())
    }

    fn reference(&self, args: &mut Reference<'_>) {
        let row = [args.inputs[0].data[0], args.inputs[1].data[0]];
        let [clock, log, rate, loss_scale] = &mut args.updated[..] else { unreachable!("scaled_tick updates four operands") };
        record(row, clock, log, args.batch);
        if rate[5] >= 1.0 {
            if loss_scale[0] > 1.0 / MOST {
                loss_scale[0] *= 0.5;
                rate[4] *= 2.0;
            }
            rate[6] = 0.0;
        } else {
            super::step::next_rate(rate, [self.beta1, self.beta2]);
            rate[6] += 1.0;
            if rate[6] >= f64::from(self.growth_interval) {
                if loss_scale[0] < MOST {
                    loss_scale[0] *= 2.0;
                    rate[4] *= 0.5;
                }
                rate[6] = 0.0;
            }
        }
        rate[5] = 0.0;
    }

    fn launch(&self, inputs: &[TensorType], _output: TensorType) -> Launch {
        let constants = vec![
            ("STEPS", inputs[3].shape.inner()[0] as f64),
            ("STEP1", 1.0 - self.beta1),
            ("STEP2", 1.0 - self.beta2),
            ("GROWTH_INTERVAL", f64::from(self.growth_interval)),
            ("MOST", MOST),
        ];
        Launch { kernel: kernel!("scaled_tick"), constants, workgroups: Workgroups::fixed(1) }
    }

    fn updates(&self) -> &[usize] {
        &[2, 3, 4, 5]
    }

    fn domain(&self, input: usize, inputs: &[TensorType]) -> (f64, f64) {
        match input {
            2 => super::step::clock_domain(inputs),
            4 | 5 => (0.01, 1.0),
            _ => (-1.0, 1.0),
        }
    }

    fn flops(&self, _inputs: &[TensorType], _batch: usize) -> u64 {
        10
    }

    // What a tick moves, with a longer rate and the scale.
    fn bytes_moved(&self, _inputs: &[TensorType], _batch: usize) -> u64 {
        super::step::BYTES + 64 + 8
    }
}

#[cfg(test)]
mod tests;
