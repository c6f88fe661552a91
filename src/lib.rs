//! shadernet (crate docs to come)

pub mod error;
pub mod shape;
pub use error::{Error, Result};
