//! Element-wise kernels: long slices are cut into blocks for the thread pool, short ones are not worth it.

use super::tasks::share;
use crate::ops::activation::Function;

/// Elements of a block: small enough for the first-level cache, large enough to pay for handing it out.
const BLOCK: usize = 8 * 1024;

/// Calls `kernel(first element, block)` for each block of `output`.
pub(crate) fn blocks(output: &mut [f32], block: usize, kernel: impl Fn(usize, &mut [f32]) + Sync + Send) {
    share(output, block, |i, out| kernel(i * block, out));
}

/// `y = f(x)`.
pub(crate) fn map(x: &[f32], y: &mut [f32], f: impl Fn(f32) -> f32 + Sync + Send) {
    blocks(y, BLOCK, |first, y| {
        for (y, &x) in y.iter_mut().zip(&x[first..]) {
            *y = f(x);
        }
    });
}

/// `c = f(a, b)`.
pub(crate) fn zip(a: &[f32], b: &[f32], c: &mut [f32], f: impl Fn(f32, f32) -> f32 + Sync + Send) {
    blocks(c, BLOCK, |first, c| {
        for ((c, &a), &b) in c.iter_mut().zip(&a[first..]).zip(&b[first..]) {
            *c = f(a, b);
        }
    });
}

/// `y = f(x)` of a named function.
pub(crate) fn activation(function: Function, x: &[f32], y: &mut [f32]) {
    match function {
        Function::Relu => map(x, y, |x| if x < 0.0 { 0.0 } else { x }),
        Function::LeakyRelu { slope } => map(x, y, |x| if x < 0.0 { slope * x } else { x }),
        Function::Sigmoid => map(x, y, |x| 1.0 / (1.0 + (-x).exp())),
        Function::Tanh => map(x, y, f32::tanh),
        Function::Gelu => map(x, y, |x| function.value(f64::from(x)) as f32),
    }
}

/// `dx = f'(x) · dy` of a named function.
pub(crate) fn activation_grad(function: Function, x: &[f32], dy: &[f32], dx: &mut [f32]) {
    match function {
        Function::Relu => zip(x, dy, dx, |x, dy| if x <= 0.0 { 0.0 } else { dy }),
        Function::LeakyRelu { slope } => zip(x, dy, dx, |x, dy| if x <= 0.0 { slope * dy } else { dy }),
        _ => zip(x, dy, dx, |x, dy| function.derivative(f64::from(x)) as f32 * dy),
    }
}

/// `y[…, c] = x[…, c] + bias[c]`.
pub(crate) fn bias_add(x: &[f32], bias: &[f32], y: &mut [f32]) {
    let rows = (BLOCK / bias.len()).max(1);
    blocks(y, rows * bias.len(), |first, y| {
        for (y, x) in y.chunks_exact_mut(bias.len()).zip(x[first..].chunks_exact(bias.len())) {
            for ((y, x), b) in y.iter_mut().zip(x).zip(bias) {
                *y = x + b;
            }
        }
    });
}
