//! What the calls answer: the same as over HTTP, in protobuf's words.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};

use super::super::State;
use super::super::oip::infer::{check_input, classified, from_numbers, from_raw, raw_words};
use super::super::oip::{EXTENSIONS, INPUT, OUTPUT, PLATFORM};
use super::super::queue::Images;
use super::super::refusal::Refusal;
use super::super::repository::printable;
use super::super::stats::Timer;
use super::super::version::Version;
use super::messages as m;

pub(super) fn server_metadata() -> m::ServerMetadata {
    let version = env!("CARGO_PKG_VERSION").to_owned();
    m::ServerMetadata { name: PLATFORM.to_owned(), version, extensions: EXTENSIONS.map(str::to_owned).to_vec() }
}

pub(super) fn metadata(state: &State, version: &Version) -> m::ModelMetadata {
    let tensor = |name: &str, datatype: &str, extents: &[usize]| {
        let shape = std::iter::once(-1).chain(extents.iter().map(|&extent| extent as i64)).collect();
        m::TensorMetadata { name: name.to_owned(), datatype: datatype.to_owned(), shape }
    };
    m::ModelMetadata {
        name: version.name.clone(),
        versions: state.repository.numbers(&version.name).iter().map(u64::to_string).collect(),
        platform: PLATFORM.to_owned(),
        inputs: vec![tensor(INPUT, "UINT8", &version.model().input)],
        outputs: vec![tensor(OUTPUT, "FP32", &[version.model().classes.len()])],
    }
}

pub(super) fn config(version: &Version) -> m::Configured {
    let batching = &version.running.batching;
    let model = version.model();
    let dims = model.input.map(|extent| extent as i64).to_vec();
    let config = m::Config {
        name: version.name.clone(),
        platform: PLATFORM.to_owned(),
        backend: PLATFORM.to_owned(),
        max_batch_size: batching.max as i32,
        input: vec![m::ConfigInput { name: INPUT.to_owned(), data_type: m::TYPE_UINT8, format: m::FORMAT_NHWC, dims }],
        output: vec![m::ConfigOutput { name: OUTPUT.to_owned(), data_type: m::TYPE_FP32, dims: vec![model.classes.len() as i64] }],
        dynamic_batching: Some(m::DynamicBatching {
            preferred_batch_size: batching.preferred.iter().map(|&size| size as i32).collect(),
            max_queue_delay_microseconds: batching.delay.as_micros() as u64,
        }),
    };
    m::Configured { config: Some(config) }
}

pub(super) fn statistics(versions: &[Arc<Version>]) -> m::Statistics {
    let time = |timer: &Timer| Some(m::Time { count: timer.count(), ns: timer.nanoseconds() });
    let one = |version: &Arc<Version>| {
        let stats = version.stats();
        let by_size = stats.by_size.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let batch = |(size, sums): (usize, super::super::stats::BySize)| {
            let [compute_input, compute_infer, compute_output] = sums.nanoseconds.map(|ns| Some(m::Time { count: sums.count, ns }));
            m::BatchStatistics { batch_size: size as u64, compute_input, compute_infer, compute_output }
        };
        m::ModelStatistics {
            name: version.name.clone(),
            version: version.number.to_string(),
            last_inference: stats.last.load(Ordering::Relaxed),
            inference_count: stats.images.load(Ordering::Relaxed),
            execution_count: stats.batches.load(Ordering::Relaxed),
            inference_stats: Some(m::InferStatistics {
                success: time(&stats.success),
                fail: time(&stats.failure),
                queue: time(&stats.queue),
                compute_input: time(&stats.upload),
                compute_infer: time(&stats.compute),
                compute_output: time(&stats.download),
                cache_hit: Some(m::Time::default()),
                cache_miss: Some(m::Time::default()),
            }),
            batch_stats: by_size.into_iter().map(batch).collect(),
        }
    };
    m::Statistics { model_stats: versions.iter().map(one).collect() }
}

