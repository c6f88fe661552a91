//! `shadernet evaluate`: how good a model is, in all and class by class.

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use serde_json::json;
use shadernet::data::{self, Dataset};
use shadernet::files::load_model;
use shadernet::nn::Model;
use shadernet::predict::Predictor;
use shadernet::{Error, Result as LibraryResult};

use super::progress::{Bar, Download};
use super::{Device, Result, answer, answer_json, at_least_one, format};

/// Judge a model by the test images: loss, accuracy, precision and recall of each class, confusion matrix.
#[derive(Args)]
#[command(after_help = "Examples:\n  shadernet evaluate cnn.safetensors\n  shadernet evaluate cnn.safetensors --data pictures --json")]
pub(super) struct Arguments {
    /// The model, as `train --out` writes it.
    model: PathBuf,
    /// The images, of which the test set is used: as for `train`. Without it: CIFAR-10 from the cache folder, else by download,
    /// else the small sample inside this program.
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    /// Use the first so many test images only.
    #[arg(long, value_name = "N", value_parser = at_least_one, allow_negative_numbers = true)]
    limit_test: Option<usize>,
    #[command(flatten)]
    device: Device,
    /// Answer with one JSON document: loss, accuracy, images, classes (images, predicted, correct, precision, recall), confusion
    /// (a row for each true class, a column for each predicted one).
    #[arg(long)]
    json: bool,
}

/// Images of one run of the network.
const BATCH: usize = 256;

/// Runs the command.
pub(super) fn run(arguments: &Arguments) -> Result {
    let (model, weights) = load_model(&arguments.model)?;
    let (exec, why) = arguments.device.open()?;
    log::info!("device {}: {why}", exec.device());
    let mut download = Download::default();
    let splits = data::find(arguments.data.as_deref(), &mut |done, total| download.update(done, total))?;
    drop(download);
    let mut test = splits.test;
    test.truncate(arguments.limit_test.unwrap_or(usize::MAX));
    check(&model, &test)?;

    let started = Instant::now();
    let mut predictor = Predictor::new(exec, model, &weights, BATCH.min(test.len()))?;
    let tally = judge(&mut predictor, &test)?;
    let seconds = started.elapsed().as_secs_f64();
    let (device, origin) = (predictor.device(), splits.origin.to_string());
    if arguments.json {
        return answer_json(&json!({
            "model": arguments.model.display().to_string(),
            "data": origin,
            "device": device,
            "seconds": seconds,
            "images": test.len(),
            "loss": tally.loss,
            "accuracy": tally.accuracy(),
            "classes": tally.classes(&test.classes).iter().map(Class::json).collect::<Vec<_>>(),
            "confusion": tally.confusion,
        }));
    }
    let images = format::grouped(test.len() as u64);
    let head = format!("model     {}\ndata      {origin}\ndevice    {device}\nimages    {images}\n", arguments.model.display());
    let figures = format!("loss      {:.4}\naccuracy  {:.2} %\n", tally.loss, 100.0 * tally.accuracy());
    answer(&format!("{head}{figures}\n{}\n{}", class_table(&tally, &test.classes), confusion_table(&tally, &test.classes)))
}

/// An error if the model cannot be judged by these images.
fn check(model: &Model, test: &Dataset) -> LibraryResult<()> {
    let found = [test.height, test.width, test.channels];
    if found != model.input {
        return Err(Error::invalid(
            "size of the test images",
            format::extents(&found),
            format!("{}, the model's", format::extents(&model.input)),
        ));
    }
    if test.classes != model.classes {
        let expected = format!("the model's, {}", model.classes.join(", "));
        return Err(Error::invalid("classes of the test images", test.classes.join(", "), expected));
    }
    if test.is_empty() {
        return Err(Error::invalid("test images", 0, "at least 1"));
    }
    Ok(())
}

/// Counts over the test images.
struct Tally {
    /// Mean cross-entropy.
    loss: f64,
    /// Images by true class and predicted class.
    confusion: Vec<Vec<usize>>,
}

/// Figures of one class.
struct Class<'a> {
    name: &'a str,
    images: usize,
    predicted: usize,
    correct: usize,
}

fn judge(predictor: &mut Predictor, test: &Dataset) -> LibraryResult<Tally> {
    let classes = test.classes.len();
    let mut tally = Tally { loss: 0.0, confusion: vec![vec![0; classes]; classes] };
    let bar = Bar::images("evaluating", 0, test.len());
    let (mut sum, mut seen) = (0.0, 0);
    for (images, labels) in test.images.chunks(BATCH * test.image_len()).zip(test.labels.chunks(BATCH)) {
        let logits = predictor.logits(images)?;
        for (row, &label) in logits.chunks_exact(classes).zip(labels) {
            if let Some(wrong) = row.iter().find(|logit| !logit.is_finite()) {
                return Err(Error::invalid(format!("a logit of test image {seen}"), wrong, "a finite number: the model is not usable"));
            }
            sum += cross_entropy(row, label as usize);
            tally.confusion[label as usize][first_greatest(row)] += 1;
            seen += 1;
        }
        bar.set(seen as u64);
    }
    tally.loss = sum / seen.max(1) as f64;
    Ok(tally)
}

