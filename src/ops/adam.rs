//! The optimiser, and the counters that a step advances itself so that many steps go out in one submission.
//!
//! Adam is Kingma & Ba's (2015) in the form Keras computes it: `w -= lr · √(1 - β2ᵗ) / (1 - β1ᵗ) · m / (√v + ε)`, with ε outside
//! the bias correction. The decays are f64 because `1 - β` is taken from them: 1 - 0.999 in f32 is wrong in the fifth digit.

use super::{Cpu, LANES, Launch, Reference, Rules, Workgroups, kernel};
use crate::error::{Error, Result};
use crate::graph::{Graph, TensorId};
use crate::kernels;
use crate::shape::{DType, Shape, TensorType};

/// `m += (g - m)(1 - β1)`, `v += (g² - v)(1 - β2)`, then the parameter's step. Operands `param`, `m`, `v`, which are changed,
/// `grad` and `rate`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adam {
    /// Decay of the mean gradient; Keras's default is 0.9.
    pub beta1: f64,
    /// Decay of the mean squared gradient; Keras's default is 0.999.
    pub beta2: f64,
    /// Keeps the divisor from 0; Keras's default is 1e-7.
    pub epsilon: f64,
}

/// The end of a training step: `rate` becomes that of the next step, `clock` counts this one. Both operands are changed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tick {
    /// As in [`Adam`].
    pub beta1: f64,
    /// As in [`Adam`].
    pub beta2: f64,
}

/// The end of a step that trains nothing: `clock`, its one operand, counts it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Advance;

/// `log[clock[0]] = [loss, correct]` of operands `loss`, `correct`, `clock` and `log`, which is changed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Record;

impl Default for Adam {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, epsilon: 1e-7 }
    }
}

impl Adam {
    /// What a `rate` tensor `[4]` holds before the first step: the learning rate, 1 - β1, 1 - β2 and a remainder of 0. To change
    /// the learning rate between steps, change the first element alone.
    pub fn first_rate(&self, learning_rate: f32) -> [f32; 4] {
        [learning_rate, (1.0 - self.beta1) as f32, (1.0 - self.beta2) as f32, 0.0]
    }

    /// The end of a step of this optimiser.
    pub fn tick(&self) -> Tick {
        Tick { beta1: self.beta1, beta2: self.beta2 }
    }
}

impl Graph {
    /// Changes `param` and its moments `m` and `v` by one step of Adam against `grad`, all of one fixed shape. `rate` `[4]` is a
    /// state shared by all parameters that starts as [`Adam::first_rate`] and that [`tick`](Self::tick) advances after them.
    /// The moments start as 0. Returns an effect: a root for a plan.
    ///
    /// # Errors
    /// If the shapes differ, a decay is not in `0..1` or ε is not above 0.
    pub fn adam(&mut self, adam: Adam, param: TensorId, [m, v]: [TensorId; 2], grad: TensorId, rate: TensorId) -> Result<TensorId> {
        self.apply(adam, &[param, m, v, grad, rate])
    }

    /// Ends a training step: advances `rate` `[4]` to the next step, and `clock` `[2]` u32, which holds how many steps and how
    /// many images of the epoch are done, by one step and by the batch. Whatever reads them in this step comes before. Returns
    /// an effect.
    ///
    /// # Errors
    /// If the shapes are others or a decay is not in `0..1`.
    pub fn tick(&mut self, tick: Tick, rate: TensorId, clock: TensorId) -> Result<TensorId> {
        self.apply(tick, &[rate, clock])
    }

    /// Ends a step without training: advances `clock` `[2]` u32 by one step and by the batch. Returns an effect.
    ///
    /// # Errors
    /// If the shape is another.
    pub fn advance(&mut self, clock: TensorId) -> Result<TensorId> {
        self.apply(Advance, &[clock])
    }

    /// Writes `loss` and `correct`, one number each, into row `clock[0]` of `log` `[steps, 2]`; a step past its end writes
    /// nothing. Returns an effect.
    ///
    /// # Errors
    /// If the shapes are others.
    pub fn record(&mut self, loss: TensorId, correct: TensorId, clock: TensorId, log: TensorId) -> Result<TensorId> {
        self.apply(Record, &[loss, correct, clock, log])
    }
}

/// An operand's name and what it has to be, with the axes as errors show them.
type Expected = (&'static str, TensorType, &'static str);

const RATE: &str = "(4) f32";
const CLOCK: &str = "(2) u32";

fn rate_type() -> TensorType {
    TensorType::f32(Shape::fixed(&[4]))
}

fn clock_type() -> TensorType {
    TensorType::u32(Shape::fixed(&[2]))
}

