//! shadernet (crate docs to come)

pub mod autodiff;
pub mod error;
pub mod exec;
pub mod graph;
mod kernels;
pub mod ops;
pub mod plan;
pub mod shape;
pub use error::{Error, Result};
