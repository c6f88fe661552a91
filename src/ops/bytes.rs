//! Bytes to floats on the device: images are sent as they are stored, a quarter of the traffic.

use super::gather::Scale;
use super::{Cpu, LANES, Launch, Reference, Rules, Workgroups, kernel, len_constants};
use crate::error::{Error, Result};
use crate::graph::{Graph, TensorId};
use crate::kernels;
use crate::shape::{DType, TensorType};

/// `y = scale · x` of bytes `x`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScaleBytes {
    /// What a byte is multiplied by. For 1/255 each result is the f32 nearest to byte/255, the same on every device.
    pub scale: f64,
}

impl Graph {
    /// The bytes `x` times `scale`, as floats of the same shape. To divide by 255, `scale` is `1.0 / 255.0`.
    ///
    /// # Errors
    /// If `x` is not of bytes, or `scale` is not a usual number.
    pub fn scale_bytes(&mut self, x: TensorId, scale: f64) -> Result<TensorId> {
        self.apply(ScaleBytes { scale }, &[x])
    }
}

impl ScaleBytes {
    fn split(&self) -> Scale {
        Scale::new(self.scale).expect("the scale was checked when the graph was built")
    }
}

impl Rules for ScaleBytes {
    fn name(&self) -> &'static str {
        "scale_bytes"
    }

    fn arity(&self) -> usize {
        1
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        let x = inputs[0];
        if x.dtype != DType::U8 {
            return Err(Error::Shape {
                op: self.name(), problem: format!("x is {x}, expected bytes"), operands: vec![("x", x, "(…) u8")]
            });
        }
        match Scale::new(self.scale) {
            Some(_) => Ok(TensorType::f32(x.shape)),
            None => Err(Error::invalid("scale of scale_bytes", self.scale, "1e-20 to 1e20")),
        }
    }

    // Bytes are not learned.
    fn backward(&self, _: &mut Graph, _: &[TensorId], _: TensorId, _: TensorId) -> Result<Vec<Option<TensorId>>> {
        Ok(vec![None])
    }

    fn reference(&self, args: &mut Reference<'_>) {
        args.output.iter_mut().zip(args.inputs[0].data).for_each(|(y, byte)| *y = byte * self.scale);
    }

    fn cpu(&self, args: &mut Cpu<'_>) -> bool {
        kernels::gather::bytes(self.split(), args.inputs[0].u8(), args.output);
        true
    }

    fn launch(&self, _inputs: &[TensorType], output: TensorType) -> Launch {
        let constants = [len_constants(output), self.split().constants()].concat();
        Launch { kernel: kernel!("scale_bytes"), constants, workgroups: Workgroups::over(output, LANES) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::checks;
    use crate::shape::Shape;

    #[test]
    fn every_byte_is_scaled_to_the_same_bits_on_every_executor() {
        let bytes: Vec<f64> = (0..256).map(f64::from).collect();
        for ty in [TensorType::u8(Shape::fixed(&[256])), TensorType::u8(Shape::batched(&[128]))] {
            for result in &checks::implementations(ScaleBytes { scale: 1.0 / 255.0 }, &[ty], 2, std::slice::from_ref(&bytes))[1..] {
                for (byte, got) in result[0].iter().enumerate() {
                    assert_eq!(*got, f64::from(byte as f32 / 255.0), "{byte}");
                }
            }
        }
    }

    #[test]
    fn floats_and_scales_without_end_are_refused() {
        let error = ScaleBytes { scale: 1.0 }.infer(&[TensorType::f32(Shape::batched(&[5]))]).unwrap_err().to_string();
        assert!(error.contains("x is [N, 5], expected bytes"), "{error}");
        assert!(ScaleBytes { scale: f64::INFINITY }.infer(&[TensorType::u8(Shape::batched(&[5]))]).is_err());
    }
}
