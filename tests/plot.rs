//! The picture of a training curve: that there is one for every history a run can have, and that it shows the curves.
#![cfg(feature = "plot")]

use std::path::Path;

use shadernet::Error;
use shadernet::files::History;
use shadernet::plot::plot_history;

/// Ten epochs of the CIFAR-10 network, as such a run goes.
fn ten_epochs() -> History {
    History {
        loss: vec![1.571, 1.195, 1.047, 0.943, 0.864, 0.798, 0.744, 0.695, 0.654, 0.614],
        accuracy: vec![0.424, 0.575, 0.632, 0.671, 0.699, 0.721, 0.740, 0.757, 0.771, 0.784],
        val_loss: vec![1.318, 1.139, 1.052, 0.995, 0.932, 0.921, 0.897, 0.911, 0.905, 0.926],
        val_accuracy: vec![0.524, 0.596, 0.631, 0.653, 0.677, 0.681, 0.694, 0.691, 0.697, 0.694],
        ..History::default()
    }
}

fn repeated(history: &History, epochs: usize) -> History {
    let list = |values: &[f64]| values.iter().cycle().take(epochs).copied().collect();
    History {
        loss: list(&history.loss),
        accuracy: list(&history.accuracy),
        val_loss: list(&history.val_loss),
        val_accuracy: list(&history.val_accuracy),
        ..History::default()
    }
}

/// How many pixels of each half are more orange (validation) and more blue (training) than grey.
fn coloured_pixels(path: &Path) -> [(usize, usize); 2] {
    let picture = image::open(path).unwrap().to_rgb8();
    assert_eq!(picture.dimensions(), (1200, 520));
    let mut counts = [(0, 0); 2];
    for (x, _, pixel) in picture.enumerate_pixels() {
        let [red, _, blue] = pixel.0.map(i32::from);
        let half = &mut counts[usize::from(x >= 600)];
        half.0 += usize::from(red - blue > 60);
        half.1 += usize::from(blue - red > 60);
    }
    counts
}

#[test]
fn both_panels_show_both_curves() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("curve.png");
    plot_history(&ten_epochs(), "shadernet on CIFAR-10", &path).unwrap();
    for (orange, blue) in coloured_pixels(&path) {
        assert!(orange > 500 && blue > 500, "{orange} orange and {blue} blue pixels");
    }
}

#[test]
fn without_validation_only_training_is_drawn() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("curve.png");
    let history = History { val_loss: vec![], val_accuracy: vec![], ..ten_epochs() };
    plot_history(&history, "training alone", &path).unwrap();
    for (orange, blue) in coloured_pixels(&path) {
        assert!(orange == 0 && blue > 500, "{orange} orange and {blue} blue pixels");
    }
}

#[test]
fn every_number_of_epochs_and_every_value_gives_a_picture() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("curve.png");
    for epochs in [1, 2, 3, 13, 200, 5000] {
        plot_history(&repeated(&ten_epochs(), epochs), "long title ".repeat(epochs.min(40)).as_str(), &path).unwrap();
    }
    let extremes = [f64::NAN, f64::INFINITY, f64::MAX, f64::MIN, f64::MIN_POSITIVE, 0.0, -0.0, 1e29, -1e29, 1e-300, 5.0, 5.0 + 1e-12];
    for (a, b) in extremes.into_iter().zip(extremes.into_iter().cycle().skip(5)) {
        let list = vec![a, b, 1.0, a];
        let history =
            History { loss: list.clone(), accuracy: list.clone(), val_loss: list.clone(), val_accuracy: list, ..History::default() };
        plot_history(&history, "", &path).unwrap();
        let alone = History { loss: vec![a, a], accuracy: vec![b, b], ..History::default() };
        plot_history(&alone, "ünïcode \n\0 🙂", &path).unwrap();
    }
}

#[test]
fn empty_and_ragged_histories_are_refused_with_their_lengths() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("curve.png");
    let cases = [
        (History::default(), "history to plot: found no epoch, expected one at least"),
        (History { accuracy: vec![0.5], ..ten_epochs() }, "history to plot: accuracy: found 1 values, expected 10, as loss has"),
        (History { val_loss: vec![], ..ten_epochs() }, "history to plot: val_loss: found 0 values, expected 10, as loss has"),
    ];
    for (history, message) in cases {
        let error = plot_history(&history, "", &path).unwrap_err();
        assert!(matches!(error, Error::Invalid { .. }));
        assert_eq!(error.to_string(), message);
    }
    assert!(!path.exists());
}
