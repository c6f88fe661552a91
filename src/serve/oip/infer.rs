//! `POST …/infer` of the Open Inference Protocol: JSON, JSON followed by binary tensors, and a bare tensor.
//!
//! Upstream's binary extension: the header `Inference-Header-Content-Length` says where JSON ends and tensors begin; 0 means that
//! the body is the one input's bytes and nothing else. Every length that a request states is checked before it is used.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use hyper::HeaderMap;
use serde::{Deserialize, Serialize};

use super::super::numbers::{Few, Nested, from_json};
use super::super::queue::Images;
use super::super::refusal::Refusal;
use super::super::repository::printable;
use super::super::top::most_probable;
use super::super::version::Version;
use super::{INPUT, OUTPUT};

/// Name of the header that splits a body.
pub(crate) const HEADER_LENGTH: &str = "inference-header-content-length";

/// A request, decoded.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) id: String,
    pub(crate) images: Images,
    pub(crate) timeout: Option<Duration>,
    pub(crate) output: Output,
}

/// How the answer is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Output {
    pub(crate) binary: bool,
    /// The so many most probable classes in place of all probabilities; 0 for the probabilities.
    pub(crate) classification: usize,
}

#[derive(Deserialize)]
struct Head {
    id: Option<String>,
    #[serde(default)]
    parameters: Parameters,
    inputs: Few<Input>,
    outputs: Option<Few<Wanted>>,
}

#[derive(Default, Deserialize)]
struct Parameters {
    binary_data_output: Option<bool>,
    /// Microseconds.
    timeout: Option<u64>,
}

#[derive(Deserialize)]
struct Input {
    name: String,
    shape: Few<u64>,
    datatype: String,
    #[serde(default)]
    parameters: InputParameters,
    data: Option<Nested>,
}

#[derive(Default, Deserialize)]
struct InputParameters {
    binary_data_size: Option<u64>,
}

#[derive(Deserialize)]
struct Wanted {
    name: String,
    #[serde(default)]
    parameters: WantedParameters,
}

#[derive(Default, Deserialize)]
struct WantedParameters {
    binary_data: Option<bool>,
    classification: Option<u64>,
}

/// Decodes a request to this version of a model.
pub(crate) fn decode(headers: &HeaderMap, body: &Bytes, version: &Version) -> Result<Request, Refusal> {
    let Some(length) = headers.get(HEADER_LENGTH) else { return decode_parts(body, &Bytes::new(), false, version) };
    let length = length.to_str().ok().and_then(|text| text.trim().parse::<usize>().ok());
    match length.filter(|&length| length <= body.len()) {
        None => Err(Refusal::expected(
            HEADER_LENGTH,
            format!("{:?}", headers[HEADER_LENGTH]),
            format!("at most the body's {} bytes", body.len()),
        )),
        Some(0) => {
            let output = Output { binary: true, classification: 0 };
            Ok(Request { id: String::new(), images: Images::Bytes(body.clone()), timeout: None, output })
        }
        Some(length) => decode_parts(&body.slice(..length), &body.slice(length..), true, version),
    }
}

fn decode_parts(json: &Bytes, binary: &Bytes, split: bool, version: &Version) -> Result<Request, Refusal> {
    let head: Head = from_json(json)?;
    let [input] = <[Input; 1]>::try_from(head.inputs.0)
        .map_err(|inputs| Refusal::expected("inputs", format!("{} of them", inputs.len()), format!("one, {INPUT:?}")))?;
    let images = decode_input(input, binary, split, version)?;
    let output = decode_outputs(head.outputs, head.parameters.binary_data_output.unwrap_or(false), version)?;
    let timeout = head.parameters.timeout.filter(|&timeout| timeout > 0).map(Duration::from_micros);
    Ok(Request { id: head.id.unwrap_or_default(), images, timeout, output })
}

fn decode_input(input: Input, binary: &Bytes, split: bool, version: &Version) -> Result<Images, Refusal> {
    let count = check_input(&input.name, &input.datatype, &input.shape.0, version)?;
    let stated = input.parameters.binary_data_size;
    if stated.is_some() && !split {
        return Err(Refusal::expected("binary_data_size", "no binary data after the JSON", format!("a header {HEADER_LENGTH}")));
    }
    match (input.data, stated) {
        (Some(_), Some(_)) => Err(Refusal::bad("an input has either data or binary_data_size")),
        (None, None) => Err(Refusal::bad("the input has neither data nor binary_data_size")),
        (None, Some(size)) => {
            if size != binary.len() as u64 {
                return Err(Refusal::expected("binary_data_size", size, format!("the {} bytes after the JSON", binary.len())));
            }
            from_raw(&input.datatype, binary.clone(), count, version)
        }
        (Some(data), None) => {
            if !binary.is_empty() {
                return Err(Refusal::expected(
                    "the body",
                    format!("{} bytes after the JSON", binary.len()),
                    "as many as binary_data_size says",
                ));
            }
            from_numbers(&input.datatype, data.values, count, version)
        }
    }
}

/// The number of images of an input that says this of itself.
pub(crate) fn check_input(name: &str, datatype: &str, shape: &[u64], version: &Version) -> Result<usize, Refusal> {
    if name != INPUT {
        return Err(Refusal::expected("the name of the input", format!("{:?}", printable(name)), format!("{INPUT:?}")));
    }
    if !["UINT8", "FP32"].contains(&datatype) {
        let found = printable(datatype);
        return Err(Refusal::expected("the datatype of the input", found, "UINT8 (0 to 255) or FP32 (0 to 1)"));
    }
    let [height, width, channels] = version.model().input;
    let wanted = [height as u64, width as u64, channels as u64];
    let count = match shape.split_first() {
        Some((&count, rest)) if rest == wanted => usize::try_from(count).ok(),
        _ => None,
    };
    // More images than the queue holds are refused before their values are looked at.
    match count {
        Some(count) if count > version.queue().limit => {
            Err(Refusal::too_large(format!("{count} images in one request, expected at most {}", version.queue().limit)))
        }
        Some(count @ 1..) => Ok(count),
        _ => Err(Refusal::expected(
            "the shape of the input",
            format!("{shape:?}"),
            format!("[N, {height}, {width}, {channels}] with N from 1"),
        )),
    }
}

