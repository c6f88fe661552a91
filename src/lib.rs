//! shadernet (crate docs to come)

pub mod autodiff;
pub mod error;
pub mod graph;
mod kernels;
pub mod ops;
pub mod shape;
pub use error::{Error, Result};
