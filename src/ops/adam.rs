//! The optimiser: Adam, for one parameter and for several in one dispatch.
//!
//! Adam is Kingma & Ba's (2015) in the form Keras computes it: `w -= lr · √(1 - β2ᵗ) / (1 - β1ᵗ) · m / (√v + ε)`, with ε outside
//! the bias correction. The decays are f64 because `1 - β` is taken from them: 1 - 0.999 in f32 is wrong in the fifth digit.
//! A gradient may come as partial sums, as the weight gradients of convolutions do: they are added on the way.

mod group;

use super::scale::{SCALED_RATE, scaled_rate_type};
use super::step::{RATE, expect, rate_type};
use super::{Cpu, LANES, Launch, Reference, Rules, Variant, Workgroups, kernel};
use crate::error::{Error, Result};
use crate::graph::{Graph, TensorId};
use crate::kernels;
use crate::shape::{DType, Shape, TensorType};

pub use group::{AdamGroup, GROUP};

/// `m += (g - m)(1 - β1)`, `v += (g² - v)(1 - β2)`, then the parameter's step. Operands `param` and `moments` `[2, elements]` (all of
/// m, then all of v), which are changed, `grad`, and `rate`. The gradient is of the parameter's shape, or `[slices, …]`: partial
/// sums of it. With a `rate` `[8]` it is scaled, and nothing is changed where one has overflowed: see [`scale`](super::scale).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adam {
    /// Decay of the mean gradient; Keras's default is 0.9.
    pub beta1: f64,
    /// Decay of the mean squared gradient; Keras's default is 0.999.
    pub beta2: f64,
    /// Keeps the divisor from 0; Keras's default is 1e-7.
    pub epsilon: f64,
}

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

    /// The type of the moments of a parameter: m, then v.
    pub fn moments(param: TensorType) -> TensorType {
        TensorType::f32(Shape::fixed(&[2, param.shape.inner_len()]))
    }
}

impl Graph {
    /// Changes `param` and its `moments` `[2, elements]` by one step of Adam against `grad`, which is of the parameter's shape, or
    /// `[slices, …]` partial sums of it. `rate` `[4]` is a state shared by all parameters that starts as [`Adam::first_rate`] and
    /// that [`tick`](Self::tick) advances after them. The moments start as 0. Returns an effect: a root for a plan.
    ///
    /// # Errors
    /// If the shapes differ, a decay is not in `0..1` or ε is not above 0.
    pub fn adam(&mut self, adam: Adam, param: TensorId, moments: TensorId, grad: TensorId, rate: TensorId) -> Result<TensorId> {
        self.apply(adam, &[param, moments, grad, rate])
    }
}

const PARAM: &str = "of one fixed shape, f32";
const MOMENTS: &str = "(2, elements) f32";

impl Adam {
    /// What is wrong with the settings.
    fn check(&self, op: &str) -> Result<()> {
        for (name, decay) in [("beta1", self.beta1), ("beta2", self.beta2)] {
            if !(0.0..1.0).contains(&decay) {
                return Err(Error::invalid(format!("{name} of {op}"), decay, "at least 0 and below 1"));
            }
        }
        if self.epsilon > 0.0 && self.epsilon.is_finite() {
            return Ok(());
        }
        Err(Error::invalid(format!("epsilon of {op}"), self.epsilon, "above 0"))
    }

    /// 1 - β1 and 1 - β2 as the kernels take them.
    fn steps(&self) -> [f32; 2] {
        [(1.0 - self.beta1) as f32, (1.0 - self.beta2) as f32]
    }