/// `ln Σ exp(logits) - logits[label]`, without overflow.
fn cross_entropy(logits: &[f32], label: usize) -> f64 {
    let greatest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - greatest).exp()).sum();
    sum.ln() + f64::from(greatest) - f64::from(logits[label])
}

/// The predicted class: where logits tie, the first, as in training.
fn first_greatest(logits: &[f32]) -> usize {
    (1..logits.len()).fold(0, |best, class| if logits[class] > logits[best] { class } else { best })
}

impl Tally {
    fn accuracy(&self) -> f64 {
        let images: usize = self.confusion.iter().flatten().sum();
        let correct: usize = self.confusion.iter().enumerate().map(|(class, row)| row[class]).sum();
        correct as f64 / images.max(1) as f64
    }

    fn classes<'a>(&self, names: &'a [String]) -> Vec<Class<'a>> {
        let class = |(i, name): (usize, &'a String)| Class {
            name,
            images: self.confusion[i].iter().sum(),
            predicted: self.confusion.iter().map(|row| row[i]).sum(),
            correct: self.confusion[i][i],
        };
        names.iter().enumerate().map(class).collect()
    }
}

impl Class<'_> {
    /// Part of the images predicted to be of this class that are; of none there is no part.
    fn precision(&self) -> Option<f64> {
        (self.predicted > 0).then(|| self.correct as f64 / self.predicted as f64)
    }

    /// Part of the images of this class that were predicted so.
    fn recall(&self) -> Option<f64> {
        (self.images > 0).then(|| self.correct as f64 / self.images as f64)
    }

    fn json(&self) -> serde_json::Value {
        json!({
            "class": self.name,
            "images": self.images,
            "predicted": self.predicted,
            "correct": self.correct,
            "precision": self.precision(),
            "recall": self.recall(),
        })
    }
}

fn class_table(tally: &Tally, names: &[String]) -> String {
    let percent = |part: Option<f64>| part.map_or("–".to_owned(), |part| format!("{:.2} %", 100.0 * part));
    let row = |class: Class<'_>| {
        let counts = [class.images, class.predicted, class.correct].map(|count| format::grouped(count as u64));
        [vec![class.name.to_owned()], counts.to_vec(), vec![percent(class.precision()), percent(class.recall())]].concat()
    };
    let rows: Vec<Vec<String>> = tally.classes(names).into_iter().map(row).collect();
    format::table(&["class", "images", "predicted", "correct", "precision", "recall"], "<>>>>>", &rows)
}

fn confusion_table(tally: &Tally, names: &[String]) -> String {
    // More columns than these no terminal shows; JSON has them all.
    if names.len() > 20 {
        return format!("The confusion matrix of {} classes is in the JSON output only.\n", names.len());
    }
    let short: Vec<String> = names.iter().map(|name| name.chars().take(6).collect()).collect();
    let heading: Vec<&str> = ["true \\ predicted"].into_iter().chain(short.iter().map(String::as_str)).collect();
    let row = |(name, counts): (&String, &Vec<usize>)| {
        [vec![name.clone()], counts.iter().map(|&count| format::grouped(count as u64)).collect()].concat()
    };
    let rows: Vec<Vec<String>> = names.iter().zip(&tally.confusion).map(row).collect();
    format::table(&heading, &format!("<{}", ">".repeat(names.len())), &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loss_of_a_confident_mistake_is_finite_and_exact() {
        assert_eq!(cross_entropy(&[0.0, 1000.0], 0), 1000.0);
        assert!(cross_entropy(&[0.0, 1000.0], 1) == 0.0);
        assert!((cross_entropy(&[0.5; 10], 3) - 10f64.ln()).abs() < 1e-12);
    }

    #[test]
    fn figures_of_classes_come_from_rows_and_columns_of_the_confusion() {
        let tally = Tally { loss: 0.0, confusion: vec![vec![3, 1, 0], vec![2, 4, 0], vec![0, 0, 0]] };
        let names = ["a", "b", "c"].map(str::to_owned);
        let classes = tally.classes(&names);
        assert_eq!((classes[0].precision(), classes[0].recall()), (Some(0.6), Some(0.75)));
        assert_eq!((classes[1].precision(), classes[1].recall()), (Some(0.8), Some(4.0 / 6.0)));
        assert_eq!((classes[2].precision(), classes[2].recall()), (None, None));
        assert_eq!(tally.accuracy(), 0.7);
    }

    #[test]
    fn ties_are_predicted_as_the_first() {
        assert_eq!(first_greatest(&[1.0, 2.0, 2.0]), 1);
    }
}
