//! Everything that can go wrong for a user, each with the numbers that disagree.
//!
//! A mistake in a model, a file or a setting, and a failure of the machine (no memory, a lost device, a full disk), is an
//! [`Error`]. A broken invariant of this crate is a panic with a sentence, and no input may reach one.

use std::path::{Path, PathBuf};

use crate::shape::TensorType;

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, with what was found and what was expected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Operands that do not fit an operator. Raised while the graph is built, never while it runs.
    #[error("{op}: {problem}{}", operand_table(operands))]
    Shape {
        /// The operator's name.
        op: &'static str,
        /// The numbers that disagree, as a sentence.
        problem: String,
        /// Each operand: its name in the formula, what was given, and the meaning of the expected axes, `(M, K)`.
        operands: Vec<(&'static str, TensorType, &'static str)>,
    },

    /// A value outside what it may be: a setting, a flag, a batch larger than the plan's capacity.
    #[error("{what}: found {found}, expected {expected}")]
    Invalid {
        /// The setting or value.
        what: String,
        /// What was given.
        found: String,
        /// What would have been accepted.
        expected: String,
    },

    /// The operating system refused a file operation.
    #[error("{}: {action}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was being done: `cannot open`, `cannot write`.
        action: &'static str,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },

    /// A data file whose content is not what its format says.
    #[error("{}: at byte {offset}: found {found}, expected {expected}", path.display())]
    Data {
        /// The file.
        path: PathBuf,
        /// Where in the file the first wrong byte is, or where the file ends too early.
        offset: u64,
        /// What stands there.
        found: String,
        /// What should stand there.
        expected: String,
    },

    /// A model or checkpoint file that is corrupt, of another program, or of another network.
    #[error("{}: not a usable {kind}: found {found}, expected {expected}", path.display())]
    Model {
        /// The file.
        path: PathBuf,
        /// `model` or `checkpoint`.
        kind: &'static str,
        /// What was found in it.
        found: String,
        /// What should have been there.
        expected: String,
    },

    /// A download that failed. What had arrived is kept for the next try.
    #[error("{url}: {problem}")]
    Download {
        /// What was asked for.
        url: String,
        /// What happened, with byte counts.
        problem: String,
    },

    /// No device goes by this name.
    #[error("no device matches {asked:?}; found: {}", list(available))]
    UnknownDevice {
        /// What was asked for.
        asked: String,
        /// The adapters there are, by name, and `cpu`.
        available: Vec<String>,
    },

    /// The adapter lacks something every kernel needs.
    #[error("{adapter}: lacks {lacks}")]
    Unsupported {
        /// The adapter's name.
        adapter: String,
        /// The feature or limit, with found and needed numbers.
        lacks: String,
    },

    /// One tensor needs a larger buffer than the adapter can bind.
    #[error("{what} needs a buffer of {bytes} bytes, but {adapter} binds at most {limit}: use a smaller batch")]
    BufferTooLarge {
        /// The tensor or slot.
        what: String,
        /// Bytes asked for.
        bytes: u64,
        /// The adapter's limit in bytes.
        limit: u64,
        /// The adapter's name.
        adapter: String,
    },

    /// The device has no memory left.
    #[error("{device}: out of memory while asking for {bytes} bytes for {what}")]
    OutOfMemory {
        /// The tensor or slot.
        what: String,
        /// Bytes asked for.
        bytes: u64,
        /// The device's name.
        device: String,
    },

    /// The device went away (driver reset, unplugged, destroyed). Work since the last checkpoint is lost, files are not.
    #[error("{device}: device lost: {reason}")]
    DeviceLost {
        /// The device's name.
        device: String,
        /// The driver's reason.
        reason: String,
    },

    /// A kernel that the driver or the shader compiler refuses.
    #[error("{kernel}: {device} refuses it: {reason}")]
    Kernel {
        /// The kernel's name.
        kernel: String,
        /// The device's name.
        device: String,
        /// The compiler's or driver's message.
        reason: String,
    },

    /// The loss is no number any more.
    #[error("the loss is {loss} at epoch {epoch}, step {step}; the first tensor that is not finite is {first}. Try a lower learning rate")]
    NotFinite {
        /// Epoch, from 1.
        epoch: usize,
        /// Step within the epoch, from 1.
        step: usize,
        /// The loss as computed.
        loss: f32,
        /// The first tensor in execution order with a NaN or infinity, by layer and operator.
        first: String,
    },

    /// The user asked to stop (Ctrl-C). Everything worth keeping is saved.
    #[error("interrupted at epoch {epoch}, step {step}{}", saved.as_ref().map(|p| format!("; resume from {}", p.display())).unwrap_or_default())]
    Interrupted {
        /// Epoch, from 1.
        epoch: usize,
        /// Steps of it that are done.
        step: usize,
        /// Where the checkpoint is, if one was asked for.
        saved: Option<PathBuf>,
    },
}

impl Error {
    /// An [`Error::Invalid`] from anything that prints.
    pub fn invalid(what: impl ToString, found: impl ToString, expected: impl ToString) -> Self {
        Self::Invalid { what: what.to_string(), found: found.to_string(), expected: expected.to_string() }
    }

    /// A function that wraps an `std::io::Error` with its path: `File::open(p).map_err(Error::io(p, "cannot open"))?`.
    pub fn io(path: impl AsRef<Path>, action: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::Io { path, action, source }
    }
}

fn operand_table(operands: &[(&'static str, TensorType, &'static str)]) -> String {
    let row = |(name, ty, axes): &(&str, TensorType, &str)| format!("\n  {name:<8} {:<24} {axes}", ty.to_string());
    operands.iter().map(row).collect()
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}
