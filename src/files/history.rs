//! The curves of a training run, in memory and as JSON under the names of Keras's `History.history`.

use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize};

use super::{read_whole, write_atomic};
use crate::{Error, Result};

/// The largest history file that is read, in bytes.
const MAX_BYTES: u64 = 64 << 20;

/// One number for each finished epoch. Epoch 1 is element 0.
///
/// In JSON a value that is not finite is `null`, and `null` is read as NaN.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct History {
    /// Training loss: the mean over the epoch's images, each as of its own step.
    #[serde(deserialize_with = "numbers")]
    pub loss: Vec<f64>,
    /// Training accuracy, 0 to 1, over the same images at the same steps.
    #[serde(deserialize_with = "numbers")]
    pub accuracy: Vec<f64>,
    /// Loss over the validation images after the epoch.
    #[serde(deserialize_with = "numbers")]
    pub val_loss: Vec<f64>,
    /// Accuracy over the validation images after the epoch, 0 to 1.
    #[serde(deserialize_with = "numbers")]
    pub val_accuracy: Vec<f64>,
    /// Wall time of the training part of the epoch, in seconds.
    #[serde(deserialize_with = "numbers")]
    pub seconds: Vec<f64>,
    /// Wall time of the validation after it, in seconds.
    #[serde(deserialize_with = "numbers")]
    pub val_seconds: Vec<f64>,
    /// The name of the device that trained.
    pub device: String,
}

impl History {
    /// Writes the history as JSON, atomically.
    ///
    /// # Errors
    ///
    /// As [`write_atomic`].
    pub fn save(&self, path: &Path) -> Result<()> {
        write_atomic(path, |out| {
            serde_json::to_writer_pretty(&mut *out, self)?;
            out.write_all(b"\n")
        })
    }

    /// Reads what [`save`](Self::save) or Keras wrote. Absent fields are empty, unknown ones are ignored.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] when the file cannot be read, [`Error::Model`] with kind `history` when it is larger than 64 MiB,
    /// [`Error::Data`] with the place in the file when it is not such JSON.
    pub fn load(path: &Path) -> Result<Self> {
        let bytes = read_whole(path, "history", MAX_BYTES)?;
        serde_json::from_slice(&bytes).map_err(|e| {
            let lines_before = bytes.split_inclusive(|&b| b == b'\n').take(e.line().saturating_sub(1));
            let offset = lines_before.map(<[u8]>::len).sum::<usize>() + e.column().saturating_sub(1);
            let expected = "a JSON object with lists of numbers (loss, accuracy, val_loss, …)".to_owned();
            Error::Data { path: path.to_path_buf(), offset: offset as u64, found: e.to_string(), expected }
        })
    }
}

/// Numbers of which JSON, which has no NaN, may say `null`. Within a checkpoint they are plain numbers.
fn numbers<'de, D: Deserializer<'de>>(source: D) -> Result<Vec<f64>, D::Error> {
    if source.is_human_readable() {
        let values = Vec::<Option<f64>>::deserialize(source)?;
        Ok(values.into_iter().map(|value| value.unwrap_or(f64::NAN)).collect())
    } else {
        Vec::deserialize(source)
    }
}
