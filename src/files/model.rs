//! A model on disk: its weights as `.safetensors`, and its layers as JSON in the file's metadata.

use std::collections::BTreeMap;
use std::path::Path;

use super::{NamedTensor, load_tensors, save_tensors};
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::nn::Model;

/// Version of the metadata.
const VERSION: &str = "1";

/// Writes a model with its weights. The same model gives the same bytes.
///
/// # Errors
/// [`Error::Io`] if the file cannot be written; one that was there before stays as it was.
pub fn save_model(path: &Path, model: &Model, weights: &[NamedTensor]) -> Result<()> {
    let layers = serde_json::to_string(model).expect("a model is plain data");
    let metadata = [("format", "shadernet"), ("version", VERSION), ("model", &layers)];
    let metadata: BTreeMap<String, String> = metadata.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    save_tensors(path, weights, &metadata)
}

/// Reads a model and its weights, in the order of the model's parameters.
///
/// # Errors
/// [`Error::Model`] if the file is corrupt, not ours, or its weights are not those of its layers.
pub fn load_model(path: &Path) -> Result<(Model, Vec<NamedTensor>)> {
    let wrong = |found: String, expected: &str| Error::Model { path: path.to_owned(), kind: "model", found, expected: expected.to_owned() };
    let (mut tensors, metadata) = load_tensors(path)?;
    let entry = |key: &str| metadata.get(key).cloned().unwrap_or_else(|| "nothing".to_owned());
    if entry("format") != "shadernet" || entry("version") != VERSION {
        return Err(wrong(
            format!("format {}, version {}", entry("format"), entry("version")),
            "format shadernet, version 1 in its metadata",
        ));
    }
    let model: Model =
        serde_json::from_str(&entry("model")).map_err(|e| wrong(format!("layers that do not parse: {e}"), "a list of layers"))?;
    let mut graph = Graph::new();
    let network = model.build(&mut graph).map_err(|e| wrong(e.to_string(), "layers that fit each other"))?;
    let mut weights = Vec::new();
    for param in network.params() {
        let (name, shape) = (&graph.node(param).label, graph.shape(param));
        let place = tensors.iter().position(|tensor| &tensor.name == name && tensor.extents == shape.inner());
        let place = place.ok_or_else(|| wrong(format!("no tensor {name} of shape {shape}"), "the weights of its layers"))?;
        weights.push(tensors.swap_remove(place));
    }
    match tensors.first() {
        Some(extra) => Err(wrong(format!("a tensor {} too many", extra.name), "the weights of its layers only")),
        None => Ok((model, weights)),
    }
}
