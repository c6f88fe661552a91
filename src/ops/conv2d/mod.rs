//! 2-D convolution: images NHWC, weights HWIO as Keras has them, any stride, padding, dilation and number of groups.

mod geometry;
mod grad;
mod registers;
mod relu_pool;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

pub(crate) use geometry::Geometry;
use geometry::{image, mismatch, weight};
pub use grad::{Conv2dInputGrad, Conv2dWeightGrad};
pub(crate) use relu_pool::{Block, EDGE, PLACES};
pub use relu_pool::{Conv2dReluPool, Conv2dReluPoolGrad, Conv2dReluPoolInputGrad, Conv2dReluPoolWeightGrad};

use super::window::{Padding, Window};
use super::{Cpu, Kernel, Launch, Reference, Rules, Tiles, Variant, Workgroups, kernel};
use crate::error::Result;
use crate::graph::{Graph, TensorId};
use crate::kernels;
use crate::shape::{Shape, TensorType};

/// `y[n, oh, ow, o] = Σ x[n, oh·stride + kh·dilation - pad, …, c] · w[kh, kw, c, o]` of operands x `[N, H, W, I]` and w
/// `[KH, KW, I / groups, O]`, over `kh`, `kw` and the channels `c` of the group that `o` belongs to. Pairs are height, width.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conv2d {
    /// Pixels from one window to the next.
    pub stride: [usize; 2],
    /// What surrounds the image.
    pub padding: Padding,
    /// Pixels from one tap to the next.
    pub dilation: [usize; 2],
    /// The channels of x and of y fall into so many groups; those of y see only theirs of x. As many as x has channels makes
    /// it depthwise.
    pub groups: usize,
}

impl Default for Conv2d {
    fn default() -> Self {
        Self { stride: [1, 1], padding: Padding::Valid, dilation: [1, 1], groups: 1 }
    }
}

impl Graph {
    /// Convolution of `x` `[N, H, W, I]` with `w` `[KH, KW, I / groups, O]`: `[N, OH, OW, O]`.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) with the numbers that disagree.
    pub fn conv2d(&mut self, x: TensorId, w: TensorId, conv: Conv2d) -> Result<TensorId> {
        self.apply(conv, &[x, w])
    }
}

impl Conv2d {
    /// The window of a weight with these extents.
    pub fn window(&self, kernel: [usize; 2]) -> Window {
        Window { kernel, stride: self.stride, dilation: self.dilation, padding: self.padding }
    }

    fn geometry(&self, inputs: &[TensorType]) -> Result<Geometry> {
        let geometry = image("x", inputs[0]).and_then(|x| Geometry::new(self, x, weight(inputs[1])?));
        let operands = [("x", inputs[0], "(N, H, W, I)"), ("w", inputs[1], "(KH, KW, I / groups, O)")];
        geometry.map_err(|problem| mismatch(self.name(), problem, operands))
    }

    fn known(&self, inputs: &[TensorType]) -> Geometry {
        self.geometry(inputs).expect("shapes were checked when the graph was built")
    }
}

impl Rules for Conv2d {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn arity(&self) -> usize {
        2
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        let geometry = self.geometry(inputs)?;
        let [oh, ow] = geometry.output;
        Ok(TensorType::f32(Shape::batched(&[oh, ow, geometry.outputs()])))
    }

    fn backward(&self, graph: &mut Graph, inputs: &[TensorId], _y: TensorId, dy: TensorId) -> Result<Vec<Option<TensorId>>> {
        let [x, w] = [inputs[0], inputs[1]];
        let geometry = self.known(&[graph.ty(x), graph.ty(w)]);
        let dx = graph.apply(Conv2dInputGrad { conv: *self, input: geometry.input }, &[dy, w])?;
        let slices = grad::slices(&geometry);
        let partial = graph.apply(Conv2dWeightGrad { conv: *self, kernel: geometry.kernel, slices }, &[x, dy])?;
        let dw = if slices > 1 { graph.sum(partial, &[0])? } else { graph.reshape(partial, graph.shape(w).inner().to_vec().as_slice())? };
        Ok(vec![Some(dx), Some(dw)])
    }

    fn reference(&self, args: &mut Reference<'_>) {
        let [x, w] = [&args.inputs[0], &args.inputs[1]];
        let g = reference_geometry(self, &x.extents, &w.extents);
        let mut y = args.output.iter_mut();
        for n in 0..args.batch {
            for oh in 0..g.output[0] {
                for ow in 0..g.output[1] {
                    for o in 0..g.outputs() {
                        let mut sum = 0.0;
                        for kh in 0..g.kernel[0] {
                            for kw in 0..g.kernel[1] {
                                let Some([h, v]) = g.pixel([oh, ow], [kh, kw]) else { continue };
                                for c in 0..g.channels {
                                    let channel = o / g.filters * g.channels + c;
                                    let at = ((n * g.input[0] + h) * g.input[1] + v) * g.inputs() + channel;
                                    let tap = kh * g.kernel[1] + kw;
                                    sum += x.data[at] * w.data[(tap * g.channels + c) * g.outputs() + o];
                                }
                            }
                        }
                        *y.next().expect("the output has one element for each of the loops") = sum;
                    }
                }
            }
        }
    }

    fn cpu(&self, args: &mut Cpu<'_>) -> bool {
        let [x, w] = [args.inputs[0], args.inputs[1]];
        kernels::conv2d::forward(&self.known(&[x.ty, w.ty]), x.f32(), w.f32(), args.output);
        true
    }

    fn launch(&self, inputs: &[TensorType], output: TensorType) -> Launch {
        let geometry = self.known(inputs);
        launch_over(&geometry, kernel!("conv2d"), output, geometry.filters, Tiles::usual(geometry.filters))
    }

    fn variants(&self, inputs: &[TensorType], output: TensorType) -> Vec<Variant> {
        let geometry = self.known(inputs);
        let mut variants = registers::forward(&geometry);
        variants.extend(variants_over(&geometry, kernel!("conv2d"), output, geometry.filters));
        variants
    }

    fn terms(&self, inputs: &[TensorType], _batch: usize) -> usize {
        self.known(inputs).depth()
    }

    fn flops(&self, inputs: &[TensorType], batch: usize) -> u64 {
        2 * self.known(inputs).multiply_adds(batch)
    }
}

/// The tiled kernel whose rows are the pixels of `output` and whose columns the channels of each group.
fn launch_over(geometry: &Geometry, kernel: Kernel, output: TensorType, columns: usize, tiles: Tiles) -> Launch {
    let mut constants = geometry.constants();
    constants.extend(tiles.constants());
    let per_image = output.shape.inner()[0] * output.shape.inner()[1];
    let times = geometry.groups * tiles.across(columns);
    Launch { kernel, constants, workgroups: Workgroups { fixed: 0, per_image, tile: tiles.tile[0], times } }
}

/// The same with other tiles.
fn variants_over(geometry: &Geometry, kernel: Kernel, output: TensorType, columns: usize) -> Vec<Variant> {
    let launch = |tiles| launch_over(geometry, kernel, output, columns, tiles);
    Tiles::variants(Tiles::usual(columns), columns, Tiles::any, launch)
}

/// The geometry from operands as a reference sees them, the batch of `x` included.
fn reference_geometry(conv: &Conv2d, x: &[usize], w: &[usize]) -> Geometry {
    let extents = |all: &[usize]| [all[0], all[1], all[2]];
    let geometry = Geometry::new(conv, extents(&x[1..]), [w[0], w[1], w[2], w[3]]);
    geometry.expect("shapes were checked when the graph was built")
}
