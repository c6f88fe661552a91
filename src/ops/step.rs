//! The end of a step: what it came to is written down, and the counters are advanced on the device itself, so that many steps
//! go out in one submission.

use super::scale::{SCALED_RATE, scaled_rate_type};
use super::{Cpu, Launch, Reference, Rules, Workgroups, kernel};
use crate::error::{Error, Result};
use crate::graph::{Graph, TensorId};
use crate::kernels;
use crate::shape::{Shape, TensorType};

/// The end of a step that trains nothing: `log[clock[0]] = [loss, correct]`, then `clock` counts the step and its images.
/// Operands `loss`, `correct`, `clock` and `log`, of which the last two are changed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Record;

/// The end of a training step: what [`Record`] does, and `rate` becomes that of the next step. Operands as there, then `rate`,
/// which is changed too.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tick {
    /// As in [`Adam`](super::Adam).
    pub beta1: f64,
    /// As in [`Adam`](super::Adam).
    pub beta2: f64,
}

impl super::Adam {
    /// The end of a step of this optimiser.
    pub fn tick(&self) -> Tick {
        Tick { beta1: self.beta1, beta2: self.beta2 }
    }
}

impl Tick {
    /// Of the kernels that tick, for these operands of a tick.
    pub(super) fn constants(&self, inputs: &[TensorType]) -> Vec<(&'static str, f64)> {
        vec![("STEPS", inputs[3].shape.inner()[0] as f64), ("STEP1", 1.0 - self.beta1), ("STEP2", 1.0 - self.beta2)]
    }
}

impl Graph {
    /// Ends a step without training: writes `loss` and `correct`, one number each, into row `clock[0]` of `log` `[steps, 2]` (a
    /// step past its end writes nothing), and advances `clock` `[2]` u32, which holds how many steps and how many images of the
    /// epoch are done, by one step and by the batch. Whatever reads them in this step comes before. Returns an effect.
    ///
    /// # Errors
    /// If the shapes are others.
    pub fn record(&mut self, loss: TensorId, correct: TensorId, clock: TensorId, log: TensorId) -> Result<TensorId> {
        self.apply(Record, &[loss, correct, clock, log])
    }

    /// Ends a training step: does what [`record`](Self::record) does, and advances `rate` `[4]` to the next step. Returns an
    /// effect.
    ///
    /// # Errors
    /// If the shapes are others or a decay is not in `0..1`.
    pub fn tick(&mut self, tick: Tick, [loss, correct]: [TensorId; 2], clock: TensorId, log: TensorId, rate: TensorId) -> Result<TensorId> {
        self.apply(tick, &[loss, correct, clock, log, rate])
    }
}

/// An operand's name and what it has to be, with the axes as errors show them.
pub(super) type Expected = (&'static str, TensorType, &'static str);

/// The axes of a rate.
pub(super) const RATE: &str = "(4) f32";

/// The learning rate and the bias corrections of a step.
pub(super) fn rate_type() -> TensorType {
    TensorType::f32(Shape::fixed(&[4]))
}

/// Steps and images done.
pub(super) fn clock_type() -> TensorType {
    TensorType::u32(Shape::fixed(&[2]))
}

/// The shape rule of operators whose operands' types are all known: the first that differs is named.
pub(super) fn expect(op: &'static str, inputs: &[TensorType], expected: &[Expected]) -> Result<()> {
    let Some(((name, wanted, _), found)) = expected.iter().zip(inputs).find(|((_, wanted, _), found)| wanted != *found) else {
        return Ok(());
    };
    let operands = expected.iter().zip(inputs).map(|(&(name, _, axes), &ty)| (name, ty, axes)).collect();
    Err(Error::Shape { op, problem: format!("{name} is {found}, expected {wanted}"), operands })
}

/// The shape rule of all that end a step, as far as their operands go.
pub(super) fn check(op: &'static str, inputs: &[TensorType]) -> Result<()> {
    let scalar = TensorType::f32(Shape::fixed(&[]));
    let steps = inputs[3].shape.inner().first().copied().unwrap_or(1);
    let log = TensorType::f32(Shape::fixed(&[steps, 2]));
    let expected = [
        ("loss", scalar, "() f32"),
        ("correct", scalar, "() f32"),
        ("clock", clock_type(), "(2) u32"),
        ("log", log, "(steps, 2) f32"),
        if inputs.len() == 6 { ("rate", scaled_rate_type(), SCALED_RATE) } else { ("rate", rate_type(), RATE) },
        ("loss_scale", scalar, "() f32"),
    ];
    expect(op, inputs, &expected[..inputs.len()])
}

/// The reference of what all of them do.
pub(super) fn record([loss, correct]: [f64; 2], clock: &mut [f64], log: &mut [f64], batch: usize) {
    let row = 2 * clock[0] as usize;
    if let Some(row) = log.get_mut(row..row + 2) {
        row.copy_from_slice(&[loss, correct]);
    }
    clock[0] += 1.0;
    clock[1] += batch as f64;
}

