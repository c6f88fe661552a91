//! A picture as it is, PNG or JPEG, to the classes that are most probable in it.

use std::path::Path;
use std::time::Instant;

use bytes::Bytes;
use serde_json::{Value, json};

use super::State;
use super::queue::Images;
use super::refusal::Refusal;
use super::top::most_probable;
use super::version::Version;
use crate::data::images::decode_image;

/// Classes that are named where the request does not say how many.
const TOP: usize = 3;

/// `POST /classify[/M][?top=K]`.
pub(super) async fn classify(state: &State, version: &Version, query: Option<&str>, body: Bytes) -> Result<Value, Refusal> {
    let began = Instant::now();
    let top = top_of(query)?;
    let image = decode(state, version, body).await?;
    let probabilities = version.infer(Images::Bytes(image.into()), began + state.limits.timeout).await?;
    let classes = most_probable(&probabilities, top)
        .into_iter()
        .map(|(index, probability)| json!({ "class": version.model().classes[index], "index": index, "probability": probability }));
    Ok(json!({ "model_name": version.name, "model_version": version.number.to_string(), "classes": classes.collect::<Vec<_>>() }))
}

/// The number of classes that a query asks for.
pub(super) fn top_of(query: Option<&str>) -> Result<usize, Refusal> {
    let top = query.into_iter().flat_map(|query| query.split('&')).find_map(|pair| pair.strip_prefix("top="));
    match top.map(str::parse::<u32>) {
        None => Ok(TOP),
        Some(Ok(top @ 1..)) => Ok(top as usize),
        Some(_) => {
            Err(Refusal::expected("top", super::repository::printable(top.unwrap_or_default()), "a whole number from 1 to 4294967295"))
        }
    }
}

/// The bytes of a picture at the size the model takes. At most as many pictures as there are cores are decoded at a time,
/// for each may need 192 MB while it is.
pub(super) async fn decode(state: &State, version: &Version, picture: Bytes) -> Result<Vec<u8>, Refusal> {
    let [height, width, channels] = version.model().input;
    if channels != 3 {
        return Err(Refusal::expected("channels of the model's images", channels, "3, as pictures have"));
    }
    let decoded = state.away(move || decode_image(Path::new("picture"), &picture, height, width)).await;
    let decoded = decoded.ok_or_else(|| Refusal::bad("the picture cannot be decoded"))?;
    decoded.map_err(|error| Refusal::bad(error.to_string()))
}
