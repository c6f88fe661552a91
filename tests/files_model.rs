//! Model files and histories: equal weights are equal bytes, and nothing malformed is taken for a model.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use shadernet::Error;
use shadernet::files::*;

fn tensor(name: &str, extents: &[usize], data: &[f32]) -> NamedTensor {
    NamedTensor { name: name.into(), extents: extents.into(), data: data.into() }
}

/// Two tensors, a scalar and one without values, not in the order of their names.
fn small_model() -> (Vec<NamedTensor>, BTreeMap<String, String>) {
    let tensors = vec![
        tensor("dense/weights", &[2, 3], &[1.0, -2.5, f32::MIN_POSITIVE, 0.0, -0.0, 1e30]),
        tensor("dense/bias", &[3], &[0.5, 0.25, 0.125]),
        tensor("empty", &[0, 4], &[]),
        tensor("scalar", &[], &[7.0]),
    ];
    let metadata = (0..20).map(|i| (format!("key {i}"), format!("value \"{i}\" ✓"))).collect();
    (tensors, metadata)
}

fn refusal(path: &Path) -> String {
    match load_tensors(path) {
        Err(Error::Model { kind: "model", found, expected, .. }) => format!("found {found}, expected {expected}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn model_comes_back_by_name_with_its_metadata() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.safetensors");
    let (mut tensors, metadata) = small_model();
    save_tensors(&path, &tensors, &metadata).unwrap();
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    let (loaded, found) = load_tensors(&path).unwrap();
    assert_eq!((&loaded, &found), (&tensors, &metadata));
    let bits = |tensors: &[NamedTensor]| tensors.iter().flat_map(|t| t.data.iter().map(|v| v.to_bits())).collect::<Vec<_>>();
    assert_eq!(bits(&loaded), bits(&tensors));

    // More than one block of the writer, and NaN keeps its bits.
    let large: Vec<f32> = (0..10_000).map(|i| if i == 5000 { f32::from_bits(0x7fc1_2345) } else { i as f32 }).collect();
    save_tensors(&path, &[tensor("large", &[100, 100], &large)], &BTreeMap::new()).unwrap();
    let (loaded, found) = load_tensors(&path).unwrap();
    assert_eq!(bits(&loaded), bits(&[tensor("large", &[100, 100], &large)]));
    assert!(found.is_empty());
    save_tensors(&path, &[], &BTreeMap::new()).unwrap();
    assert_eq!(load_tensors(&path).unwrap(), (vec![], BTreeMap::new()));
}

#[test]
fn equal_models_are_equal_bytes_in_the_published_format() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (folder.path().join("a"), folder.path().join("b"));
    let (mut tensors, metadata) = small_model();
    save_tensors(&a, &tensors, &metadata).unwrap();
    tensors.reverse();
    save_tensors(&b, &tensors, &metadata).unwrap();
    assert_eq!(fs::read(&a).unwrap(), fs::read(&b).unwrap());

    let metadata = BTreeMap::from([("b".to_owned(), "2".to_owned()), ("a".to_owned(), "1".to_owned())]);
    save_tensors(&a, &[tensor("y", &[1], &[2.0]), tensor("x", &[1, 1], &[1.0])], &metadata).unwrap();
    let json = r#"{"__metadata__":{"a":"1","b":"2"},"x":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]},"y":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#;
    let padded = format!("{json:<width$}", width = json.len().next_multiple_of(8));
    let wanted = [&(padded.len() as u64).to_le_bytes()[..], padded.as_bytes(), &1f32.to_le_bytes(), &2f32.to_le_bytes()].concat();
    assert_eq!(fs::read(&a).unwrap(), wanted);
}

#[test]
fn model_that_contradicts_itself_is_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.safetensors");
    save_tensors(&path, &[tensor("old", &[1], &[1.0])], &BTreeMap::new()).unwrap();
    let old = fs::read(&path).unwrap();
    let cases = [
        (vec![tensor("a", &[2, 2], &[1.0; 3])], "found 3 values, expected as many as its extents [2, 2] say"),
        (vec![tensor("a", &[usize::MAX, 2], &[1.0; 3])], "found 3 values"),
        (vec![tensor("a", &[1], &[1.0]), tensor("a", &[1], &[2.0])], "found \"a\" again"),
        (vec![tensor("__metadata__", &[1], &[1.0])], "found \"__metadata__\""),
        (vec![tensor(&"n".repeat(9 << 20), &[1], &[1.0])], "expected at most 8388608"),
    ];
    for (tensors, message) in cases {
        let error = save_tensors(&path, &tensors, &BTreeMap::new()).unwrap_err();
        assert!(matches!(error, Error::Invalid { .. }) && error.to_string().contains(message), "{error} lacks {message}");
        assert_eq!(fs::read(&path).unwrap(), old);
    }
}

#[test]
fn every_truncation_of_a_model_is_refused_and_no_flipped_bit_is_a_panic() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.safetensors");
    let (tensors, metadata) = small_model();
    save_tensors(&path, &tensors, &metadata).unwrap();
    let whole = fs::read(&path).unwrap();
    for length in 0..whole.len() {
        fs::write(&path, &whole[..length]).unwrap();
        refusal(&path);
    }
    let data = whole.len() - 4 * tensors.iter().map(|t| t.data.len()).sum::<usize>();
    for bit in 0..8 * whole.len() {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        fs::write(&path, &bytes).unwrap();
        match load_tensors(&path) {
            // In the header it may change a name or a key; in the data, which has no checksum, a value.
            Ok((loaded, found)) => assert!(bit / 8 >= 8 && (loaded, found) != (tensors.clone(), metadata.clone())),
            Err(error) => assert!(bit / 8 < data && matches!(error, Error::Model { kind: "model", .. }), "bit {bit}: {error}"),
        }
    }
    fs::write(&path, [&whole[..], b"\0"].concat()).unwrap();
    refusal(&path);
}