/// The reference of the rate's next values. rate[3] is what rounding added to rate[2]; here nothing is rounded that matters, so none is
/// left.
pub(super) fn next_rate(rate: &mut [f64], [beta1, beta2]: [f64; 2]) {
    let exact = rate[2] - rate[3];
    rate[1] += (1.0 - beta1) * (1.0 - rate[1]);
    rate[2] = exact + (1.0 - beta2) * (1.0 - exact);
    rate[3] = 0.0;
}

/// Bytes that all of them move: loss, count, clock twice, and one row of the log.
pub(super) const BYTES: u64 = 32;

/// Steps of the log, the one after the last drawn too: it must write nothing. Images of the clock come from the same range.
pub(super) fn clock_domain(inputs: &[TensorType]) -> (f64, f64) {
    (0.0, inputs[3].shape.inner()[0] as f64)
}

impl Rules for Record {
    fn name(&self) -> &'static str {
        "record"
    }

    fn arity(&self) -> usize {
        4
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        check(self.name(), inputs)?;
        Ok(inputs[2])
    }

    fn backward(&self, _: &mut Graph, _: &[TensorId], _: TensorId, _: TensorId) -> Result<Vec<Option<TensorId>>> {
        super::no_second_gradient(self.name())
    }

    fn reference(&self, args: &mut Reference<'_>) {
        let row = [args.inputs[0].data[0], args.inputs[1].data[0]];
        let [clock, log] = &mut args.updated[..] else { unreachable!("record updates two operands") };
        record(row, clock, log, args.batch);
    }

    fn cpu(&self, args: &mut Cpu<'_>) -> bool {
        let row = [args.inputs[0].f32()[0], args.inputs[1].f32()[0]];
        let [clock, log] = &mut args.updated[..] else { unreachable!("record updates two operands") };
        kernels::adam::record(row, bytemuck::cast_slice_mut(clock), log, args.batch);
        true
    }

    fn launch(&self, inputs: &[TensorType], _output: TensorType) -> Launch {
        let constants = vec![("STEPS", inputs[3].shape.inner()[0] as f64)];
        Launch { kernel: kernel!("record"), constants, workgroups: Workgroups::fixed(1) }
    }

    fn updates(&self) -> &[usize] {
        &[2, 3]
    }

    fn domain(&self, input: usize, inputs: &[TensorType]) -> (f64, f64) {
        if input == 2 { clock_domain(inputs) } else { (-1.0, 1.0) }
    }

    fn flops(&self, _inputs: &[TensorType], _batch: usize) -> u64 {
        0
    }

    fn bytes_moved(&self, _inputs: &[TensorType], _batch: usize) -> u64 {
        BYTES
    }
}

impl Rules for Tick {
    fn name(&self) -> &'static str {
        "tick"
    }

    fn arity(&self) -> usize {
        5
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        for (name, decay) in [("beta1 of tick", self.beta1), ("beta2 of tick", self.beta2)] {
            if !(0.0..1.0).contains(&decay) {
                return Err(Error::invalid(name, decay, "at least 0 and below 1"));
            }
        }
        check(self.name(), inputs)?;
        Ok(inputs[2])
    }

    fn backward(&self, _: &mut Graph, _: &[TensorId], _: TensorId, _: TensorId) -> Result<Vec<Option<TensorId>>> {
        super::no_second_gradient(self.name())
    }

    fn reference(&self, args: &mut Reference<'_>) {
        let row = [args.inputs[0].data[0], args.inputs[1].data[0]];
        let [clock, log, rate] = &mut args.updated[..] else { unreachable!("tick updates three operands") };
        record(row, clock, log, args.batch);
        next_rate(rate, [self.beta1, self.beta2]);
    }

    fn cpu(&self, args: &mut Cpu<'_>) -> bool {
        let row = [args.inputs[0].f32()[0], args.inputs[1].f32()[0]];
        let [clock, log, rate] = &mut args.updated[..] else { unreachable!("tick updates three operands") };
        kernels::adam::record(row, bytemuck::cast_slice_mut(clock), log, args.batch);
        kernels::adam::next_rate(rate, [(1.0 - self.beta1) as f32, (1.0 - self.beta2) as f32]);
        true
    }

    fn launch(&self, inputs: &[TensorType], _output: TensorType) -> Launch {
        Launch { kernel: kernel!("tick"), constants: self.constants(inputs), workgroups: Workgroups::fixed(1) }
    }

    fn updates(&self) -> &[usize] {
        &[2, 3, 4]
    }

    // A remainder in rate[3] of the size of a rate would be no remainder, but the sum is right with it too.
    fn domain(&self, input: usize, inputs: &[TensorType]) -> (f64, f64) {
        match input {
            2 => clock_domain(inputs),
            4 => (0.01, 1.0),
            _ => (-1.0, 1.0),
        }
    }

    fn flops(&self, _inputs: &[TensorType], _batch: usize) -> u64 {
        8
    }

    // The rate is read and written.
    fn bytes_moved(&self, _inputs: &[TensorType], _batch: usize) -> u64 {
        BYTES + 32
    }
}

#[cfg(test)]
mod tests;