/// The shape rule of operators whose operands' types are all known: the first that differs is named.
fn expect(op: &'static str, inputs: &[TensorType], expected: &[Expected]) -> Result<()> {
    let Some(((name, wanted, _), found)) = expected.iter().zip(inputs).find(|((_, wanted, _), found)| wanted != *found) else {
        return Ok(());
    };
    let operands = expected.iter().zip(inputs).map(|(&(name, _, axes), &ty)| (name, ty, axes)).collect();
    Err(Error::Shape { op, problem: format!("{name} is {found}, expected {wanted}"), operands })
}

fn check_decay(name: &str, decay: f64) -> Result<()> {
    if (0.0..1.0).contains(&decay) { Ok(()) } else { Err(Error::invalid(name, decay, "at least 0 and below 1")) }
}

impl Rules for Adam {
    fn name(&self) -> &'static str {
        "adam"
    }

    fn arity(&self) -> usize {
        5
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        check_decay("beta1 of adam", self.beta1)?;
        check_decay("beta2 of adam", self.beta2)?;
        if !(self.epsilon > 0.0 && self.epsilon.is_finite()) {
            return Err(Error::invalid("epsilon of adam", self.epsilon, "above 0"));
        }
        let param = inputs[0];
        const AXES: &str = "of one fixed shape, f32";
        let expected = [("param", param, AXES), ("m", param, AXES), ("v", param, AXES), ("grad", param, AXES), ("rate", rate_type(), RATE)];
        expect(self.name(), inputs, &expected)?;
        if param.dtype == DType::F32 && !param.shape.is_batched() {
            return Ok(param);
        }
        let operands = expected.iter().zip(inputs).map(|(&(name, _, axes), &ty)| (name, ty, axes)).collect();
        Err(Error::Shape { op: self.name(), problem: format!("param is {param}, expected floats of a fixed shape"), operands })
    }

    fn backward(&self, _: &mut Graph, _: &[TensorId], _: TensorId, _: TensorId) -> Result<Vec<Option<TensorId>>> {
        super::no_second_gradient(self.name())
    }

    fn reference(&self, args: &mut Reference<'_>) {
        let [grad, rate] = [args.inputs[3].data, args.inputs[4].data];
        let [param, m, v] = &mut args.updated[..] else { unreachable!("adam updates three operands") };
        let scale = rate[0] * rate[2].sqrt() / rate[1];
        for (i, g) in grad.iter().enumerate() {
            m[i] += (g - m[i]) * (1.0 - self.beta1);
            v[i] += (g * g - v[i]) * (1.0 - self.beta2);
            param[i] -= scale * m[i] / (v[i].sqrt() + self.epsilon);
        }
    }

    fn cpu(&self, args: &mut Cpu<'_>) -> bool {
        let [grad, rate] = [args.inputs[3].f32(), args.inputs[4].f32()];
        let [param, m, v] = &mut args.updated[..] else { unreachable!("adam updates three operands") };
        let steps = [(1.0 - self.beta1) as f32, (1.0 - self.beta2) as f32];
        kernels::adam::adam(param, m, v, grad, rate[0] * rate[2].sqrt() / rate[1], steps, self.epsilon as f32);
        true
    }

    fn launch(&self, inputs: &[TensorType], _output: TensorType) -> Launch {
        let constants = vec![
            ("LEN", inputs[0].shape.inner_len() as f64),
            ("STEP1", 1.0 - self.beta1),
            ("STEP2", 1.0 - self.beta2),
            ("EPSILON", self.epsilon),
        ];
        Launch { kernel: kernel!("adam"), constants, workgroups: Workgroups::over(inputs[0], LANES) }
    }

    fn updates(&self) -> &[usize] {
        &[0, 1, 2]
    }

    fn domain(&self, input: usize, _inputs: &[TensorType]) -> (f64, f64) {
        match input {
            2 | 4 => (0.01, 1.0),
            _ => (-1.0, 1.0),
        }
    }

    // Three for m, four for v, five for the step.
    fn flops(&self, inputs: &[TensorType], _batch: usize) -> u64 {
        12 * inputs[0].shape.inner_len() as u64
    }
}

