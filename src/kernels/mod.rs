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
pub(crate) mod pool;
pub(crate) mod reduce;
pub(crate) mod softmax;
pub(crate) mod tasks;

/// The widest vectors that this processor has, for kernels that are written for any.
pub(crate) fn arch() -> pulp::Arch {
    #[cfg(test)]
    if let Some(arch) = FORCED.get() {
        return arch;
    }
    pulp::Arch::new()
}

#[cfg(test)]
thread_local! {
    /// The vectors to use on this thread in their place.
    pub(crate) static FORCED: std::cell::Cell<Option<pulp::Arch>> = const { std::cell::Cell::new(None) };
}
