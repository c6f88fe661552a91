//! TensorFlow Serving's REST API: `/v1/models/M[/versions/V]`, `…/metadata`, and `…:predict` in row and in column form.
//!
//! Google Cloud's custom containers take the same body. Numbers are what the network takes, 0 to 1, as for a Keras model; with
//! `"signature_name": "serving_bytes"` they are bytes, 0 to 255. `{"b64": …}` is a picture, PNG or JPEG, in either signature.

use std::fmt;
use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Value, json};

use super::State;
use super::answer::{Answer, json_answer};
use super::numbers::{Nested, from_json};
use super::oip::infer::from_numbers;
use super::oip::{INPUT, OUTPUT};
use super::picture;
use super::queue::Images;
use super::refusal::Refusal;
use super::version::Version;

/// The signature in which numbers are bytes.
const BYTES: &str = "serving_bytes";
/// The signature that is meant when none is named: numbers from 0 to 1.
const DEFAULT: &str = "serving_default";

#[derive(Deserialize)]
struct Request {
    signature_name: Option<String>,
    instances: Option<Tensor>,
    inputs: Option<Tensor>,
}

/// One tensor, bare or under the input's name; row by row or whole.
enum Tensor {
    Numbers(Nested),
    /// Pictures in base64.
    Pictures(Vec<String>),
}

impl<'de> Deserialize<'de> for Tensor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TensorVisitor)
    }
}

struct TensorVisitor;

impl<'de> Visitor<'de> for TensorVisitor {
    type Value = Tensor;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a tensor, or rows of one")
    }

    /// `{"images": …}` or `{"b64": …}`.
    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Tensor, A::Error> {
        Row::deserialize(MapAccessDeserializer::new(map)).map(Tensor::from)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Tensor, A::Error> {
        let mut all: Option<Tensor> = None;
        while let Some(row) = list.next_element::<Row>()? {
            match (&mut all, row) {
                (None, Row::Numbers(mut first)) => {
                    first.extents.insert(0, 1);
                    all = Some(Tensor::Numbers(first));
                }
                (None, Row::Picture(first)) => all = Some(Tensor::Pictures(vec![first])),
                (Some(Tensor::Numbers(all)), Row::Numbers(next)) => {
                    if all.extents[1..] != next.extents {
                        return Err(A::Error::custom(format_args!("rows of {:?} and of {:?}", &all.extents[1..], next.extents)));
                    }
                    all.extents[0] += 1;
                    all.values.extend(next.values);
                }
                (Some(Tensor::Pictures(all)), Row::Picture(next)) => all.push(next),
                _ => return Err(A::Error::custom("numbers beside pictures")),
            }
        }
        all.ok_or_else(|| A::Error::custom("no rows"))
    }
}

/// A row: numbers, or a picture.
enum Row {
    Numbers(Nested),
    Picture(String),
}

impl From<Row> for Tensor {
    fn from(row: Row) -> Self {
        match row {
            Row::Numbers(numbers) => Self::Numbers(numbers),
            Row::Picture(picture) => Self::Pictures(vec![picture]),
        }
    }
}

impl<'de> Deserialize<'de> for Row {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct RowVisitor;
        impl<'de> Visitor<'de> for RowVisitor {
            type Value = Row;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("lists of numbers, or {\"b64\": a picture}")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Row, A::Error> {
                Nested::deserialize(SeqAccessDeserializer::new(list)).map(Row::Numbers)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Row, A::Error> {
                let name: String = map.next_key()?.ok_or_else(|| A::Error::custom("an empty object"))?;
                let row = match name.as_str() {
                    "b64" => Row::Picture(map.next_value()?),
                    INPUT | "image_bytes" => map.next_value()?,
                    _ => return Err(A::Error::unknown_field(&name, &[INPUT, "b64"])),
                };
                match map.next_key::<IgnoredAny>()? {
                    None => Ok(row),
                    Some(_) => Err(A::Error::custom("an object with more than one input")),
                }
            }
        }
        deserializer.deserialize_any(RowVisitor)
    }
}

/// A request, decoded except for its pictures.
pub(super) struct Decoded {
    tensor: Tensor,
    /// Whether numbers are bytes.
    bytes: bool,
    /// The key of the answer.
    key: &'static str,
}

/// `POST …:predict`.
pub(super) async fn predict(state: &State, version: &Version, body: Bytes) -> Result<Answer, Refusal> {
    let began = Instant::now();
    let Decoded { tensor, bytes, key } = decode(&body)?;
    drop(body);
    let images = match tensor {
        Tensor::Numbers(numbers) => from_nested(numbers, bytes, version)?,
        Tensor::Pictures(pictures) => decode_pictures(state, version, pictures).await?,
    };
    let probabilities = version.infer(images, began + state.limits.timeout).await?;
    let rows_of: Vec<&[f32]> = probabilities.chunks_exact(version.model().classes.len()).collect();
    let text = serde_json::to_vec(&std::collections::BTreeMap::from([(key, rows_of)])).expect("numbers are plain data");
    Ok(json_answer(text))
}

