//! Element-wise non-linearities and their gradients: relu, leaky relu, sigmoid, tanh, gelu.

use serde::{Deserialize, Serialize};

use super::{Cpu, LANES, Launch, Reference, Rules, Variant, Workgroups, kernel, len_constants};
use crate::error::{Error, Result};
use crate::graph::{Graph, TensorId};
use crate::kernels;
use crate::shape::{DType, TensorType};

/// A function of one number.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Function {
    /// `max(x, 0)`; the gradient at 0 is 0.
    Relu,
    /// `x` above 0, `slope · x` below.
    LeakyRelu {
        /// The slope below 0. Keras's default is 0.3.
        slope: f32,
    },
    /// `1 / (1 + e⁻ˣ)`.
    Sigmoid,
    /// The hyperbolic tangent.
    Tanh,
    /// `x · Φ(x)` with the exact normal distribution (Hendrycks & Gimpel 2016), as Keras's default.
    Gelu,
}

impl Function {
    /// The value at `x`.
    pub fn value(self, x: f64) -> f64 {
        match self {
            Self::Relu => {
                if x < 0.0 {
                    0.0
                } else {
                    x
                }
            }
            Self::LeakyRelu { slope } => {
                if x < 0.0 {
                    f64::from(slope) * x
                } else {
                    x
                }
            }
            Self::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            Self::Tanh => x.tanh(),
            Self::Gelu => x * normal_cdf(x),
        }
    }

    /// The derivative at `x`.
    pub fn derivative(self, x: f64) -> f64 {
        match self {
            Self::Relu => {
                if x <= 0.0 {
                    0.0
                } else {
                    1.0
                }
            }
            Self::LeakyRelu { slope } => {
                if x <= 0.0 {
                    f64::from(slope)
                } else {
                    1.0
                }
            }
            Self::Sigmoid => self.value(x) * (1.0 - self.value(x)),
            Self::Tanh => 1.0 - x.tanh().powi(2),
            Self::Gelu => normal_cdf(x) + x * (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt(),
        }
    }

    /// The number by which the kernels know it, and its slope.
    fn constants(self) -> [(&'static str, f64); 2] {
        let (function, slope) = match self {
            Self::Relu => (0, 0.0),
            Self::LeakyRelu { slope } => (1, slope),
            Self::Sigmoid => (2, 0.0),
            Self::Tanh => (3, 0.0),
            Self::Gelu => (4, 0.0),
        };
        [("FUNCTION", f64::from(function)), ("SLOPE", f64::from(slope))]
    }
}

fn normal_cdf(x: f64) -> f64 {
    0.5 * libm::erfc(-x * std::f64::consts::FRAC_1_SQRT_2)
}

/// `y = f(x)`, element by element.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Activation {
    /// Which function.
    pub function: Function,
}

/// `dx = f'(x) · dy` of operands `x`, `dy`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ActivationGrad {
    /// Which function.
    pub function: Function,
}

impl Graph {
    /// `f(x)` element by element, of the shape of `x`.
    pub fn activation(&mut self, x: TensorId, function: Function) -> Result<TensorId> {
        self.apply(Activation { function }, &[x])
    }

    /// `max(x, 0)`.
    pub fn relu(&mut self, x: TensorId) -> Result<TensorId> {
        self.activation(x, Function::Relu)
    }

    /// `x` above 0, `slope · x` below.
    pub fn leaky_relu(&mut self, x: TensorId, slope: f32) -> Result<TensorId> {
        self.activation(x, Function::LeakyRelu { slope })
    }

    /// `1 / (1 + e⁻ˣ)`.
    pub fn sigmoid(&mut self, x: TensorId) -> Result<TensorId> {
        self.activation(x, Function::Sigmoid)
    }

    /// The hyperbolic tangent.
    pub fn tanh(&mut self, x: TensorId) -> Result<TensorId> {
        self.activation(x, Function::Tanh)
    }

    /// `x · Φ(x)`, exact.
    pub fn gelu(&mut self, x: TensorId) -> Result<TensorId> {
        self.activation(x, Function::Gelu)
    }
}

impl Rules for Activation {
    fn name(&self) -> &'static str {
        match self.function {
            Function::Relu => "relu",
            Function::LeakyRelu { .. } => "leaky_relu",
            Function::Sigmoid => "sigmoid",
            Function::Tanh => "tanh",
            Function::Gelu => "gelu",
        }
    }

    fn arity(&self) -> usize {
        1
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        if inputs[0].dtype == DType::F32 {
            return Ok(inputs[0]);
        }
        Err(Error::Shape { op: self.name(), problem: "expected floats".into(), operands: vec![("x", inputs[0], "any axes, f32")] })
    }

    fn backward(&self, graph: &mut Graph, inputs: &[TensorId], _y: TensorId, dy: TensorId) -> Result<Vec<Option<TensorId>>> {
        let dx = graph.apply(ActivationGrad { function: self.function }, &[inputs[0], dy])?;
        Ok(vec![Some(dx)])
    }

    fn reference(&self, args: &mut Reference<'_>) {
        for (y, &x) in args.output.iter_mut().zip(args.inputs[0].data) {
            *y = self.function.value(x);
        }
    }

    fn cpu(&self, args: &mut Cpu<'_>) -> bool {
        kernels::elementwise::activation(self.function, args.inputs[0].f32(), args.output);
        true
    }

    fn launch(&self, _inputs: &[TensorType], output: TensorType) -> Launch {
        let mut constants = len_constants(output);
        constants.extend(self.function.constants());
        Launch { kernel: kernel!("activation"), constants, workgroups: Workgroups::over(output, LANES) }
    }

    fn variants(&self, inputs: &[TensorType], output: TensorType) -> Vec<Variant> {
        Variant::in_fours(kernel!("activation_quads"), self.launch(inputs, output), output.shape.inner_len())
    }

    fn domain(&self, _input: usize, _inputs: &[TensorType]) -> (f64, f64) {
        (-4.0, 4.0)
    }
}

impl Rules for ActivationGrad {
    fn name(&self) -> &'static str {
        "activation_grad"
    }

    fn arity(&self) -> usize {
        2
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        super::arithmetic::same_floats(self.name(), ["x", "dy"], inputs)
    }

    fn backward(&self, _: &mut Graph, _: &[TensorId], _: TensorId, _: TensorId) -> Result<Vec<Option<TensorId>>> {
        super::no_second_gradient(self.name())
    }

    fn reference(&self, args: &mut Reference<'_>) {
        let [x, dy] = [args.inputs[0].data, args.inputs[1].data];
        for (i, dx) in args.output.iter_mut().enumerate() {
            *dx = self.function.derivative(x[i]) * dy[i];
        }
    }

    fn cpu(&self, args: &mut Cpu<'_>) -> bool {
        kernels::elementwise::activation_grad(self.function, args.inputs[0].f32(), args.inputs[1].f32(), args.output);
        true
    }

    fn launch(&self, _inputs: &[TensorType], output: TensorType) -> Launch {
        let mut constants = len_constants(output);
        constants.extend(self.function.constants());
        Launch { kernel: kernel!("activation_grad"), constants, workgroups: Workgroups::over(output, LANES) }
    }

    fn variants(&self, inputs: &[TensorType], output: TensorType) -> Vec<Variant> {
        Variant::in_fours(kernel!("activation_grad_quads"), self.launch(inputs, output), output.shape.inner_len())
    }

    fn domain(&self, _input: usize, _inputs: &[TensorType]) -> (f64, f64) {
        (-4.0, 4.0)
    }
}