impl Rules for Tick {
    fn name(&self) -> &'static str {
        "tick"
    }

    fn arity(&self) -> usize {
        2
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        check_decay("beta1 of tick", self.beta1)?;
        check_decay("beta2 of tick", self.beta2)?;
        expect(self.name(), inputs, &[("rate", rate_type(), RATE), ("clock", clock_type(), CLOCK)])?;
        Ok(inputs[0])
    }

    fn backward(&self, _: &mut Graph, _: &[TensorId], _: TensorId, _: TensorId) -> Result<Vec<Option<TensorId>>> {
        super::no_second_gradient(self.name())
    }

    // rate[3] is what rounding added to rate[2]; here nothing is rounded that matters, so none is left.
    fn reference(&self, args: &mut Reference<'_>) {
        let [rate, clock] = &mut args.updated[..] else { unreachable!("tick updates two operands") };
        let exact = rate[2] - rate[3];
        rate[1] += (1.0 - self.beta1) * (1.0 - rate[1]);
        rate[2] = exact + (1.0 - self.beta2) * (1.0 - exact);
        rate[3] = 0.0;
        advance(clock, args.batch);
    }

    fn cpu(&self, args: &mut Cpu<'_>) -> bool {
        let [rate, clock] = &mut args.updated[..] else { unreachable!("tick updates two operands") };
        kernels::adam::next_rate(rate, [(1.0 - self.beta1) as f32, (1.0 - self.beta2) as f32]);
        kernels::adam::advance(bytemuck::cast_slice_mut(clock), args.batch);
        true
    }

    fn launch(&self, _inputs: &[TensorType], _output: TensorType) -> Launch {
        let constants = vec![("STEP1", 1.0 - self.beta1), ("STEP2", 1.0 - self.beta2)];
        Launch { kernel: kernel!("tick"), constants, workgroups: Workgroups::fixed(1) }
    }

    fn updates(&self) -> &[usize] {
        &[0, 1]
    }

    // A remainder in rate[3] of the size of a rate would be no remainder, but the sum is right with it too.
    fn domain(&self, input: usize, _inputs: &[TensorType]) -> (f64, f64) {
        if input == 0 { (0.01, 1.0) } else { (0.0, 100_000.0) }
    }
}

impl Rules for Advance {
    fn name(&self) -> &'static str {
        "advance"
    }

    fn arity(&self) -> usize {
        1
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        expect(self.name(), inputs, &[("clock", clock_type(), CLOCK)])?;
        Ok(inputs[0])
    }

    fn backward(&self, _: &mut Graph, _: &[TensorId], _: TensorId, _: TensorId) -> Result<Vec<Option<TensorId>>> {
        super::no_second_gradient(self.name())
    }

    fn reference(&self, args: &mut Reference<'_>) {
        advance(args.updated[0], args.batch);
    }

    fn cpu(&self, args: &mut Cpu<'_>) -> bool {
        kernels::adam::advance(bytemuck::cast_slice_mut(args.updated[0]), args.batch);
        true
    }

    fn launch(&self, _inputs: &[TensorType], _output: TensorType) -> Launch {
        Launch { kernel: kernel!("advance"), constants: vec![], workgroups: Workgroups::fixed(1) }
    }

    fn updates(&self) -> &[usize] {
        &[0]
    }

    fn domain(&self, _input: usize, _inputs: &[TensorType]) -> (f64, f64) {
        (0.0, 100_000.0)
    }
}

/// Counts a step and its images.
fn advance(clock: &mut [f64], batch: usize) {
    clock[0] += 1.0;
    clock[1] += batch as f64;
}

impl Rules for Record {
    fn name(&self) -> &'static str {
        "record"
    }

    fn arity(&self) -> usize {
        4
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        let scalar = TensorType::f32(Shape::fixed(&[]));
        let steps = inputs[3].shape.inner().first().copied().unwrap_or(1);
        let log = TensorType::f32(Shape::fixed(&[steps, 2]));
        let expected =
            [("loss", scalar, "() f32"), ("correct", scalar, "() f32"), ("clock", clock_type(), CLOCK), ("log", log, "(steps, 2) f32")];
        expect(self.name(), inputs, &expected)?;
        Ok(log)
    }

    fn backward(&self, _: &mut Graph, _: &[TensorId], _: TensorId, _: TensorId) -> Result<Vec<Option<TensorId>>> {
        super::no_second_gradient(self.name())
    }

    fn reference(&self, args: &mut Reference<'_>) {
        let row = 2 * args.inputs[2].data[0] as usize;
        if let Some(row) = args.updated[0].get_mut(row..row + 2) {
            row.copy_from_slice(&[args.inputs[0].data[0], args.inputs[1].data[0]]);
        }
    }

    fn cpu(&self, args: &mut Cpu<'_>) -> bool {
        let row = 2 * args.inputs[2].u32()[0] as usize;
        if let Some(row) = args.updated[0].get_mut(row..row + 2) {
            row.copy_from_slice(&[args.inputs[0].f32()[0], args.inputs[1].f32()[0]]);
        }
        true
    }

    fn launch(&self, inputs: &[TensorType], _output: TensorType) -> Launch {
        let constants = vec![("STEPS", inputs[3].shape.inner()[0] as f64)];
        Launch { kernel: kernel!("record"), constants, workgroups: Workgroups::fixed(1) }
    }

    fn updates(&self) -> &[usize] {
        &[3]
    }

    // The step after the last is drawn too: it must write nothing.
    fn domain(&self, input: usize, inputs: &[TensorType]) -> (f64, f64) {
        if input == 2 { (0.0, inputs[3].shape.inner()[0] as f64) } else { (-1.0, 1.0) }
    }

    fn flops(&self, _inputs: &[TensorType], _batch: usize) -> u64 {
        0
    }

    // Loss, count and clock, and one row of the log.
    fn bytes_moved(&self, _inputs: &[TensorType], _batch: usize) -> u64 {
        24
    }
}

#[cfg(test)]
mod tests;
