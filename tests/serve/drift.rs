//! What is served against what the model was validated with, as `/metrics` tells it.

use shadernet::data::Dataset;
use shadernet::files::{ModelFile, save_model};
use shadernet::predict::Predictor;

use super::client::*;

/// Images whose bytes lie between 60 and 123.
fn dim(start: usize, count: usize) -> Vec<u8> {
    images(start, count * IMAGE).into_iter().map(|byte| 60 + byte / 4).collect()
}

/// A server of the small network with statistics of 200 dim images in its file.
fn with_baseline() -> (Served, ModelFile) {
    let served = Served::new();
    let [height, width, channels] = INPUT;
    let model = small_model();
    let validation = Dataset { images: dim(0, 200), labels: vec![0; 200], height, width, channels, classes: model.classes.clone() };
    let weights = weights(&model, 1);
    let baseline = Predictor::new(cpu()().unwrap(), model.clone(), &weights, 7).unwrap().baseline(&validation).unwrap();
    let file = ModelFile { model, weights, baseline: Some(baseline) };
    let path = served.folder.path().join("m.safetensors");
    file.save(&path).unwrap();
    assert_eq!(ModelFile::load(&path).unwrap(), file);
    assert_eq!(post(served.admin, "/v2/repository/models/m/load", b"").status, 200);
    (served, file)
}

fn gauge(served: &Served, name: &str, channel: Option<usize>) -> f64 {
    let channel = channel.map_or(String::new(), |channel| format!(",channel=\"{channel}\""));
    served.metric(&format!("shadernet_drift_{name}{{model=\"m\",version=\"1\"{channel}}}"))
}

#[test]
fn shifted_images_raise_the_gauges_and_like_ones_do_not() {
    let (served, _) = with_baseline();
    assert!(!String::from_utf8(get(served.admin, "/metrics").body).unwrap().contains("shadernet_drift_images{"), "nothing was served");
    let send = |bytes: &[u8]| bytes.chunks(50 * IMAGE).for_each(|part| assert_eq!(infer_raw(served.http, part).status, 200));
    send(&dim(999, 200));
    served.until("all are counted", |served| gauge(served, "images", None) == 200.0);
    for channel in 0..3 {
        assert!(gauge(&served, "input_mean", Some(channel)) < 0.2);
        assert!((gauge(&served, "input_deviation", Some(channel)) - 1.0).abs() < 0.1);
    }
    assert!(gauge(&served, "classes", None) < 0.25 && gauge(&served, "confidence", None).abs() < 0.05);

    // The same images in twice the light: means of 0.36 become 0.72, deviations double.
    let bright: Vec<u8> = dim(5, 2200).into_iter().map(|byte| 2 * byte).collect();
    send(&bright);
    served.until("only the latest count", |served| (1000.0..=2000.0).contains(&gauge(served, "images", None)));
    for channel in 0..3 {
        assert!(gauge(&served, "input_mean", Some(channel)) > 3.0);
        assert!((gauge(&served, "input_deviation", Some(channel)) - 2.0).abs() < 0.2);
    }
}

#[test]
fn models_without_statistics_serve_and_have_no_gauges() {
    let served = Served::new();
    assert_eq!(infer_raw(served.http, &images(0, IMAGE)).status, 200);
    let metrics = String::from_utf8(get(served.admin, "/metrics").body).unwrap();
    assert!(metrics.contains("# TYPE shadernet_drift_classes gauge") && !metrics.contains("shadernet_drift_classes{"), "{metrics}");
}

#[test]
fn statistics_of_another_model_are_refused_and_plain_files_have_none() {
    let (served, file) = with_baseline();
    let path = served.folder.path().join("m.safetensors");
    let text = std::fs::read(&path).unwrap();
    let refused = |change: &dyn Fn(&mut shadernet::files::Baseline), words: &str| {
        let mut wrong = file.clone();
        wrong.baseline.iter_mut().for_each(change);
        let error = wrong.save(&path).unwrap_err().to_string();
        assert!(error.contains(words), "no {words:?} in {error}");
        assert_eq!(std::fs::read(&path).unwrap(), text, "what was there stays");
    };
    refused(&|baseline| baseline.mean.truncate(2), "2 means");
    refused(&|baseline| baseline.classes.push(0.0), "5 classes");
    refused(&|baseline| baseline.deviation[1] = -1.0, "-1");
    refused(&|baseline| baseline.confidence = f64::NAN, "NaN");

    // A name of the same length, so that the header's own length stays right.
    let head = 8 + u64::from_le_bytes(text[..8].try_into().unwrap()) as usize;
    let mut bad = text.clone();
    let at = text[..head].windows(8).position(|window| window == b"\\\"mean\\\"").unwrap();
    bad[at + 3] = b'x';
    std::fs::write(&path, bad).unwrap();
    let error = ModelFile::load(&path).unwrap_err().to_string();
    assert!(error.contains("a baseline that does not parse"), "{error}");

    save_model(&path, &file.model, &file.weights).unwrap();
    assert_eq!(ModelFile::load(&path).unwrap(), ModelFile { baseline: None, ..file });
}
