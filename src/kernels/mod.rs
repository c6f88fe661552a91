//! The CPU's kernels, as `shaders/` holds the GPU's: what the CPU executor runs, held to the operators' references.
//!
//! Work is cut into blocks whose sizes do not depend on the number of threads, and every sum has one order: the same inputs
//! give the same bits on any number of threads.

pub(crate) mod adam;
pub(crate) mod conv2d;
pub(crate) mod conv2d_relu_pool;
pub(crate) mod dense;
pub(crate) mod elementwise;
pub(crate) mod gather;
pub(crate) mod gemm;
pub(crate) mod patches;
pub(crate) mod pool;
pub(crate) mod reduce;
pub(crate) mod softmax;
