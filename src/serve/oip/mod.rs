//! The Open Inference Protocol (KServe's v2) over HTTP: what the server and its models say of themselves, and inference.
//!
//! With the extensions that its clients use: binary tensors, classification, configuration, statistics, and the repository.

pub(super) mod infer;

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use hyper::HeaderMap;
use serde_json::{Value, json};

use super::State;
use super::answer::{Answer, json_answer};
use super::refusal::Refusal;
use super::stats::Timer;
use super::version::Version;

/// The name of the input: images `[N, H, W, C]`, UINT8 from 0 to 255, or FP32 from 0 to 1.
pub(super) const INPUT: &str = "images";
/// The name of the output: probabilities `[N, classes]`.
pub(super) const OUTPUT: &str = "probabilities";
/// What the protocol calls the program behind a model.
pub(super) const PLATFORM: &str = "shadernet";
/// Extensions, by the names that clients look for.
pub(super) const EXTENSIONS: [&str; 5] = ["binary_tensor_data", "classification", "model_configuration", "statistics", "model_repository"];

/// `GET /v2`.
pub(super) fn server_metadata() -> Value {
    json!({ "name": PLATFORM, "version": env!("CARGO_PKG_VERSION"), "extensions": EXTENSIONS })
}

/// `GET /v2/models/M`.
pub(super) fn metadata(state: &State, version: &Version) -> Value {
    let [height, width, channels] = version.model().input;
    let versions: Vec<String> = state.repository.numbers(&version.name).iter().map(u64::to_string).collect();
    json!({
        "name": version.name,
        "versions": versions,
        "platform": PLATFORM,
        "inputs": [{ "name": INPUT, "datatype": "UINT8", "shape": [-1, height, width, channels] }],
        "outputs": [{ "name": OUTPUT, "datatype": "FP32", "shape": [-1, version.model().classes.len()] }],
        "parameters": { "sha256": version.sha256, "device": version.device, "classes": version.model().classes },
    })
}

/// `GET /v2/models/M/config`, as Triton's `ModelConfig` is in JSON.
pub(super) fn config(version: &Version) -> Value {
    let batching = &version.running.batching;
    let model = version.model();
    json!({
        "name": version.name,
        "platform": PLATFORM,
        "backend": PLATFORM,
        "version_policy": { "all": {} },
        "max_batch_size": batching.max,
        "input": [{ "name": INPUT, "data_type": "TYPE_UINT8", "format": "FORMAT_NHWC", "dims": model.input }],
        "output": [{ "name": OUTPUT, "data_type": "TYPE_FP32", "dims": [model.classes.len()], "label_filename": "" }],
        "dynamic_batching": {
            "preferred_batch_size": batching.preferred,
            "max_queue_delay_microseconds": batching.delay.as_micros() as u64,
            "default_queue_policy": { "timeout_action": "REJECT", "max_queue_size": version.running.queue },
        },
        "instance_group": [{ "name": version.name, "kind": "KIND_AUTO", "count": version.running.instances }],
    })
}

/// `GET /v2/models/M/stats` and `/v2/models/stats`, as Triton has them.
pub(super) fn statistics(versions: &[Arc<Version>]) -> Value {
    let timer = |timer: &Timer| json!({ "count": timer.count(), "ns": timer.nanoseconds() });
    let one = |version: &Arc<Version>| {
        let stats = version.stats();
        let by_size = stats.by_size.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let batch = |(size, sums): (usize, super::stats::BySize)| {
            let [upload, compute, download] = sums.nanoseconds.map(|ns| json!({ "count": sums.count, "ns": ns }));
            json!({ "batch_size": size, "compute_input": upload, "compute_infer": compute, "compute_output": download })
        };
        json!({
            "name": version.name,
            "version": version.number.to_string(),
            "last_inference": stats.last.load(Ordering::Relaxed),
            "inference_count": stats.images.load(Ordering::Relaxed),
            "execution_count": stats.batches.load(Ordering::Relaxed),
            "inference_stats": {
                "success": timer(&stats.success),
                "fail": timer(&stats.failure),
                "queue": timer(&stats.queue),
                "compute_input": timer(&stats.upload),
                "compute_infer": timer(&stats.compute),
                "compute_output": timer(&stats.download),
                "cache_hit": { "count": 0, "ns": 0 },
                "cache_miss": { "count": 0, "ns": 0 },
            },
            "response_stats": {},
            "batch_stats": by_size.into_iter().map(batch).collect::<Vec<_>>(),
            "memory_usage": [{ "type": "DEVICE", "id": 0, "byte_size": version.device_bytes() }],
            "pending": version.queue().requests(),
        })
    };
    json!({ "model_stats": versions.iter().map(one).collect::<Vec<_>>() })
}

/// `POST /v2/repository/index`.
pub(super) fn index(state: &State, ready_only: bool) -> Value {
    let lines = state.repository.index().into_iter().filter(|line| line.ready || !ready_only);
    let line = |line: super::repository::Line| {
        let serves = if line.ready { "READY" } else { "UNAVAILABLE" };
        json!({ "name": line.name, "version": line.version, "state": serves, "reason": line.reason })
    };
    lines.map(line).collect()
}

/// `POST /v2/models/M/infer`.
pub(super) async fn infer(state: &State, version: &Version, headers: &HeaderMap, body: Bytes) -> Result<Answer, Refusal> {
    let began = Instant::now();
    let request = infer::decode(headers, &body, version)?;
    drop(body);
    let deadline = began + request.timeout.unwrap_or(state.limits.timeout).min(state.limits.timeout);
    let probabilities = version.infer(request.images, deadline).await?;
    let (body, split) = infer::encode(version, &request.id, &probabilities, request.output);
    let mut answer = match split {
        None => json_answer(body),
        Some(_) => Answer { content_type: "application/octet-stream", ..json_answer(body) },
    };
    answer.header_length = split;
    Ok(answer)
}
