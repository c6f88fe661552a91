//! Launches of the block's kernels that keep to registers, where nothing is stored as f16 and the channels allow them.

use super::super::registers::{QUAD, TILE};
use super::{Block, PLACES};
use crate::ops::{Kernel, Launch, SHARERS, SPREAD, Variant, Workgroups, kernel};
use crate::shape::{DType, TensorType};

/// Of the block forward; another kernel where channels do not come in fours.
pub(super) fn forward(block: &Block, x: TensorType, y: DType) -> Vec<Variant> {
    if x.dtype != DType::F32 || y != DType::F32 {
        return Vec::new();
    }
    let whole = block.conv.channels.is_multiple_of(QUAD);
    let kernel = if whole { kernel!("conv2d_relu_pool_registers") } else { kernel!("conv2d_relu_pool_registers_narrow") };
    over(block, kernel, block.pixels() * PLACES, block.conv.filters)
}

/// Of the gradient for the images, which has whole quads of channels.
pub(super) fn input_grad(block: &Block, dy: TensorType, dx: DType) -> Vec<Variant> {
    if dy.dtype != DType::F32 || dx != DType::F32 || !block.conv.channels.is_multiple_of(QUAD) {
        return Vec::new();
    }
    let kernel = kernel!("conv2d_relu_pool_input_grad_registers");
    over(block, kernel, block.conv.input[0] * block.conv.input[1], block.conv.channels)
}

/// Of the gradient for weight and bias; another kernel where channels do not come in fours.
pub(super) fn weight_grad(block: &Block, slices: usize, [x, dy]: [TensorType; 2]) -> Vec<Variant> {
    if x.dtype != DType::F32 || dy.dtype != DType::F32 {
        return Vec::new();
    }
    let whole = block.conv.channels.is_multiple_of(QUAD);
    let kernel =
        if whole { kernel!("conv2d_relu_pool_weight_grad_registers") } else { kernel!("conv2d_relu_pool_weight_grad_registers_narrow") };
    let constants = block.constants([(SPREAD, SHARERS), ("SLICES", slices as f64)]);
    let tiles = slices * block.conv.depth().div_ceil(TILE) * block.conv.filters.div_ceil(TILE);
    Variant::registers(Launch { kernel, constants, workgroups: Workgroups::fixed(tiles) })
}

/// The kernel that has so many rows an image, and columns.
fn over(block: &Block, kernel: Kernel, per_image: usize, columns: usize) -> Vec<Variant> {
    let workgroups = Workgroups { fixed: 0, per_image, tile: TILE, times: columns.div_ceil(TILE) };
    Variant::registers(Launch { kernel, constants: block.constants([(SPREAD, SHARERS)]), workgroups })
}
