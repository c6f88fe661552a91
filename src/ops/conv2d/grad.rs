//! The two gradients of a convolution, each an operator; into how many partial sums that of the weight is cut.

use super::geometry::{Geometry, image, mismatch, weight};
use super::{Conv2d, launch_over, reference_geometry, registers, variants_over};
use crate::error::Result;
use crate::graph::{Graph, TensorId};
use crate::kernels;
use crate::ops::{Cpu, Launch, Reference, Rules, Tiles, Variant, Workgroups, kernel, no_second_gradient};
use crate::shape::{Shape, TensorType};

/// Gradient of a convolution for its images: dx `[N, H, W, I]` of operands dy `[N, OH, OW, O]` and w `[KH, KW, I / groups, O]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2dInputGrad {
    /// The convolution.
    pub conv: Conv2d,
    /// H and W of its images.
    pub input: [usize; 2],
}

/// Gradient of a convolution for its weight, as partial sums dw `[slices, KH, KW, I / groups, O]` of operands x
/// `[N, H, W, I]` and dy `[N, OH, OW, O]`: the `N·OH·OW` output pixels are cut into `slices` runs of equal length, the last
/// ones shorter or empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2dWeightGrad {
    /// The convolution.
    pub conv: Conv2d,
    /// KH and KW of its weight.
    pub kernel: [usize; 2],
    /// How many partial sums there are.
    pub slices: usize,
}

/// Workgroups that keep a GPU busy.
const BUSY: usize = 192;

/// The most elements all partial sums may have together: 16 MiB.
const PARTIALS: usize = 4 << 20;

/// Into how many slices the gradient of the weight is cut. The weight alone often is one tile or few, so the sum over the
/// pixels is what can be shared out. Depends on shapes alone: the same for any batch, adapter and number of threads.
pub(super) fn slices(geometry: &Geometry) -> usize {
    let len = geometry.depth() * geometry.outputs();
    let pixels = 64usize.saturating_mul(geometry.pixels()); // of a usual batch; shorter runs than 128 do not pay
    BUSY.div_ceil(count(geometry, Tiles::usual(geometry.filters))).min(PARTIALS / len).min(pixels / 128).max(1)
}

/// Workgroups of one slice.
pub(super) fn count(geometry: &Geometry, tiles: Tiles) -> usize {
    geometry.depth().div_ceil(tiles.tile[0]) * geometry.groups * tiles.across(geometry.filters)
}

impl Conv2dInputGrad {
    fn geometry(&self, inputs: &[TensorType]) -> Result<Geometry> {
        let [dy, w] = [inputs[0], inputs[1]];
        let geometry = image("dy", dy).and_then(|dy| {
            let w = weight(w)?;
            let channels = w[2].saturating_mul(self.conv.groups);
            let geometry = Geometry::new(&self.conv, [self.input[0], self.input[1], channels], w)?;
            agrees(&geometry, dy).map(|()| geometry)
        });
        let operands = [("dy", dy, "(N, OH, OW, O)"), ("w", w, "(KH, KW, I / groups, O)")];
        geometry.map_err(|problem| mismatch(self.name(), problem, operands))
    }

    fn known(&self, inputs: &[TensorType]) -> Geometry {
        self.geometry(inputs).expect("shapes were checked when the graph was built")
    }
}

impl Conv2dWeightGrad {
    fn geometry(&self, inputs: &[TensorType]) -> Result<Geometry> {
        let [x, dy] = [inputs[0], inputs[1]];
        let geometry = image("x", x).and_then(|x| {
            let dy = image("dy", dy)?;
            let channels = x[2].checked_div(self.conv.groups).unwrap_or(0).max(1);
            let geometry = Geometry::new(&self.conv, x, [self.kernel[0], self.kernel[1], channels, dy[2]])?;
            check_slices(self.slices, &geometry)?;
            agrees(&geometry, dy).map(|()| geometry)
        });
        let operands = [("x", x, "(N, H, W, I)"), ("dy", dy, "(N, OH, OW, O)")];
        geometry.map_err(|problem| mismatch(self.name(), problem, operands))
    }

    fn known(&self, inputs: &[TensorType]) -> Geometry {
        self.geometry(inputs).expect("shapes were checked when the graph was built")
    }
}

impl Conv2dWeightGrad {
    /// The launch of the portable kernel.
    fn tiled(&self, geometry: &Geometry, tiles: Tiles) -> Launch {
        let mut constants = geometry.constants();
        constants.push(("SLICES", self.slices as f64));
        constants.extend(tiles.constants());
        let workgroups = Workgroups::fixed(self.slices * count(geometry, tiles));
        Launch { kernel: kernel!("conv2d_weight_grad"), constants, workgroups }
    }
}

/// Whether so many partial sums can be.
pub(super) fn check_slices(slices: usize, geometry: &Geometry) -> Result<(), String> {
    if slices == 0 || slices.checked_mul(geometry.depth() * geometry.outputs()).is_none_or(|len| len > 1 << 30) {
        return Err(format!("{slices} slices of the weight are none or too many"));
    }
    Ok(())
}

/// Whether dy is of the shape that the convolution's output has.
fn agrees(geometry: &Geometry, dy: [usize; 3]) -> Result<(), String> {
    let y = [geometry.output[0], geometry.output[1], geometry.outputs()];
    if dy == y { Ok(()) } else { Err(format!("dy has extents {dy:?} but y has {y:?}")) }
}

