//! An operator that is another one in everything but its gradient: how the test sees a wrong one noticed.

use shadernet::error::Result;
use shadernet::graph::{Graph, TensorId};
use shadernet::ops::{Launch, Op, Reference, Rules};
use shadernet::shape::TensorType;

/// What a test does to the gradients that an operator has appended: operands, gradient of the result, and they themselves.
pub(crate) type Spoil = fn(&mut Graph, &[TensorId], TensorId, Vec<Option<TensorId>>) -> Result<Vec<Option<TensorId>>>;

/// An operator whose gradient is spoilt.
#[derive(Debug)]
pub(crate) struct Wrong {
    pub(crate) op: Op,
    pub(crate) spoil: Spoil,
}

impl Rules for Wrong {
    fn name(&self) -> &'static str {
        self.op.rules().name()
    }

    fn arity(&self) -> usize {
        self.op.rules().arity()
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        self.op.rules().infer(inputs)
    }

    fn backward(&self, graph: &mut Graph, inputs: &[TensorId], output: TensorId, grad: TensorId) -> Result<Vec<Option<TensorId>>> {
        let right = self.op.rules().backward(graph, inputs, output, grad)?;
        (self.spoil)(graph, inputs, grad, right)
    }

    fn reference(&self, args: &mut Reference<'_>) {
        self.op.rules().reference(args);
    }

    fn launch(&self, inputs: &[TensorType], output: TensorType) -> Launch {
        self.op.rules().launch(inputs, output)
    }
}

/// Multiplies the gradient for the first operand.
pub(crate) fn scale(graph: &mut Graph, grads: Vec<Option<TensorId>>, factor: f32) -> Result<Vec<Option<TensorId>>> {
    let grad = grads[0].expect("operators on floats have gradients");
    let factor = graph.constant(graph.ty(grad), factor);
    Ok([Some(graph.mul(grad, factor)?)].into_iter().chain(grads.into_iter().skip(1)).collect())
}
