//! The commands that measure, on tiny limits: their JSON has every field, and a trace is what viewers read. No time is judged.

#[path = "common/program.rs"]
mod binary;

use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Runs the program on the CPU, without network or cache, and reads its answer.
fn shadernet(arguments: &[&str], folder: &Path) -> Value {
    let mut command = Command::new(binary::program());
    command.args(arguments).args(["--device", "cpu", "--threads", "2", "--json"]);
    let output = command.env("SHADERNET_OFFLINE", "1").env("SHADERNET_CACHE", folder).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("the answer is one JSON document")
}

/// Whether each path, `a.b`, leads to a positive number.
fn check_positive(document: &Value, paths: &[&str]) {
    for path in paths {
        let value = document.pointer(&format!("/{}", path.replace('.', "/"))).unwrap_or(&Value::Null);
        assert!(value.as_f64().is_some_and(|number| number > 0.0), "{path} is {value}");
    }
}

const ROW: [&str; 4] = ["calls", "us", "share", "gbytes"];

fn check_profile(profile: &Value) {
    check_positive(profile, &["runs", "batch", "span_us", "wall_us", "total.us", "total.flops", "total.gflops", "total.of_ceiling"]);
    check_positive(profile, &["ceiling.gflops", "ceiling.gbytes"]);
    assert!(profile["ceiling"]["how"].is_string() && profile["host_us"].is_number());
    let rows = profile["kernels"].as_array().unwrap();
    let steps = profile["steps"].as_array().unwrap();
    assert!(rows.iter().all(|row| row["layer"].is_string() && row["kernel"].is_string() && row["of_memory"].is_number()));
    rows.iter().for_each(|row| check_positive(row, &ROW));
    let sum = |rows: &[Value], field: &str| rows.iter().map(|row| row[field].as_f64().unwrap()).sum::<f64>();
    assert_eq!(sum(rows, "calls"), steps.len() as f64);
    assert!((sum(rows, "share") - 1.0).abs() < 1e-9);
    assert_eq!(sum(rows, "flops"), sum(steps, "flops"));
}

#[test]
fn a_benchmark_tells_everything_as_json() {
    let folder = tempfile::tempdir().unwrap();
    let limits = ["bench", "--limit-train", "96", "--limit-test", "40", "--epochs", "2", "--batch-size", "32"];
    let report = shadernet(&[&limits[..], &["--seconds", "0", "--steps", "2"]].concat(), folder.path());
    for path in ["shadernet", "date", "device", "system", "model", "data"] {
        assert!(report[path].as_str().is_some_and(|text| !text.is_empty()), "{path} is {}", report[path]);
    }
    for path in ["driver", "processor"] {
        assert!(report.get(path).is_some_and(|value| value.is_string() || value.is_null()), "{path}");
    }
    check_positive(&report, &["cores", "parameters", "start.cold_s", "start.warm_s"]);
    check_positive(&report, &["training.images_per_s", "training.seconds_per_epoch", "training.val_images_per_s"]);
    assert_eq!(
        (&report["training"]["images"], &report["training"]["test_images"], &report["training"]["batch"]),
        (&96.into(), &40.into(), &32.into())
    );
    assert_eq!(report["training"]["precision"], "f32");
    let epochs = report["training"]["epochs"].as_array().unwrap();
    assert_eq!(epochs.len(), 2);
    epochs.iter().for_each(|epoch| check_positive(epoch, &["seconds", "images_per_s", "loss", "val_seconds", "val_images_per_s"]));
    for batch in ["b1", "b64", "b256"] {
        check_positive(&report["inference"][batch], &["batch", "calls", "p50_ms", "p99_ms", "images_per_s"]);
    }
    check_positive(&report, &["memory.training_device_bytes", "memory.inference_device_bytes"]);
    assert_eq!(report["memory"]["peak_host_bytes"].is_u64(), cfg!(target_os = "linux"));
    assert!(report["memory"].get("allocated_bytes").is_some() && report["memory"].get("reserved_bytes").is_some());
    check_profile(&report["profile"]);
}

#[test]
fn every_kind_of_step_is_profiled_with_a_trace_that_viewers_read() {
    let folder = tempfile::tempdir().unwrap();
    for (what, batch) in [("train", 8), ("evaluate", 256), ("predict", 8)] {
        let path = folder.path().join("trace.json");
        let arguments = ["profile", "--what", what, "--batch-size", "8", "--steps", "3", "--trace", path.to_str().unwrap()];
        let profile = shadernet(&arguments, folder.path());
        check_profile(&profile);
        assert_eq!((&profile["what"], &profile["batch"], &profile["runs"]), (&what.into(), &batch.into(), &3.into()));

        let trace: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).expect("a trace is one JSON document");
        let events = trace["traceEvents"].as_array().unwrap();
        assert_eq!(events.len(), 3 * profile["steps"].as_array().unwrap().len());
        let mut end = 0.0;
        for event in events {
            assert_eq!(event["ph"], "X");
            assert!(event["name"].is_string() && event["cat"].is_string() && event["pid"].is_number() && event["tid"].is_number());
            let [ts, dur] = ["ts", "dur"].map(|field| event[field].as_f64().unwrap());
            assert!(ts >= end - 1e-3 && dur >= 0.0, "events in order: {event} after {end}");
            end = ts + dur;
        }
    }
}

#[test]
fn what_a_device_cannot_do_is_an_error_and_not_another_measurement() {
    let folder = tempfile::tempdir().unwrap();
    for (command, reason) in [("bench", "SHADER_F16"), ("profile", "SHADER_F16"), ("profile --what predict", "--what train")] {
        let mut program = Command::new(binary::program());
        program.args(command.split(' ')).args(["--device", "cpu", "--precision", "mixed"]);
        let output = program.env("SHADERNET_OFFLINE", "1").env("SHADERNET_CACHE", folder.path()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && output.stdout.is_empty() && said.contains(reason), "{command}: {said}");
    }
}
