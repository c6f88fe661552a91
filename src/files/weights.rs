//! A model file: one `.safetensors` whose tensors are all `f32`, the same bytes for the same weights.
//!
//! The format has no checksum. Every header is checked here, but a changed weight is a weight.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorInfo};
use safetensors::{SafeTensorError, SafeTensors};
use serde::Serialize;

use super::{read_whole, write_atomic};
use crate::{Error, Result};

/// The largest model file that is written or read, in bytes.
pub const MAX_MODEL_BYTES: u64 = 2 << 30;
/// The largest header, in bytes: parsed JSON takes several times the memory of its text.
const MAX_HEADER_BYTES: u64 = 8 << 20;
/// The format's own key among the tensor names.
const METADATA: &str = "__metadata__";

/// A tensor as it stands in a model file.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedTensor {
    /// The name, unique in its file.
    pub name: String,
    /// Extents, outermost first; none for a scalar.
    pub extents: Vec<usize>,
    /// As many values as the product of the extents, in row-major order.
    pub data: Vec<f32>,
}

/// Writes tensors and metadata as one `.safetensors` file, atomically. The order of `tensors` does not matter:
/// the file has them by name, and equal contents are equal bytes.
///
/// # Errors
///
/// [`Error::Invalid`] when two names are equal, a name is the format's own `__metadata__`, the extents of a tensor do not
/// match its data, or the file would be larger than [`load_tensors`] accepts; else as [`write_atomic`]. The old file is
/// then untouched.
pub fn save_tensors(path: &Path, tensors: &[NamedTensor], metadata: &BTreeMap<String, String>) -> Result<()> {
    let mut sorted: Vec<&NamedTensor> = tensors.iter().collect();
    sorted.sort_by(|a, b| a.name.cmp(&b.name));
    let mut header = Header { metadata, tensors: BTreeMap::new() };
    let mut end = 0;
    for tensor in &sorted {
        let start = end;
        end += size_of_val(tensor.data.as_slice());
        let of = |extents: &[usize]| extents.iter().try_fold(1usize, |n, &extent| n.checked_mul(extent));
        if of(&tensor.extents) != Some(tensor.data.len()) {
            let expected = format!("as many as its extents {:?} say", tensor.extents);
            return Err(Error::invalid(format!("tensor {:?}", tensor.name), format!("{} values", tensor.data.len()), expected));
        }
        let info = TensorInfo { dtype: Dtype::F32, shape: tensor.extents.clone(), data_offsets: (start, end) };
        if tensor.name == METADATA || header.tensors.insert(&tensor.name, info).is_some() {
            return Err(Error::invalid("name of a tensor", format!("{:?} again", tensor.name), "a name of its own"));
        }
    }
    let too_large = |bytes: u64, limit: u64| {
        let what = format!("{}: model to write", path.display());
        if bytes <= limit { Ok(()) } else { Err(Error::invalid(what, format!("{bytes} bytes"), format!("at most {limit}"))) }
    };
    let mut text = serde_json::to_string(&header).map_err(|e| Error::invalid("header of a model", e, "serialisable names"))?;
    // Readers that map the file want the data aligned; the format allows spaces after the JSON.
    text.push_str(&" ".repeat(text.len().next_multiple_of(8) - text.len()));
    too_large(text.len() as u64, MAX_HEADER_BYTES)?;
    too_large(8 + text.len() as u64 + end as u64, MAX_MODEL_BYTES)?;

    write_atomic(path, |out| {
        out.write_all(&(text.len() as u64).to_le_bytes())?;
        out.write_all(text.as_bytes())?;
        let mut bytes = Vec::new();
        for values in sorted.iter().flat_map(|tensor| tensor.data.chunks(4096)) {
            bytes.clear();
            bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            out.write_all(&bytes)?;
        }
        Ok(())
    })
}

/// Reads a model file: its tensors by name, and its metadata. Memory is bounded by twice the size of the file and the header.
///
/// # Errors
///
/// [`Error::Io`] when the file cannot be read; [`Error::Model`] with kind `model` when it is larger than 2 GiB, is not
/// safetensors, ends too early or too late, has offsets that overlap or leave gaps, extents that do not match
/// the data, or a type other than `F32`.
pub fn load_tensors(path: &Path) -> Result<(Vec<NamedTensor>, BTreeMap<String, String>)> {
    let refuse =
        |found: String, expected: &str| Error::Model { path: path.to_path_buf(), kind: "model", found, expected: expected.to_owned() };
    let bytes = read_whole(path, "model", MAX_MODEL_BYTES)?;
    let Some((length, rest)) = bytes.split_first_chunk() else {
        return Err(refuse(format!("{} bytes", bytes.len()), "a safetensors file, which has 8 bytes at least"));
    };
    let length = u64::from_le_bytes(*length);
    let room = MAX_HEADER_BYTES.min(rest.len() as u64);
    if length > room {
        return Err(refuse(format!("a header of {length} bytes"), &format!("safetensors with a header of at most {room} bytes")));
    }
    let malformed = |e: SafeTensorError| match e {
        SafeTensorError::MetadataIncompleteBuffer => {
            refuse(e.to_string(), &format!("tensors that fill the file's {} bytes: is it truncated?", bytes.len()))
        }
        _ => refuse(e.to_string(), "safetensors"),
    };
    let file = SafeTensors::deserialize(&bytes).map_err(malformed)?;
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(malformed)?;
    let metadata = header.metadata().iter().flatten().map(|(key, value)| (key.clone(), value.clone())).collect();

    let mut tensors = Vec::with_capacity(file.len());
    for (name, view) in file.iter() {
        if view.dtype() != Dtype::F32 {
            return Err(refuse(format!("tensor {name:?} of type {}", view.dtype()), "F32"));
        }
        let data = view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        tensors.push(NamedTensor { name: name.to_owned(), extents: view.shape().to_vec(), data });
    }
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    Ok((tensors, metadata))
}

/// The header as the format has it. The safetensors crate would write the metadata in the random order of a `HashMap`.
#[derive(Serialize)]
struct Header<'a> {
    #[serde(rename = "__metadata__", skip_serializing_if = "BTreeMap::is_empty")]
    metadata: &'a BTreeMap<String, String>,
    #[serde(flatten)]
    tensors: BTreeMap<&'a str, TensorInfo>,
}
