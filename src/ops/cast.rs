//! Conversion between the float types: where mixed precision stores what it computes.

use super::stored::stored;
use super::{LANES, Launch, Reference, Rules, Workgroups, kernel, len_constants};
use crate::error::{Error, Result};
use crate::graph::{Graph, TensorId};
use crate::shape::{DType, TensorType};

/// The operand as another float type. What is too large for f16 becomes an infinity, or its largest number where the driver
/// has it so.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cast {
    /// The type of the result.
    pub to: DType,
}

impl Graph {
    /// `x` as f32 or f16. Gradients pass as the type that `x` has.
    ///
    /// # Errors
    /// If `x` is not of floats, or `to` is not a float type or that of `x`.
    pub fn cast(&mut self, x: TensorId, to: DType) -> Result<TensorId> {
        self.apply(Cast { to }, &[x])
    }
}

impl Rules for Cast {
    fn name(&self) -> &'static str {
        "cast"
    }

    fn arity(&self) -> usize {
        1
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        let x = inputs[0];
        if x.dtype.is_float() && self.to.is_float() && x.dtype != self.to {
            return Ok(TensorType { dtype: self.to, ..x });
        }
        let problem = format!("x is {x}, expected the other float type than {:?}", self.to);
        Err(Error::Shape { op: self.name(), problem, operands: vec![("x", x, "(…) f32 or f16")] })
    }

    fn backward(&self, graph: &mut Graph, inputs: &[TensorId], _: TensorId, dy: TensorId) -> Result<Vec<Option<TensorId>>> {
        let to = graph.ty(inputs[0]).dtype;
        Ok(vec![Some(graph.cast(dy, to)?)])
    }

    // Nothing is rounded here, as nowhere in f64; what a device rounds is within its tolerance.
    fn reference(&self, args: &mut Reference<'_>) {
        args.output.copy_from_slice(args.inputs[0].data);
    }

    fn launch(&self, inputs: &[TensorType], output: TensorType) -> Launch {
        let kernel = stored(kernel!("cast"), &[("X", inputs[0].dtype), ("Y", output.dtype)]);
        Launch { kernel, constants: len_constants(output), workgroups: Workgroups::over(output, LANES) }
    }

    fn flops(&self, _inputs: &[TensorType], _batch: usize) -> u64 {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::checks;
    use crate::shape::Shape;

    #[test]
    fn every_f16_survives_and_what_lies_between_goes_to_a_neighbour() {
        let count = 1 << 16;
        let halves: Vec<f64> = (0..count).map(|bits| f64::from(half::f16::from_bits(bits as u16))).filter(|v| v.is_finite()).collect();
        let ty = TensorType::f16(Shape::fixed(&[halves.len()]));
        for result in checks::implementations(Cast { to: DType::F32 }, &[ty], 1, std::slice::from_ref(&halves)) {
            // Drivers may make zeros of the smallest numbers, those below the least normal one.
            let same = |(got, want): (&f64, &f64)| got == want || (*got == 0.0 && want.abs() < 6.2e-5);
            assert!(result[0].iter().zip(&halves).all(same));
        }
        let between: Vec<f64> = (0..1000).map(|i| f64::from(1.0 + i as f32 / 1e3 + 1e-4)).collect();
        let ty = TensorType::f32(Shape::fixed(&[between.len()]));
        for result in checks::implementations(Cast { to: DType::F16 }, &[ty], 1, std::slice::from_ref(&between)) {
            let apart = result[0].iter().zip(&between).map(|(got, want)| (got - want).abs()).fold(0.0, f64::max);
            assert!(apart < 1.0 / 1024.0, "{apart}");
        }
    }

    #[test]
    fn gradients_pass_as_the_type_of_the_operand() {
        for (ty, to) in [(TensorType::f32(Shape::batched(&[5])), DType::F16), (TensorType::f16(Shape::fixed(&[5])), DType::F32)] {
            let mut graph = Graph::new();
            let x = graph.input("x", ty);
            let y = graph.cast(x, to).unwrap();
            let dy = graph.input("dy", graph.ty(y));
            let dx = Cast { to }.backward(&mut graph, &[x], y, dy).unwrap()[0].unwrap();
            assert_eq!(graph.ty(dx), ty);
        }
    }

    #[test]
    fn casts_to_itself_and_of_integers_are_refused() {
        let floats = TensorType::f32(Shape::batched(&[5]));
        assert!(Cast { to: DType::F32 }.infer(&[floats]).is_err());
        assert!(Cast { to: DType::U32 }.infer(&[floats]).is_err());
        let error = Cast { to: DType::F16 }.infer(&[TensorType::u32(Shape::batched(&[5]))]).unwrap_err().to_string();
        assert!(error.contains("x is [N, 5] u32"), "{error}");
    }
}
