//! A model on disk: its weights as `.safetensors`, and its layers as JSON in the file's metadata.

use std::collections::BTreeMap;
use std::path::Path;

use super::{Baseline, NamedTensor, load_tensors, save_tensors};
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::nn::Model;

/// Version of the metadata.
const VERSION: &str = "1";

/// All that is in a model's file.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelFile {
    /// The layers.
    pub model: Model,
    /// The weights, in the order of the model's parameters.
    pub weights: Vec<NamedTensor>,
    /// What the model was validated with, if that was written down.
    pub baseline: Option<Baseline>,
}

/// Writes a model with its weights. The same model gives the same bytes.
///
/// # Errors
/// [`Error::Io`] if the file cannot be written; one that was there before stays as it was.
pub fn save_model(path: &Path, model: &Model, weights: &[NamedTensor]) -> Result<()> {
    save(path, model, weights, None)
}

fn save(path: &Path, model: &Model, weights: &[NamedTensor], baseline: Option<&Baseline>) -> Result<()> {
    let layers = serde_json::to_string(model).expect("a model is plain data");
    let mut metadata = BTreeMap::from([("format", "shadernet".to_owned()), ("version", VERSION.to_owned()), ("model", layers)]);
    if let Some(baseline) = baseline {
        metadata.insert("baseline", serde_json::to_string(baseline).expect("a baseline is plain data"));
    }
    let metadata = metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    save_tensors(path, weights, &metadata)
}

impl ModelFile {
    /// Writes it, as [`save_model`].
    ///
    /// # Errors
    /// As [`save_model`]; a baseline that is not of this model.
    pub fn save(&self, path: &Path) -> Result<()> {
        self.baseline.iter().try_for_each(|baseline| baseline.check(&self.model))?;
        save(path, &self.model, &self.weights, self.baseline.as_ref())
    }

    /// Reads it.
    ///
    /// # Errors
    /// [`Error::Model`] if the file is corrupt, not ours, or its weights or its baseline are not those of its layers.
    pub fn load(path: &Path) -> Result<Self> {
        let wrong = |found: String| {
            let expected = "statistics of the model's channels and classes, or none".to_owned();
            Error::Model { path: path.to_owned(), kind: "model", found, expected }
        };
        let (model, weights, metadata) = load(path)?;
        let baseline: Option<Baseline> = match metadata.get("baseline") {
            None => None,
            Some(text) => Some(serde_json::from_str(text).map_err(|e| wrong(format!("a baseline that does not parse: {e}")))?),
        };
        baseline.iter().try_for_each(|baseline| baseline.check(&model)).map_err(|e| wrong(e.to_string()))?;
        Ok(Self { model, weights, baseline })
    }
}

/// Reads a model and its weights, in the order of the model's parameters.
///
/// # Errors
/// [`Error::Model`] if the file is corrupt, not ours, or its weights are not those of its layers.
pub fn load_model(path: &Path) -> Result<(Model, Vec<NamedTensor>)> {
    load(path).map(|(model, weights, _)| (model, weights))
}

/// Model, weights, and all of the metadata.
fn load(path: &Path) -> Result<(Model, Vec<NamedTensor>, BTreeMap<String, String>)> {
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
        None => Ok((model, weights, metadata)),
    }
}
