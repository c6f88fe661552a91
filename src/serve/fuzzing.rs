//! The decoders of requests as functions of bytes, for fuzzers: no device, no port, no thread. Not part of the interface.
//!
//! Each takes what a client sends, for a small network of images 6×5×3 and four classes, and returns whether it is accepted.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use hyper::HeaderMap;
use hyper::header::{AUTHORIZATION, HeaderValue};

use super::oip::infer::{self, HEADER_LENGTH};
use super::queue::Batching;
use super::tokens::Tokens;
use super::version::{Running, Version};
use super::{grpc, picture, router, v1};
use crate::error::Error;
use crate::files::{NamedTensor, save_model};
use crate::nn::{Layer, Model};

const CLASSES: usize = 4;

/// A version without an instance: it decodes and encodes, and computes nothing.
static VERSION: LazyLock<Arc<Version>> = LazyLock::new(|| {
    let input = [6, 5, 3];
    let values: usize = input.iter().product();
    let layers = vec![Layer::Flatten, Layer::dense(CLASSES, None)];
    let classes = ["ant", "bee", "\"cat\"", "dög"].map(str::to_owned).to_vec();
    let model = Model { name: "small".to_owned(), input, layers, classes };
    let tensor = |name: &str, extents: &[usize]| {
        let data = vec![0.0; extents.iter().product()];
        NamedTensor { name: name.to_owned(), extents: extents.to_vec(), data }
    };
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    let weights = [tensor("dense/kernel", &[values, CLASSES]), tensor("dense/bias", &[CLASSES])];
    save_model(file.path(), &model, &weights).expect("a model is saved");
    let batching = Batching { max: 8, delay: Duration::ZERO, preferred: Vec::new() };
    let open = Arc::new(|| Err(Error::invalid("instances", 1, "0")));
    Version::load("m", 1, file.path(), &Running { batching, queue: 16, instances: 0, open }).expect("a model is loaded")
});

/// `POST …/infer`. The first line is the header that says where JSON ends, or empty for none; the rest is the body.
pub fn open_inference(data: &[u8]) -> bool {
    let Some(end) = data.iter().position(|&byte| byte == b'\n') else { return false };
    let mut headers = HeaderMap::new();
    match HeaderValue::from_bytes(&data[..end]) {
        Ok(value) if end > 0 => drop(headers.insert(HEADER_LENGTH, value)),
        Ok(_) => {}
        Err(_) => return false,
    }
    let version = &*VERSION;
    let Ok(request) = infer::decode(&headers, &Bytes::copy_from_slice(&data[end + 1..]), version) else { return false };
    let count = request.images.len() / version.image_len();
    let bare = headers.get(HEADER_LENGTH).is_some_and(|length| length.to_str().is_ok_and(|text| text.trim().parse() == Ok(0)));
    assert!(bare || (count > 0 && request.images.len().is_multiple_of(version.image_len())), "a part of an image");
    // The answer is JSON whatever the request had in it, and what is behind it is as long as it says.
    let (body, length) = infer::encode(version, &request.id, &vec![0.25; count * CLASSES], request.output);
    let json: serde_json::Value = serde_json::from_slice(&body[..length.unwrap_or(body.len())]).expect("an answer of JSON");
    assert_eq!(json.get("id").and_then(serde_json::Value::as_str).unwrap_or_default(), request.id);
    let stated = &json["outputs"][0]["parameters"]["binary_data_size"];
    assert_eq!(stated.as_u64().unwrap_or(0), (body.len() - length.unwrap_or(body.len())) as u64);
    true
}

/// `POST …:predict`.
pub fn tensorflow(data: &[u8]) -> bool {
    v1::decode_whole(data, &VERSION).is_ok()
}

/// A message of gRPC.
pub fn grpc(data: &[u8]) -> bool {
    grpc::decode_whole(data, &VERSION).is_ok()
}

/// The first line is the query of `POST /classify`, the rest the body of `POST /v2/repository/index`.
pub fn parameters(data: &[u8]) -> bool {
    let end = data.iter().position(|&byte| byte == b'\n').unwrap_or(data.len());
    let query = String::from_utf8_lossy(&data[..end]);
    let top = picture::top_of((!query.is_empty()).then_some(&query));
    assert!(top.as_ref().is_ok_and(|&top| top > 0) || top.is_err());
    top.is_ok() && router::ready_only(data.get(end + 1..).unwrap_or_default()).is_ok()
}

/// The first line is a header `authorization`, the rest a file of tokens.
pub fn tokens(data: &[u8]) -> bool {
    let end = data.iter().position(|&byte| byte == b'\n').unwrap_or(data.len());
    let Ok(value) = HeaderValue::from_bytes(&data[..end]) else { return false };
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), data.get(end + 1..).unwrap_or_default()).expect("a file is written");
    let Ok(tokens) = Tokens::open(Some(file.path().to_owned())) else { return false };
    assert!(!tokens.accept(&HeaderMap::new()), "nothing is no token");
    tokens.accept(&HeaderMap::from_iter([(AUTHORIZATION, value)]))
}