/// Decodes the body of a request.
pub(super) fn decode(body: &[u8]) -> Result<Decoded, Refusal> {
    let request: Request = from_json(body)?;
    let bytes = match request.signature_name.as_deref() {
        None | Some("" | DEFAULT) => false,
        Some(BYTES) => true,
        Some(other) => {
            let found = super::repository::printable(other);
            return Err(Refusal::expected("signature_name", found, format!("{DEFAULT} (numbers from 0 to 1) or {BYTES} (0 to 255)")));
        }
    };
    match (request.instances, request.inputs) {
        (Some(tensor), None) => Ok(Decoded { tensor, bytes, key: "predictions" }),
        (None, Some(tensor)) => Ok(Decoded { tensor, bytes, key: "outputs" }),
        (None, None) => Err(Refusal::bad("the request has neither instances nor inputs")),
        _ => Err(Refusal::bad("the request has both instances and inputs")),
    }
}

fn from_nested(numbers: Nested, bytes: bool, version: &Version) -> Result<Images, Refusal> {
    let [height, width, channels] = version.model().input;
    let count = match numbers.extents.split_first() {
        Some((&count, rest)) if rest == version.model().input && count > 0 => count,
        _ => return Err(Refusal::expected("the shape", format!("{:?}", numbers.extents), format!("[N, {height}, {width}, {channels}]"))),
    };
    from_numbers(if bytes { "UINT8" } else { "FP32" }, numbers.values, count, version)
}

async fn decode_pictures(state: &State, version: &Version, pictures: Vec<String>) -> Result<Images, Refusal> {
    if pictures.len() > version.queue().limit {
        return Err(Refusal::too_large(format!("{} pictures in one request, expected at most {}", pictures.len(), version.queue().limit)));
    }
    let mut images = Vec::with_capacity(pictures.len() * version.image_len());
    for (place, picture) in pictures.into_iter().enumerate() {
        let decoded = picture::decode(state, version, from_base64(&picture, place)?).await;
        images.extend(decoded.map_err(|refusal| Refusal { message: format!("instance {place}: {}", refusal.message), ..refusal })?);
    }
    Ok(Images::Bytes(images.into()))
}

fn from_base64(picture: &str, place: usize) -> Result<Bytes, Refusal> {
    STANDARD.decode(picture).map(Bytes::from).map_err(|error| Refusal::bad(format!("instance {place}: no base64: {error}")))
}

/// Decodes a body and what is in it, without a state to share.
pub(super) fn decode_whole(body: &[u8], version: &Version) -> Result<(), Refusal> {
    let Decoded { tensor, bytes, .. } = decode(body)?;
    match tensor {
        Tensor::Numbers(numbers) => from_nested(numbers, bytes, version).map(drop),
        Tensor::Pictures(pictures) => pictures.iter().enumerate().try_for_each(|(place, picture)| from_base64(picture, place).map(drop)),
    }
}

/// `GET /v1/models/M[/versions/V]`.
pub(super) fn status(versions: &[u64], ready: bool) -> Value {
    let state = if ready { "AVAILABLE" } else { "LOADING" };
    let one =
        |version: &u64| json!({ "version": version.to_string(), "state": state, "status": { "error_code": "OK", "error_message": "" } });
    json!({ "model_version_status": versions.iter().map(one).collect::<Vec<_>>() })
}

/// `GET /v1/models/M[/versions/V]/metadata`.
pub(super) fn metadata(version: &Version) -> Value {
    let model = version.model();
    let shape = |extents: &[usize]| {
        let extents = std::iter::once("-1".to_owned()).chain(extents.iter().map(usize::to_string));
        json!({ "dim": extents.map(|size| json!({ "size": size, "name": "" })).collect::<Vec<_>>(), "unknown_rank": false })
    };
    let signature = |input: &str| {
        json!({
            "inputs": { INPUT: { "dtype": input, "tensor_shape": shape(&model.input), "name": INPUT } },
            "outputs": { OUTPUT: { "dtype": "DT_FLOAT", "tensor_shape": shape(&[model.classes.len()]), "name": OUTPUT } },
            "method_name": "tensorflow/serving/predict",
        })
    };
    json!({
        "model_spec": { "name": version.name, "signature_name": "", "version": version.number.to_string() },
        "metadata": { "signature_def": { "signature_def": { DEFAULT: signature("DT_FLOAT"), BYTES: signature("DT_UINT8") } } },
    })
}
