//! Launches of the kernels that keep to registers, where the channels of a convolution allow them.

use super::geometry::Geometry;
use crate::ops::{Kernel, Launch, SHARERS, SPREAD, Variant, Workgroups, kernel};

/// Edge of the tile that one workgroup computes; `TILE` in the kernels.
pub(super) const TILE: usize = 32;

/// Channels that one load takes.
pub(super) const QUAD: usize = 4;

/// Of the convolution itself: whole quads of filters, and another kernel where the channels are none.
pub(super) fn forward(geometry: &Geometry) -> Vec<Variant> {
    if !geometry.filters.is_multiple_of(QUAD) {
        return Vec::new();
    }
    let whole = geometry.channels.is_multiple_of(QUAD);
    let kernel = if whole { kernel!("conv2d_registers") } else { kernel!("conv2d_registers_narrow") };
    over(geometry, kernel, geometry.output, geometry.filters)
}

/// Of the gradient for the images: whole quads of channels and of filters.
pub(super) fn input_grad(geometry: &Geometry) -> Vec<Variant> {
    if !geometry.filters.is_multiple_of(QUAD) || !geometry.channels.is_multiple_of(QUAD) {
        return Vec::new();
    }
    over(geometry, kernel!("conv2d_input_grad_registers"), geometry.input, geometry.channels)
}

/// Of the gradient for the weight: whole quads of filters, and another kernel where the channels are none.
pub(super) fn weight_grad(geometry: &Geometry, slices: usize) -> Vec<Variant> {
    if !geometry.filters.is_multiple_of(QUAD) {
        return Vec::new();
    }
    let whole = geometry.channels.is_multiple_of(QUAD);
    let kernel = if whole { kernel!("conv2d_weight_grad_registers") } else { kernel!("conv2d_weight_grad_registers_narrow") };
    let tiles = slices * geometry.depth().div_ceil(TILE) * geometry.groups * geometry.filters.div_ceil(TILE);
    let mut constants = constants(geometry);
    constants.push(("SLICES", slices as f64));
    Variant::registers(Launch { kernel, constants, workgroups: Workgroups::fixed(tiles) })
}

/// The kernel whose rows are the pixels of each image and whose columns the channels of each group.
fn over(geometry: &Geometry, kernel: Kernel, [h, w]: [usize; 2], columns: usize) -> Vec<Variant> {
    let times = geometry.groups * columns.div_ceil(TILE);
    let workgroups = Workgroups { fixed: 0, per_image: h * w, tile: TILE, times };
    Variant::registers(Launch { kernel, constants: constants(geometry), workgroups })
}

fn constants(geometry: &Geometry) -> Vec<(&'static str, f64)> {
    let mut constants = geometry.constants();
    constants.push((SPREAD, SHARERS));
    constants
}