impl Rules for Conv2dInputGrad {
    fn name(&self) -> &'static str {
        "conv2d_input_grad"
    }

    fn arity(&self) -> usize {
        2
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        let geometry = self.geometry(inputs)?;
        Ok(TensorType::f32(Shape::batched(&[self.input[0], self.input[1], geometry.inputs()])))
    }

    fn backward(&self, _: &mut Graph, _: &[TensorId], _: TensorId, _: TensorId) -> Result<Vec<Option<TensorId>>> {
        no_second_gradient(self.name())
    }

    fn reference(&self, args: &mut Reference<'_>) {
        let [dy, w] = [&args.inputs[0], &args.inputs[1]];
        let x = [args.batch, self.input[0], self.input[1], w.extents[2] * self.conv.groups];
        let g = reference_geometry(&self.conv, &x, &w.extents);
        args.output.fill(0.0);
        for n in 0..args.batch {
            for oh in 0..g.output[0] {
                for ow in 0..g.output[1] {
                    for o in 0..g.outputs() {
                        let dy = dy.data[((n * g.output[0] + oh) * g.output[1] + ow) * g.outputs() + o];
                        for kh in 0..g.kernel[0] {
                            for kw in 0..g.kernel[1] {
                                let Some([h, v]) = g.pixel([oh, ow], [kh, kw]) else { continue };
                                for c in 0..g.channels {
                                    let channel = o / g.filters * g.channels + c;
                                    let at = ((n * g.input[0] + h) * g.input[1] + v) * g.inputs() + channel;
                                    let tap = kh * g.kernel[1] + kw;
                                    args.output[at] += dy * w.data[(tap * g.channels + c) * g.outputs() + o];
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    fn cpu(&self, args: &mut Cpu<'_>) -> bool {
        let [dy, w] = [args.inputs[0], args.inputs[1]];
        kernels::conv2d::input_grad(&self.known(&[dy.ty, w.ty]), dy.f32(), w.f32(), args.output);
        true
    }

    fn launch(&self, inputs: &[TensorType], output: TensorType) -> Launch {
        let geometry = self.known(inputs);
        launch_over(&geometry, kernel!("conv2d_input_grad"), output, geometry.channels, Tiles::usual(geometry.channels))
    }

    fn variants(&self, inputs: &[TensorType], output: TensorType) -> Vec<Variant> {
        let geometry = self.known(inputs);
        let mut variants = registers::input_grad(&geometry);
        variants.extend(variants_over(&geometry, kernel!("conv2d_input_grad"), output, geometry.channels));
        variants
    }

    fn terms(&self, inputs: &[TensorType], _batch: usize) -> usize {
        let geometry = self.known(inputs);
        geometry.kernel[0] * geometry.kernel[1] * geometry.filters
    }

    fn flops(&self, inputs: &[TensorType], batch: usize) -> u64 {
        2 * self.known(inputs).multiply_adds(batch)
    }
}

impl Rules for Conv2dWeightGrad {
    fn name(&self) -> &'static str {
        "conv2d_weight_grad"
    }

    fn arity(&self) -> usize {
        2
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        let g = self.geometry(inputs)?;
        Ok(TensorType::f32(Shape::fixed(&[self.slices, g.kernel[0], g.kernel[1], g.channels, g.outputs()])))
    }

    fn backward(&self, _: &mut Graph, _: &[TensorId], _: TensorId, _: TensorId) -> Result<Vec<Option<TensorId>>> {
        no_second_gradient(self.name())
    }

    fn reference(&self, args: &mut Reference<'_>) {
        let [x, dy] = [&args.inputs[0], &args.inputs[1]];
        let w = [self.kernel[0], self.kernel[1], x.extents[3] / self.conv.groups, dy.extents[3]];
        let g = reference_geometry(&self.conv, &x.extents, &w);
        let run = (args.batch * g.pixels()).div_ceil(self.slices);
        args.output.fill(0.0);
        for pixel in 0..args.batch * g.pixels() {
            let [n, oh, ow] = [pixel / g.pixels(), pixel / g.output[1] % g.output[0], pixel % g.output[1]];
            for kh in 0..g.kernel[0] {
                for kw in 0..g.kernel[1] {
                    let Some([h, v]) = g.pixel([oh, ow], [kh, kw]) else { continue };
                    for o in 0..g.outputs() {
                        for c in 0..g.channels {
                            let channel = o / g.filters * g.channels + c;
                            let at = ((n * g.input[0] + h) * g.input[1] + v) * g.inputs() + channel;
                            let tap = (pixel / run * g.kernel[0] + kh) * g.kernel[1] + kw;
                            args.output[(tap * g.channels + c) * g.outputs() + o] += x.data[at] * dy.data[pixel * g.outputs() + o];
                        }
                    }
                }
            }
        }
    }

    fn cpu(&self, args: &mut Cpu<'_>) -> bool {
        let [x, dy] = [args.inputs[0], args.inputs[1]];
        kernels::conv2d::weight_grad(&self.known(&[x.ty, dy.ty]), self.slices, x.f32(), dy.f32(), args.output);
        true
    }

    fn launch(&self, inputs: &[TensorType], _output: TensorType) -> Launch {
        let geometry = self.known(inputs);
        self.tiled(&geometry, Tiles::usual(geometry.filters))
    }

    fn variants(&self, inputs: &[TensorType], _output: TensorType) -> Vec<Variant> {
        let geometry = self.known(inputs);
        let (columns, launch) = (geometry.filters, |tiles| self.tiled(&geometry, tiles));
        let mut variants = registers::weight_grad(&geometry, self.slices);
        variants.extend(Tiles::variants(Tiles::usual(columns), columns, Tiles::one_row_each, launch));
        variants
    }

    fn terms(&self, inputs: &[TensorType], batch: usize) -> usize {
        (batch * self.known(inputs).pixels()).div_ceil(self.slices).max(1)
    }

    fn flops(&self, inputs: &[TensorType], batch: usize) -> u64 {
        2 * self.known(inputs).multiply_adds(batch)
    }
}
