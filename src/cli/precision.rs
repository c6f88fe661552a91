//! How numbers are stored and multiplied in training: what of it can be asked for.

use clap::{Args, ValueEnum};
use shadernet::exec::gpu::{Checks, Cooperative, GpuOptions};
use shadernet::train::Precision;

/// Precision, and what it allows.
#[derive(Args, Clone, Copy)]
pub(super) struct Numbers {
    /// `f32`, or `mixed`: what goes from one convolution or dense layer to the next, and its gradient, is stored as 16-bit floats,
    /// while sums, the loss, the parameters and Adam's state stay f32; the loss is scaled by a power of two that is found while training. Needs a GPU whose
    /// adapter has `shader-f16` (see `shadernet devices`).
    #[arg(long, value_enum, default_value_t = Stored::F32, value_name = "PRECISION")]
    precision: Stored,
    /// In mixed precision, whether `--tune` may pick convolutions that multiply by cooperative matrices (tensor cores), where the GPU has
    /// them: `auto`, or `off`. They round weights to 16 bits as they multiply, and run only once they were seen to be right. Off also with
    /// SHADERNET_COOPERATIVE=off.
    #[arg(long, value_enum, default_value_t = Used::Auto, value_name = "HOW")]
    cooperative: Used,
}

/// How activations are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Stored {
    F32,
    Mixed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Used {
    Auto,
    Off,
}

impl Numbers {
    /// The arguments that say the same to another process.
    pub(super) fn arguments(self) -> [String; 2] {
        let cooperative = if self.cooperative == Used::Auto { "auto" } else { "off" };
        [format!("--precision={}", self.name()), format!("--cooperative={cooperative}")]
    }

    /// The precision as it is asked for.
    pub(super) fn name(self) -> &'static str {
        match self.precision {
            Stored::F32 => "f32",
            Stored::Mixed => "mixed",
        }
    }

    pub(super) fn precision(self) -> Precision {
        match self.precision {
            Stored::F32 => Precision::F32,
            Stored::Mixed => Precision::Mixed,
        }
    }

    /// How a GPU is opened for it. What f32 has no use for is not asked for: drivers are known that cannot bear it.
    pub(super) fn options(self, checks: Checks) -> GpuOptions {
        let allowed = std::env::var_os("SHADERNET_COOPERATIVE").is_none_or(|value| value != "off");
        let used = allowed && self.precision == Stored::Mixed && self.cooperative == Used::Auto;
        GpuOptions { checks, cooperative: if used { Cooperative::Auto } else { Cooperative::Off } }
    }
}