    fn constants(&self, rate: TensorType) -> [(&'static str, f64); 4] {
        let scaled = f64::from(is_scaled(rate.shape.inner_len()));
        [("STEP1", 1.0 - self.beta1), ("STEP2", 1.0 - self.beta2), ("EPSILON", self.epsilon), ("SCALED", scaled)]
    }

    /// The reference of one parameter.
    fn step(&self, param: &mut [f64], moments: &mut [f64], grad: &[f64], rate: &[f64]) {
        let len = param.len();
        let (m, v) = moments.split_at_mut(len);
        let scale = rate[0] * rate[2].sqrt() / rate[1];
        let (unscale, overflowed) = if is_scaled(rate.len()) { (rate[4], rate[5] >= 1.0) } else { (1.0, false) };
        if overflowed {
            return;
        }
        for i in 0..len {
            let g = unscale * grad[i..].iter().step_by(len).sum::<f64>();
            m[i] += (g - m[i]) * (1.0 - self.beta1);
            v[i] += (g * g - v[i]) * (1.0 - self.beta2);
            param[i] -= scale * m[i] / (v[i].sqrt() + self.epsilon);
        }
    }

    /// The CPU kernel of one parameter.
    fn cpu_step(&self, param: &mut [f32], moments: &mut [f32], grad: &[f32], rate: &[f32]) {
        let scale = rate[0] * rate[2].sqrt() / rate[1];
        kernels::adam::adam(param, moments, grad, scale, self.steps(), self.epsilon as f32);
    }
}

/// Whether a rate of so many elements says how gradients are scaled.
fn is_scaled(rate: usize) -> bool {
    rate == scaled_rate_type().shape.inner_len()
}

/// How many partial sums a gradient has. 1 if it is the gradient itself.
fn slices(param: TensorType, grad: TensorType) -> usize {
    grad.shape.inner_len() / param.shape.inner_len().max(1)
}

/// Whether a gradient is of a parameter's type, or partial sums of it.
fn is_gradient(param: TensorType, grad: TensorType) -> bool {
    let partial = matches!(grad.shape.inner(), [slices, rest @ ..] if *slices > 0 && rest == param.shape.inner());
    grad == param || (partial && grad.dtype == DType::F32 && !grad.shape.is_batched())
}

/// Invocations that share the sum of one element's slices, so that each adds about eight.
fn sharers(slices: usize) -> usize {
    (slices / 8).max(1).next_power_of_two().min(32)
}

/// Operations of one element: the slices' sum, three for m, four for v, five for the step.
fn flops(param: TensorType, grad: TensorType) -> u64 {
    (12 + slices(param, grad) as u64 - 1) * param.shape.inner_len() as u64
}

/// The check of one parameter's operands; `names` are theirs.
fn check(op: &'static str, names: [&'static str; 4], inputs: [TensorType; 4]) -> Result<()> {
    let [param, _, grad, rate] = inputs;
    let scaled = is_scaled(rate.shape.inner_len());
    let given = if is_gradient(param, grad) { grad } else { param };
    let expected = [
        (names[0], param, PARAM),
        (names[1], Adam::moments(param), MOMENTS),
        (names[2], given, "as the parameter, or (slices, …)"),
        if scaled { (names[3], scaled_rate_type(), SCALED_RATE) } else { (names[3], rate_type(), RATE) },
    ];
    expect(op, &inputs, &expected)?;
    if param.dtype == DType::F32 && !param.shape.is_batched() {
        return Ok(());
    }
    let operands = expected.iter().zip(inputs).map(|(&(name, _, axes), ty)| (name, ty, axes)).collect();
    Err(Error::Shape { op, problem: format!("{} is {param}, expected floats of a fixed shape", names[0]), operands })
}

impl Rules for Adam {
    fn name(&self) -> &'static str {
        "adam"
    }

    fn arity(&self) -> usize {
        4
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        self.check(self.name())?;
        check(self.name(), ["param", "moments", "grad", "rate"], [inputs[0], inputs[1], inputs[2], inputs[3]])?;
        Ok(inputs[0])
    }

    fn backward(&self, _: &mut Graph, _: &[TensorId], _: TensorId, _: TensorId) -> Result<Vec<Option<TensorId>>> {
        super::no_second_gradient(self.name())
    }

    fn reference(&self, args: &mut Reference<'_>) {
        let [param, moments] = &mut args.updated[..] else { unreachable!("adam updates two operands") };
        self.step(param, moments, args.inputs[2].data, args.inputs[3].data);
    }

    fn cpu(&self, args: &mut Cpu<'_>) -> bool {
        if is_scaled(args.inputs[3].f32().len()) {
            return false;
        }
        let [param, moments] = &mut args.updated[..] else { unreachable!("adam updates two operands") };
        self.cpu_step(param, moments, args.inputs[2].f32(), args.inputs[3].f32());
        true
    }

    fn launch(&self, inputs: &[TensorType], _output: TensorType) -> Launch {
        self.shared_by(inputs, sharers(slices(inputs[0], inputs[2])))
    }

    // Four neighbours an invocation; else one, by which no sum is shared.
    fn variants(&self, inputs: &[TensorType], _output: TensorType) -> Vec<Variant> {
        let len = inputs[0].shape.inner_len();
        if !len.is_multiple_of(4) {
            return if sharers(slices(inputs[0], inputs[2])) == 1 { Vec::new() } else { Variant::registers(self.shared_by(inputs, 1)) };
        }
        let mut launch = self.shared_by(inputs, 1);
        launch.constants.retain(|(name, _)| *name != "SHARERS");
        let workgroups = Workgroups { fixed: len / 4, per_image: 0, tile: 64, times: 1 };
        Variant::registers(Launch { kernel: kernel!("adam_quads"), workgroups, ..launch })
    }

    fn updates(&self) -> &[usize] {
        &[0, 1]
    }

    // The second moment is at least 0, and it shares an operand with the first.
    fn domain(&self, input: usize, _inputs: &[TensorType]) -> (f64, f64) {
        if matches!(input, 1 | 3) { (0.01, 1.0) } else { (-1.0, 1.0) }
    }

    fn terms(&self, inputs: &[TensorType], _batch: usize) -> usize {
        slices(inputs[0], inputs[2]).max(1)
    }

    fn flops(&self, inputs: &[TensorType], _batch: usize) -> u64 {
        flops(inputs[0], inputs[2])
    }
}

impl Adam {
    /// The launch in which so many invocations share an element. One needs neither workgroup memory nor barriers.
    fn shared_by(&self, inputs: &[TensorType], sharers: usize) -> Launch {
        let mut constants =
            vec![("LEN", inputs[0].shape.inner_len() as f64), ("SLICES", slices(inputs[0], inputs[2]) as f64), ("SHARERS", sharers as f64)];
        constants.extend(self.constants(inputs[3]));
        Launch { kernel: kernel!("adam"), constants, workgroups: Workgroups::over(inputs[0], LANES / sharers) }
    }
}

#[cfg(test)]
mod tests;
