//! What is fuzzed: everything that reads what someone else wrote. A target is a function of bytes that must neither panic nor hang.

use std::collections::BTreeMap;
use std::path::Path;

use shadernet::data::images::decode_image;
use shadernet::exec::cpu::CpuExecutor;
use shadernet::files::{History, load_checkpoint, load_model, save_tensors};
use shadernet::plan::Choices;
use shadernet::predict::Predictor;
use shadernet::serve::fuzzing;
use shadernet::train::Snapshot;

/// The name of a corpus, and what reads it: whether an input is accepted.
pub(crate) type Target = (&'static str, fn(&[u8]) -> bool);

/// All targets.
pub(crate) const TARGETS: [Target; 9] = [
    ("open_inference", fuzzing::open_inference),
    ("tensorflow", fuzzing::tensorflow),
    ("grpc", fuzzing::grpc),
    ("picture", picture),
    ("parameters", fuzzing::parameters),
    ("tokens", fuzzing::tokens),
    ("model", model),
    ("layers", layers),
    ("checkpoint", checkpoint),
];

/// A PNG or a JPEG.
fn picture(data: &[u8]) -> bool {
    decode_image(Path::new("picture"), data, 6, 5).inspect(|bytes| assert_eq!(bytes.len(), 6 * 5 * 3)).is_ok()
}

/// A model file.
fn model(data: &[u8]) -> bool {
    with_file(data, served)
}

/// The layers in a model file's metadata, without weights.
fn layers(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let metadata = [("format", "shadernet"), ("version", "1"), ("model", text)];
    let metadata: BTreeMap<String, String> = metadata.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    with_file(&[], |path| {
        save_tensors(path, &[], &metadata).expect("a file is written");
        served(path)
    })
}

/// What a server does with a model file before it serves.
fn served(path: &Path) -> bool {
    let Ok((model, weights)) = load_model(path) else { return false };
    let values: usize = model.input.iter().product();
    let exec = Box::new(CpuExecutor::new(Some(1)).expect("a CPU"));
    let classes = model.classes.len();
    let Ok(mut predictor) = Predictor::new(exec, model, &weights, 1) else { return false };
    predictor.predict(&vec![0; values]).is_ok_and(|probabilities| probabilities.len() == classes)
}

/// A checkpoint file; or, behind a byte that is 0, the body of one, in a frame that is right.
fn checkpoint(data: &[u8]) -> bool {
    type Saved = (String, History, Snapshot, Choices, Option<(u64, f32, bool)>);
    let framed = match data.split_first() {
        Some((0, body)) => {
            let header = [&b"SHADERNT"[..], &3_u32.to_le_bytes(), &(body.len() as u64).to_le_bytes()].concat();
            let whole = [&header[..], body].concat();
            let checksum = crc32fast::hash(&whole).to_le_bytes();
            [&whole[..], &checksum].concat()
        }
        _ => data.to_vec(),
    };
    with_file(&framed, |path| load_checkpoint::<Saved>(path).is_ok())
}

fn with_file(data: &[u8], work: impl FnOnce(&Path) -> bool) -> bool {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), data).expect("a file is written");
    work(file.path())
}