#[test]
fn hostile_headers_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.safetensors");
    let file = |json: &str, data: usize| [&(json.len() as u64).to_le_bytes()[..], json.as_bytes(), &vec![0; data]].concat();
    let one =
        |dtype: &str, shape: &str, offsets: &str| format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#);
    let two =
        |offsets: &str| format!(r#"{{"b":{{"dtype":"F32","shape":[1],"data_offsets":{offsets}}},{}"#, &one("F32", "[1]", "[0,4]")[1..]);
    let cases = [
        (file("", 0), "JSON"),
        (file("[]", 0), "JSON"),
        (file("{\"a\":1}", 0), "JSON"),
        (file("\u{0}\u{0}", 0), "JSON"),
        ([&2u64.to_le_bytes()[..], b"\xff\xff"].concat(), "UTF-8"),
        (file(&"[".repeat(100_000), 0), "JSON"),
        (file(&format!("{{\"a\":{}", "{\"a\":".repeat(100_000)), 0), "JSON"),
        (b"PK\x03\x04 an archive, not a model at all".to_vec(), "a header of"),
        (file(&one("F64", "[1]", "[0,8]"), 8), "tensor \"a\" of type F64, expected F32"),
        (file(&one("F16", "[2]", "[0,4]"), 4), "tensor \"a\" of type F16, expected F32"),
        (file(&one("F32", "[2]", "[0,4]"), 4), "invalid shape"),
        (file(&one("F32", "[1]", "[4,0]"), 4), "invalid offset"),
        (file(&one("F32", "[1]", "[4,8]"), 8), "invalid offset"),
        (file(&one("F32", "[1]", "[0,4]"), 8), "not fully covered"),
        (file(&one("F32", "[1]", "[0,4]"), 0), "not fully covered"),
        (file(&one("F32", "[18446744073709551615,18446744073709551615]", "[0,4]"), 4), "overflow"),
        (file(&one("F32", "[4611686018427387905]", "[0,4]"), 4), "overflow"),
        (file(&one("F32", "[0]", "[0,18446744073709551615]"), 0), "invalid shape"),
        (file(&one("F32", "[-1]", "[0,4]"), 4), "JSON"),
        (file(&two("[0,4]"), 4), "invalid offset"),
        (file(&two("[2,6]"), 6), "invalid offset"),
        (file(&two("[8,12]"), 12), "invalid offset"),
    ];
    for (bytes, message) in cases {
        fs::write(&path, bytes).unwrap();
        let said = refusal(&path);
        assert!(said.contains(message), "{said:?} lacks {message:?}");
    }
    fs::write(&path, file(&two("[4,8]"), 8)).unwrap();
    assert_eq!(load_tensors(&path).unwrap().0.len(), 2);
}

// Histories.

fn history() -> History {
    History {
        loss: vec![1.571, 1.195],
        accuracy: vec![0.424, 0.575],
        val_loss: vec![1.318, 1.139],
        val_accuracy: vec![0.524, 0.596],
        seconds: vec![61.5, 60.25],
        val_seconds: vec![2.5, 2.0],
        device: "llvmpipe (LLVM 15.0.6, 256 bits)".into(),
    }
}

#[test]
fn history_comes_back_from_json_and_from_a_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("history.json");
    history().save(&path).unwrap();
    assert_eq!(History::load(&path).unwrap(), history());
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains("\n  \"val_accuracy\": [\n    0.524,\n") && text.ends_with("}\n"), "{text}");

    let diverged = History { loss: vec![1.0, f64::NAN, f64::INFINITY], ..history() };
    diverged.save(&path).unwrap();
    let loss = History::load(&path).unwrap().loss;
    assert!(loss[0] == 1.0 && loss[1].is_nan() && loss[2].is_nan(), "{loss:?}");
    save_checkpoint(&path, &diverged).unwrap();
    let loss = load_checkpoint::<History>(&path).unwrap().loss;
    assert!(loss[0] == 1.0 && loss[1].is_nan() && loss[2] == f64::INFINITY, "{loss:?}");
}

#[test]
fn history_of_keras_is_read_and_a_malformed_one_refused_at_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("history.json");
    fs::write(&path, r#"{"accuracy": [0.5], "loss": [1], "learning_rate": [0.001], "val_loss": [2.5e0], "val_accuracy": [1]}"#).unwrap();
    let keras = History::load(&path).unwrap();
    assert_eq!((keras.loss, keras.accuracy, keras.val_loss, keras.seconds), (vec![1.0], vec![0.5], vec![2.5], vec![]));

    for (text, place) in [("{\"loss\": [1, \"x\"]}", 14), ("{\n \"loss\":\n[1,, 2]}", 14), ("", 0), ("{\"loss\": [1]", 12), ("{} {}", 3)] {
        fs::write(&path, text).unwrap();
        match History::load(&path) {
            Err(Error::Data { offset, .. }) => assert!(offset.abs_diff(place) <= 2, "{text:?}: at {offset}, not {place}"),
            other => panic!("{text:?}: {other:?}"),
        }
    }
}
