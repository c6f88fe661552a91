//! Another shape over the same memory: reshape and flatten. Nothing runs.

use super::{Launch, Reference, Rules};
use crate::error::{Error, Result};
use crate::graph::{Graph, TensorId};
use crate::shape::{MAX_RANK, Shape, TensorType};

/// The input's elements, in the same row-major order, under another shape.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reshape {
    /// The new shape; batched exactly if the input is.
    pub shape: Shape,
}

impl Graph {
    /// The elements of `x` under the extents `inner`; a batch stays in front.
    pub fn reshape(&mut self, x: TensorId, inner: &[usize]) -> Result<TensorId> {
        let most = MAX_RANK - usize::from(self.shape(x).is_batched());
        if inner.len() > most {
            return Err(Error::invalid("axes of a reshape", inner.len(), format!("at most {most}")));
        }
        let shape = self.shape(x).with_inner(inner);
        self.apply(Reshape { shape }, &[x])
    }

    /// `[N, H, W, C]` to `[N, H·W·C]`, in that order as Keras does.
    pub fn flatten(&mut self, x: TensorId) -> Result<TensorId> {
        let len = self.shape(x).inner_len();
        self.reshape(x, &[len])
    }
}

impl Rules for Reshape {
    fn name(&self) -> &'static str {
        "reshape"
    }

    fn arity(&self) -> usize {
        1
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        let x = inputs[0];
        if x.shape.is_batched() == self.shape.is_batched() && x.shape.inner_len() == self.shape.inner_len() {
            return Ok(TensorType { shape: self.shape, ..x });
        }
        let problem = format!("{} elements do not fill {}, {} elements", x.shape.inner_len(), self.shape, self.shape.inner_len());
        Err(Error::Shape { op: self.name(), problem, operands: vec![("x", x, "as many elements")] })
    }

    fn backward(&self, graph: &mut Graph, inputs: &[TensorId], _y: TensorId, dy: TensorId) -> Result<Vec<Option<TensorId>>> {
        let shape = graph.shape(inputs[0]);
        Ok(vec![Some(graph.apply(Self { shape }, &[dy])?)])
    }

    fn reference(&self, args: &mut Reference<'_>) {
        args.output.copy_from_slice(args.inputs[0].data);
    }

    fn launch(&self, _inputs: &[TensorType], _output: TensorType) -> Launch {
        unreachable!("a view is never dispatched")
    }

    fn is_view(&self) -> bool {
        true
    }
}
