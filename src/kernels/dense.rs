//! A dense layer on the CPU: products in blocks over the thread pool, bias and ReLU while a block is in the cache.

use pulp::NullaryFnOnce;

use super::arch;
use super::gemm::{Matrix, product};
use super::reduce::sum_rows;
use super::tasks::{in_pool, share};

/// Rows of a block of y and of dx, and of dw.
const ROWS: usize = 32;
const FEATURES: usize = 128;

/// Multiply-adds of a product below which handing blocks to other threads costs more than it gains: some 20 µs of work.
const ALONE: usize = 1024 * 1024;

/// The gradient of a layer's output, and that output where ReLU follows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dy<'a> {
    pub(crate) dy: &'a [f32],
    pub(crate) y: Option<&'a [f32]>,
}

/// Where a layer's gradients go.
#[derive(Debug)]
pub(crate) struct Gradients<'a> {
    pub(crate) dx: &'a mut [f32],
    pub(crate) dw: &'a mut [f32],
    pub(crate) db: &'a mut [f32],
}

/// `y = x · w + b`, through ReLU if asked.
pub(crate) fn forward(x: &[f32], w: &[f32], b: &[f32], relu: bool, y: &mut [f32]) {
    let units = b.len();
    let features = w.len() / units;
    let work = y.len() * features;
    let rows = if work <= ALONE { (y.len() / units).max(1) } else { ROWS };
    share(y, rows * units, |i, y| {
        let (first, count) = (i * rows, y.len() / units);
        let x = Matrix::row_major(&x[first * features..], [count, features]);
        product(x, Matrix::row_major(w, [features, units]), y, units, false);
        arch().dispatch(BiasRelu { b, relu, y });
    });
}

/// All gradients of a layer of so many units. `scratch` holds what ReLU lets through of dy.
pub(crate) fn backward(x: &[f32], w: &[f32], dy: Dy<'_>, units: usize, grads: Gradients<'_>, scratch: &mut Vec<f32>) {
    let Gradients { dx, dw, db } = grads;
    let (features, batch) = (w.len() / units, dy.dy.len() / units);
    let g = match dy.y {
        None => dy.dy,
        Some(y) => {
            scratch.resize(scratch.len().max(dy.dy.len()), 0.0);
            let g = &mut scratch[..dy.dy.len()];
            arch().dispatch(Through { dy: dy.dy, y, g });
            &*g
        }
    };
    sum_rows(g, units, db);
    let work = batch * w.len();
    let gradient = Matrix::row_major(g, [batch, units]);
    let of_x = |dx: &mut [f32]| {
        let rows = if work <= ALONE { batch.max(1) } else { ROWS };
        share(dx, rows * features, |i, dx| {
            let g = Matrix::row_major(&g[i * rows * units..], [dx.len() / features, units]);
            product(g, Matrix::row_major(w, [features, units]).transposed(), dx, features, false);
        });
    };
    let of_w = |dw: &mut [f32]| {
        let rows = if work <= ALONE { features } else { FEATURES };
        share(dw, rows * units, |i, dw| {
            let x = if batch == 0 { x } else { &x[i * rows..] };
            product(Matrix::strided(x, [batch, dw.len() / units], features).transposed(), gradient, dw, units, false);
        });
    };
    if work <= ALONE || !in_pool() {
        of_x(dx);
        of_w(dw);
    } else {
        rayon::join(|| of_x(dx), || of_w(dw));
    }
}

/// Bias and ReLU of rows. A NaN passes.
struct BiasRelu<'a> {
    b: &'a [f32],
    relu: bool,
    y: &'a mut [f32],
}

impl NullaryFnOnce for BiasRelu<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        for y in self.y.chunks_exact_mut(self.b.len()) {
            if self.relu {
                y.iter_mut().zip(self.b).for_each(|(y, b)| *y = if *y + b < 0.0 { 0.0 } else { *y + b });
            } else {
                y.iter_mut().zip(self.b).for_each(|(y, b)| *y += b);
            }
        }
    }
}

/// What ReLU lets through of dy.
struct Through<'a> {
    dy: &'a [f32],
    y: &'a [f32],
    g: &'a mut [f32],
}

impl NullaryFnOnce for Through<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        for ((g, y), dy) in self.g.iter_mut().zip(self.y).zip(self.dy) {
            *g = if *y <= 0.0 { 0.0 } else { *dy };
        }
    }
}