/// A request, decoded.
pub(super) struct Asked {
    images: Images,
    timeout: Option<Duration>,
    /// The so many most probable classes in place of all probabilities; 0 for the probabilities.
    top: usize,
}

/// Decodes a request to this version of a model; takes the tensors out of it.
pub(super) fn decode(request: &mut m::InferRequest, version: &Version) -> Result<Asked, Refusal> {
    let timeout = number(&request.parameters, "timeout").filter(|&timeout| timeout > 0).map(Duration::from_micros);
    let classes = version.model().classes.len();
    let top = match request.outputs.as_slice() {
        [] => 0,
        [output] if output.name == OUTPUT => number(&output.parameters, "classification").unwrap_or(0).min(classes as u64) as usize,
        outputs => {
            let names: Vec<String> = outputs.iter().take(4).map(|output| printable(&output.name)).collect();
            return Err(Refusal::expected("outputs", format!("{names:?}"), format!("{OUTPUT:?}, once")));
        }
    };
    let images = images(std::mem::take(&mut request.inputs), std::mem::take(&mut request.raw_input_contents), version)?;
    Ok(Asked { images, timeout, top })
}

pub(super) async fn infer(state: &State, version: &Version, mut request: m::InferRequest) -> Result<m::InferResponse, Refusal> {
    let began = Instant::now();
    let Asked { images, timeout, top } = decode(&mut request, version)?;
    let deadline = began + timeout.unwrap_or(state.limits.timeout).min(state.limits.timeout);
    let probabilities = version.infer(images, deadline).await?;

    let classes = version.model().classes.len();
    let raw = match top {
        0 => {
            let mut raw = BytesMut::with_capacity(4 * probabilities.len());
            probabilities.iter().for_each(|&probability| raw.put_f32_le(probability));
            raw
        }
        _ => raw_words(&classified(version, &probabilities, top)),
    };
    let (datatype, width) = if top == 0 { ("FP32", classes) } else { ("BYTES", top) };
    let shape = vec![(probabilities.len() / classes) as i64, width as i64];
    Ok(m::InferResponse {
        model_name: version.name.clone(),
        model_version: version.number.to_string(),
        id: request.id,
        outputs: vec![m::TensorMetadata { name: OUTPUT.to_owned(), datatype: datatype.to_owned(), shape }],
        raw_output_contents: vec![raw.freeze()],
    })
}

/// A parameter that is a whole number.
fn number(parameters: &HashMap<String, m::Parameter>, name: &str) -> Option<u64> {
    match parameters.get(name)?.value.as_ref()? {
        m::ParameterValue::Int64(value) => u64::try_from(*value).ok(),
        m::ParameterValue::Uint64(value) => Some(*value),
    }
}

fn images(inputs: Vec<m::InputTensor>, raw: Vec<Bytes>, version: &Version) -> Result<Images, Refusal> {
    let [input] = <[m::InputTensor; 1]>::try_from(inputs)
        .map_err(|inputs| Refusal::expected("inputs", format!("{} of them", inputs.len()), format!("one, {INPUT:?}")))?;
    // A negative extent becomes one that no shape has.
    let shape: Vec<u64> = input.shape.iter().take(8).map(|&extent| u64::try_from(extent).unwrap_or(u64::MAX)).collect();
    let count = check_input(&input.name, &input.datatype, &shape, version)?;
    match (raw.len(), input.contents) {
        (1, None) => from_raw(&input.datatype, raw[0].clone(), count, version),
        (0, Some(contents)) if input.datatype == "FP32" => from_numbers(&input.datatype, contents.fp32, count, version),
        (0, Some(contents)) => {
            // Above 2²⁴ a float may be another number, but not one that a byte can be.
            let values = contents.uint.into_iter().map(|value| value as f32).collect();
            from_numbers(&input.datatype, values, count, version)
        }
        (count, contents) => {
            let found = format!("{count} raw and {} others", usize::from(contents.is_some()));
            Err(Refusal::expected("contents of the input", found, "one of either kind"))
        }
    }
}
