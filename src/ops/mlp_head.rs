//! The end of a classifier in few dispatches: a hidden dense layer with ReLU, the layer of logits, softmax cross-entropy, and all
//! their gradients.
//!
//! Between the first product and the hidden layer's gradient an image needs nothing of another one, so [`MlpHead`] takes each from one end to
//! the other. Then [`MlpHeadGrad`] has three products that no longer wait for each other, and [`MlpHeadLoss`] adds up, or, in a training
//! step, [`MlpHeadTick`]. Fusion puts them into a plan (`plan/fuse/mlp_head.rs`); a graph that is differentiated has the operators they
//! stand for.

mod grad;
mod loss;
mod tick;

use super::loss::scalar;
use super::softmax::softmax_row;
use super::stored::stored;
use super::{LANES, Launch, Reference, Rules, Style, Variant, Workgroups, kernel, no_second_gradient};
use crate::error::{Error, Result};
use crate::graph::{Graph, TensorId};
use crate::shape::{DType, Shape, TensorType};

pub use grad::MlpHeadGrad;
pub use loss::MlpHeadLoss;
pub use tick::MlpHeadTick;

/// The most elements of the first layer's weights: each workgroup reads all of them, so they have to stay in a cache.
const MOST_WEIGHTS: usize = 1 << 17;

/// Numbers of workgroup memory that every adapter has.
const MEMORY: usize = 16 * 1024 / 4;

/// Images of a workgroup: the usual number, and what else is worth a try.
const ROWS: usize = 2;
const OTHER_ROWS: [usize; 2] = [1, 4];

/// Of x `[N, K]`, w1 `[K, U]`, b1 `[U]`, w2 `[U, C]`, b2 `[C]`, labels `[N]` and dloss: a row `[2U + C + 2]` for each image. `hidden = relu(x · w1 +
/// b1)`, what reaches the ReLU's input of the mean loss's gradient times dloss, that gradient for `logits = hidden · w2 + b2`, the image's loss,
/// and 1 if its answer is right, else 0. As [`Dense`](super::Dense), [`LossHead`](super::LossHead) and
/// [`DenseGrad`](super::DenseGrad) have them. x may be f16. U is a multiple of 4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MlpHead;

/// The extents of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Extents {
    features: usize,
    units: usize,
    classes: usize,
}

impl Extents {
    /// Elements of an image's row.
    fn width(self) -> usize {
        2 * self.units + self.classes + 2
    }

    /// Whether a workgroup can take this many images.
    fn fit(self, rows: usize) -> bool {
        let each = self.features + self.units + self.classes;
        rows * each + 5 * LANES <= MEMORY && rows * self.classes <= LANES
    }

    /// The invocations that share a logit.
    fn sharers(self, rows: usize) -> usize {
        let room = LANES / (rows * self.classes);
        1 << room.min(self.units.next_power_of_two()).ilog2()
    }

    /// What is wrong for any kernel, if something is.
    fn problem(self) -> Option<String> {
        let Self { features, units, classes } = self;
        if units % 4 != 0 || units > 4 * LANES {
            Some(format!("{units} hidden units, expected a multiple of 4, at most {}", 4 * LANES))
        } else if features * units > MOST_WEIGHTS {
            Some(format!("the first layer has {features} · {units} weights, expected at most {MOST_WEIGHTS}"))
        } else {
            (!self.fit(1))
                .then(|| format!("{features} features, {units} hidden units and {classes} classes are too many for a workgroup's memory"))
        }
    }
}

/// K, U and C of x, w1, b1, w2 and b2, or what does not fit.
fn extents(inputs: &[TensorType]) -> Result<Extents, String> {
    let [x, w1, b1, w2, b2] = [0, 1, 2, 3, 4].map(|i| inputs[i]);
    let fixed = |ty: TensorType| ty.dtype == DType::F32 && !ty.shape.is_batched();
    match (x.shape.inner(), w1.shape.inner(), w2.shape.inner()) {
        (&[features], &[rows, units], &[hidden, classes])
            if x.shape.is_batched()
                && x.dtype.is_float()
                && [w1, w2].into_iter().all(fixed)
                && ![features, units, classes].contains(&0) =>
        {
            if rows != features || hidden != units {
                return Err(format!("x has {features} features, w1 {rows} rows and {units} columns, w2 {hidden} rows"));
            }
            let biases = [units, classes].map(|len| TensorType::f32(Shape::fixed(&[len])));
            if [b1, b2] != biases {
                return Err(format!("the biases are {b1} and {b2}, expected {} and {}", biases[0], biases[1]));
            }
            Ok(Extents { features, units, classes })
        }
        _ => Err(format!("expected a batch of rows and two matrices of floats, got {x}, {w1} and {w2}")),
    }
}

impl MlpHead {
    /// Whether there is a kernel for a head of so many features, hidden units and classes.
    pub(crate) fn takes(features: usize, units: usize, classes: usize) -> bool {
        Extents { features, units, classes }.problem().is_none()
    }

    /// The kernel that takes so many images a workgroup.
    fn of_rows(self, inputs: &[TensorType], rows: usize) -> Launch {
        let [features, units] = [inputs[1].shape.inner()[0], inputs[1].shape.last()];
        let of = Extents { features, units, classes: inputs[3].shape.last() };
        let constants =
            [("FEATURES", of.features), ("UNITS", of.units), ("CLASSES", of.classes), ("ROWS", rows), ("SHARERS", of.sharers(rows))];
        let workgroups = Workgroups { fixed: 0, per_image: 1, tile: rows, times: 1 };
        let kernel = stored(kernel!("mlp_head"), &[("X", inputs[0].dtype)]);
        Launch { kernel, constants: constants.map(|(name, value)| (name, value as f64)).to_vec(), workgroups }
    }

