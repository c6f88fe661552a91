//! `shadernet predict`: what a model sees in pictures.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;
use shadernet::data::images::read_image;
use shadernet::files::load_model;
use shadernet::predict::Predictor;
use shadernet::{Error, Result as LibraryResult};

use super::{Device, Failure, Result, answer, answer_json, at_least_one, complain};

/// Classify pictures: the most probable classes of each, with their probabilities.
///
/// PNG or JPEG of any size; each is resized to what the model takes. One that cannot be read is named in an error, the others
/// are answered all the same, and the exit code is 1.
#[derive(Args)]
#[command(after_help = "Example:\n  shadernet predict cnn.safetensors cat.png dog.jpg --top 5")]
pub(super) struct Arguments {
    /// The model, as `train --out` writes it.
    model: PathBuf,
    /// The pictures.
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<PathBuf>,
    /// Classes to name for each picture, the most probable first.
    #[arg(long, value_name = "K", default_value_t = 3, value_parser = at_least_one, allow_negative_numbers = true)]
    top: usize,
    #[command(flatten)]
    device: Device,
    /// Answer with one JSON document: images, each with its top classes or its error.
    #[arg(long)]
    json: bool,
}

/// Pictures that are in memory together.
const BATCH: usize = 64;

/// The most probable classes of a picture, or why it has none.
type Prediction<'a> = (&'a Path, LibraryResult<Vec<(String, f32)>>);

/// Runs the command.
pub(super) fn run(arguments: &Arguments) -> Result {
    let (model, weights) = load_model(&arguments.model)?;
    let (exec, why) = arguments.device.open()?;
    log::info!("device {}: {why}", exec.device());
    let mut predictor = Predictor::new(exec, model, &weights, BATCH.min(arguments.images.len()))?;
    let mut predictions: Vec<Prediction<'_>> = Vec::new();
    for paths in arguments.images.chunks(BATCH) {
        predictions.extend(classify(&mut predictor, paths, arguments.top)?);
    }
    let failed = predictions.iter().any(|(_, prediction)| prediction.is_err());
    for error in predictions.iter().filter_map(|(_, prediction)| prediction.as_ref().err()) {
        complain(error);
    }
    if arguments.json {
        answer_json(&json!({
            "model": arguments.model.display().to_string(),
            "device": predictor.device(),
            "images": predictions.iter().map(to_json).collect::<Vec<_>>(),
        }))?;
    } else {
        let text: String = predictions.iter().map(to_text).collect();
        if !text.is_empty() {
            answer(&text)?;
        }
    }
    if failed { Err(Failure::Told) } else { Ok(()) }
}

fn classify<'a>(predictor: &mut Predictor, paths: &'a [PathBuf], top: usize) -> LibraryResult<Vec<Prediction<'a>>> {
    let [height, width, channels] = predictor.model().input;
    if channels != 3 {
        return Err(Error::invalid("channels of the model's images", channels, "3, as pictures have"));
    }
    let pictures: Vec<LibraryResult<Vec<u8>>> = paths.iter().map(|path| read_image(path, height, width)).collect();
    let bytes: Vec<u8> = pictures.iter().flatten().flatten().copied().collect();
    let probabilities = predictor.predict(&bytes)?;
    if let Some(wrong) = probabilities.iter().find(|probability| !probability.is_finite()) {
        return Err(Error::invalid("a probability", wrong, "a finite number: the model is not usable"));
    }
    let classes = predictor.model().classes.clone();
    let mut rows = probabilities.chunks_exact(classes.len());
    let prediction = |(path, picture): (&'a PathBuf, LibraryResult<Vec<u8>>)| {
        let prediction = picture.map(|_| most_probable(rows.next().unwrap_or_default(), &classes, top));
        (path.as_path(), prediction)
    };
    Ok(paths.iter().zip(pictures).map(prediction).collect())
}

/// The `top` most probable classes; equal ones in their order.
fn most_probable(probabilities: &[f32], classes: &[String], top: usize) -> Vec<(String, f32)> {
    let mut ranked: Vec<(String, f32)> = classes.iter().cloned().zip(probabilities.iter().copied()).collect();
    ranked.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    ranked.truncate(top);
    ranked
}

fn to_json((path, prediction): &Prediction<'_>) -> serde_json::Value {
    let image = path.display().to_string();
    match prediction {
        Ok(top) => {
            let top: Vec<_> = top.iter().map(|(class, probability)| json!({ "class": class, "probability": probability })).collect();
            json!({ "image": image, "top": top })
        }
        Err(error) => json!({ "image": image, "error": error.to_string() }),
    }
}

fn to_text((path, prediction): &Prediction<'_>) -> String {
    let Ok(top) = prediction else { return String::new() };
    let width = top.iter().map(|(class, _)| class.chars().count()).max().unwrap_or(0);
    let line = |(class, probability): &(String, f32)| format!("  {class:<width$}  {:6.2} %\n", 100.0 * probability);
    format!("{}\n{}", path.display(), top.iter().map(line).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_ranked_and_ties_keep_their_order() {
        let classes = ["a", "b", "c", "d"].map(str::to_owned);
        let names = |top| most_probable(&[0.1, 0.4, 0.1, 0.4], &classes, top).into_iter().map(|(class, _)| class).collect::<Vec<_>>();
        assert_eq!(names(3), ["b", "d", "a"]);
        assert_eq!(names(9), ["b", "d", "a", "c"]);
    }
}
