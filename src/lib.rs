//! shadernet (crate docs to come)

pub mod autodiff;
pub mod data;
pub mod error;
pub mod exec;
pub mod files;
pub mod graph;
mod kernels;
pub mod models;
pub mod nn;
pub mod ops;
pub mod plan;
#[cfg(feature = "plot")]
pub mod plot;
pub mod predict;
pub mod rng;
pub mod shape;
pub mod train;

pub use error::{Error, Result};