    /// Those of 1, 2 and 4 images that fit, the usual number first.
    fn all_rows(inputs: &[TensorType]) -> impl Iterator<Item = usize> {
        let of = extents(inputs).expect("types that infer has accepted");
        [ROWS].into_iter().chain(OTHER_ROWS).filter(move |&rows| of.fit(rows))
    }
}

impl Rules for MlpHead {
    fn name(&self) -> &'static str {
        "mlp_head"
    }

    fn arity(&self) -> usize {
        7
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        let [labels, dloss] = [inputs[5], inputs[6]];
        let found = extents(inputs).and_then(|of| {
            if labels != TensorType::u32(Shape::batched(&[])) {
                return Err(format!("expected one integer label for each image, got {labels}"));
            }
            if dloss != scalar() {
                return Err(format!("expected one number as the loss's gradient, got {dloss}"));
            }
            of.problem().map_or(Ok(of), Err)
        });
        match found {
            Ok(of) => Ok(TensorType::f32(Shape::batched(&[of.width()]))),
            Err(problem) => {
                let names = [
                    ("x", "(N, K) f32"),
                    ("w1", "(K, U) f32"),
                    ("b1", "(U) f32"),
                    ("w2", "(U, C) f32"),
                    ("b2", "(C) f32"),
                    ("labels", "(N) u32"),
                    ("dloss", "() f32"),
                ];
                let operands = names.iter().zip(inputs).map(|(&(name, axes), &ty)| (name, ty, axes)).collect();
                Err(Error::Shape { op: self.name(), problem, operands })
            }
        }
    }

    fn backward(&self, _: &mut Graph, _: &[TensorId], _: TensorId, _: TensorId) -> Result<Vec<Option<TensorId>>> {
        no_second_gradient(self.name()) // it comes into a graph after its gradients have
    }

    fn reference(&self, args: &mut Reference<'_>) {
        let [x, w1, b1, w2, b2, labels, dloss] = [0, 1, 2, 3, 4, 5, 6].map(|i| args.inputs[i].data);
        let [features, units, classes] = [args.inputs[1].extents[0], b1.len(), b2.len()];
        let scale = dloss[0] / args.batch as f64;
        for (n, row) in args.output.chunks_exact_mut(2 * units + classes + 2).enumerate() {
            let (hidden, rest) = row.split_at_mut(units);
            let (dhidden, rest) = rest.split_at_mut(units);
            let (dlogits, judged) = rest.split_at_mut(classes);
            for (u, h) in hidden.iter_mut().enumerate() {
                let z = b1[u] + (0..features).map(|k| x[n * features + k] * w1[k * units + u]).sum::<f64>();
                *h = if z < 0.0 { 0.0 } else { z };
            }
            let logit = |c: usize| b2[c] + (0..units).map(|u| hidden[u] * w2[u * classes + c]).sum::<f64>();
            let logits: Vec<f64> = (0..classes).map(logit).collect();
            let label = labels[n] as usize;
            for (c, (d, probability)) in dlogits.iter_mut().zip(softmax_row(&logits)).enumerate() {
                *d = if label < classes { (probability - f64::from(u8::from(c == label))) * scale } else { f64::NAN };
            }
            let most = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = logits.iter().map(|v| (v - most).exp()).sum();
            let first_largest = (1..classes).fold(0, |best, c| if logits[c] > logits[best] { c } else { best });
            judged[0] = logits.get(label).map_or(f64::NAN, |target| sum.ln() + (most - target));
            judged[1] = f64::from(u8::from(first_largest == label && !logits.iter().any(|v| v.is_nan())));
            for (u, d) in dhidden.iter_mut().enumerate() {
                let sum = (0..classes).map(|c| dlogits[c] * w2[u * classes + c]).sum();
                *d = if hidden[u] <= 0.0 { 0.0 } else { sum };
            }
        }
    }

    fn launch(&self, inputs: &[TensorType], _output: TensorType) -> Launch {
        self.of_rows(inputs, Self::all_rows(inputs).next().expect("a head that infer has accepted fits"))
    }

    fn variants(&self, inputs: &[TensorType], _output: TensorType) -> Vec<Variant> {
        let variant = |rows: usize| {
            let launch = self.of_rows(inputs, rows);
            Variant { name: format!("{}/{rows}", launch.kernel.name), style: Style::Portable, matrices: None, launch }
        };
        Self::all_rows(inputs).skip(1).map(variant).collect()
    }

    // Weights are so small that softmax does not saturate.
    fn domain(&self, input: usize, inputs: &[TensorType]) -> (f64, f64) {
        match input {
            1 | 3 => (-0.25, 0.25),
            5 => (0.0, inputs[4].shape.last() as f64 - 1.0),
            6 => (0.5, 2.0),
            _ => (-1.0, 1.0),
        }
    }

    fn terms(&self, inputs: &[TensorType], _batch: usize) -> usize {
        inputs[1].shape.inner()[0] + inputs[1].shape.last() + inputs[3].shape.last()
    }

    // Both products, the gradient of the second, and what loss_head does.
    fn flops(&self, inputs: &[TensorType], batch: usize) -> u64 {
        let products = 2 * inputs[1].shape.inner_len() + 4 * inputs[3].shape.inner_len();
        (batch * (products + 8 * inputs[3].shape.last())) as u64
    }
}

#[cfg(test)]
mod tests;
