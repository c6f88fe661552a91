//! How a run stores what lies between its layers.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::exec::Executor;

/// Of the numbers of a training step. Validation, like evaluation and prediction, is in f32 in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Everything is f32.
    #[default]
    F32,
    /// Mixed precision (Micikevicius et al. 2018): what goes from one convolution or dense layer to the next, and its gradient, is
    /// stored as f16, but for what goes between the last two dense layers; every sum, the loss, the parameters and Adam's state are f32. The loss is scaled, see [`scale`](crate::ops::scale).
    Mixed,
}

impl Precision {
    /// An error if a device cannot train in it.
    ///
    /// # Errors
    /// [`Error::Unsupported`]: for mixed precision on an adapter without `SHADER_F16`, and on the CPU, which would gain nothing by it.
    pub fn check(self, exec: &dyn Executor) -> Result<()> {
        if self == Self::F32 || exec.has_f16() {
            return Ok(());
        }
        let lacks = "16-bit floats in kernels (the feature SHADER_F16 of GPUs), in which mixed precision stores activations: train in f32";
        Err(Error::Unsupported { adapter: exec.device(), lacks: lacks.to_owned() })
    }
}

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Mixed => "mixed",
        })
    }
}