/// Images from their bytes as the protocol has them: little-endian, row-major.
pub(crate) fn from_raw(datatype: &str, bytes: Bytes, count: usize, version: &Version) -> Result<Images, Refusal> {
    let size = if datatype == "UINT8" { 1 } else { 4 };
    let wanted = count * version.image_len() * size;
    if bytes.len() != wanted {
        return Err(Refusal::expected(
            "the data of the input",
            format!("{} bytes", bytes.len()),
            format!("the {wanted} bytes of its shape"),
        ));
    }
    if size == 1 {
        return Ok(Images::Bytes(bytes));
    }
    Ok(Images::Floats(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()))
}

/// Images from numbers.
pub(crate) fn from_numbers(datatype: &str, values: Vec<f32>, count: usize, version: &Version) -> Result<Images, Refusal> {
    let wanted = count * version.image_len();
    if values.len() != wanted {
        return Err(Refusal::expected("the data of the input", format!("{} numbers", values.len()), format!("the {wanted} of its shape")));
    }
    if datatype != "UINT8" {
        return Ok(Images::Floats(values));
    }
    let byte = |value: f32| if value.fract() == 0.0 && (0.0..=255.0).contains(&value) { Ok(value as u8) } else { Err(value) };
    let bytes = values.into_iter().map(byte).collect::<Result<Vec<u8>, f32>>();
    bytes
        .map(|bytes| Images::Bytes(bytes.into()))
        .map_err(|value| Refusal::expected("a number of a UINT8 input", value, "a whole number from 0 to 255"))
}

fn decode_outputs(outputs: Option<Few<Wanted>>, binary: bool, version: &Version) -> Result<Output, Refusal> {
    let mut outputs = outputs.map(|outputs| outputs.0).unwrap_or_default();
    let Some(wanted) = outputs.pop() else { return Ok(Output { binary, classification: 0 }) };
    if wanted.name != OUTPUT || !outputs.is_empty() {
        let names: Vec<String> = outputs.iter().chain([&wanted]).map(|output| printable(&output.name)).collect();
        return Err(Refusal::expected("outputs", format!("{names:?}"), format!("{OUTPUT:?}, once")));
    }
    let classification = wanted.parameters.classification.unwrap_or(0).min(version.model().classes.len() as u64) as usize;
    Ok(Output { binary: wanted.parameters.binary_data.unwrap_or(binary), classification })
}

#[derive(Serialize)]
struct Answer<'a> {
    model_name: &'a str,
    model_version: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    id: &'a str,
    outputs: [AnswerTensor<'a>; 1],
}

#[derive(Serialize)]
struct AnswerTensor<'a> {
    name: &'static str,
    datatype: &'static str,
    shape: [usize; 2],
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<Size>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Data<'a>>,
}

#[derive(Serialize)]
struct Size {
    binary_data_size: usize,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Data<'a> {
    Numbers(&'a [f32]),
    Words(&'a [String]),
}

/// Encodes an answer: the body, and where in it JSON ends if tensors follow.
pub(crate) fn encode(version: &Version, id: &str, probabilities: &[f32], output: Output) -> (Bytes, Option<usize>) {
    let classes = version.model().classes.len();
    let count = probabilities.len() / classes;
    let words = match output.classification {
        0 => Vec::new(),
        top => classified(version, probabilities, top),
    };
    let (datatype, width) = if output.classification == 0 { ("FP32", classes) } else { ("BYTES", output.classification) };
    let mut binary = BytesMut::new();
    if output.binary {
        match output.classification {
            0 => probabilities.iter().for_each(|&probability| binary.put_f32_le(probability)),
            _ => binary.extend_from_slice(&raw_words(&words)),
        }
    }
    let tensor = AnswerTensor {
        name: OUTPUT,
        datatype,
        shape: [count, width],
        parameters: output.binary.then_some(Size { binary_data_size: binary.len() }),
        data: match output {
            Output { binary: true, .. } => None,
            Output { classification: 0, .. } => Some(Data::Numbers(probabilities)),
            _ => Some(Data::Words(&words)),
        },
    };
    let answer = Answer { model_name: &version.name, model_version: version.number.to_string(), id, outputs: [tensor] };
    let mut body = serde_json::to_vec(&answer).expect("an answer is plain data");
    let length = body.len();
    body.extend_from_slice(&binary);
    (body.into(), output.binary.then_some(length))
}

/// `probability:index:label` of the most probable classes of each image, as the classification extension has it.
pub(crate) fn classified(version: &Version, probabilities: &[f32], top: usize) -> Vec<String> {
    let classes = &version.model().classes;
    let rows = probabilities.chunks_exact(classes.len());
    rows.flat_map(|row| most_probable(row, top))
        .map(|(class, probability)| format!("{probability:.6}:{class}:{}", classes[class]))
        .collect()
}

/// Words as a tensor of BYTES: each with its length before it.
pub(crate) fn raw_words(words: &[String]) -> BytesMut {
    let mut raw = BytesMut::new();
    for word in words {
        raw.put_u32_le(word.len() as u32);
        raw.extend_from_slice(word.as_bytes());
    }
    raw
}
