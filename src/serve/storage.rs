//! Models in Google Cloud Storage: what `gs://BUCKET/FOLDER` has becomes a folder on this machine.
//!
//! Files arrive as [`crate::data::download`] has them: resumed, held against the MD5 that the bucket states, and in place
//! only when whole. A file that is there already and is the bucket's is not fetched again; one that the bucket no longer has is
//! removed. Names of objects are checked before they become paths.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use ureq::http::{StatusCode, header};

use super::repository::is_name;
use crate::data::download::{self, Source, Terms, digest, fetch_with};
use crate::error::{Error, Result};
use crate::files::MAX_MODEL_BYTES;

/// Most model files of one folder.
const MOST: usize = 256;
/// Most bytes of an answer in JSON.
const ANSWER: u64 = 8 << 20;
/// Tries to get an answer, and the wait after the first; each further wait is twice as long.
const TRIES: u32 = 4;
const WAIT: Duration = Duration::from_millis(250);

/// Where Cloud Storage and the metadata server are.
#[derive(Clone, Debug)]
pub struct Endpoints {
    storage: String,
    /// None where no token is needed.
    metadata: Option<String>,
}

impl Default for Endpoints {
    /// Google's own.
    fn default() -> Self {
        Self { storage: "https://storage.googleapis.com".to_owned(), metadata: Some("http://metadata.google.internal".to_owned()) }
    }
}

impl Endpoints {
    /// What the variables that Google's own libraries read say: `STORAGE_EMULATOR_HOST` (no token is asked for then) and
    /// `GCE_METADATA_HOST`, each with or without `http://`.
    pub fn from_variables() -> Self {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        Self::new(variable("STORAGE_EMULATOR_HOST").as_deref(), variable("GCE_METADATA_HOST").as_deref())
    }

    /// With an emulator in place of Cloud Storage, and with this metadata server.
    pub fn new(emulator: Option<&str>, metadata: Option<&str>) -> Self {
        let address = |host: &str| {
            let host = host.trim_end_matches('/');
            if host.contains("://") { host.to_owned() } else { format!("http://{host}") }
        };
        let google = Self::default();
        match emulator {
            Some(host) => Self { storage: address(host), metadata: None },
            None => Self { storage: google.storage, metadata: metadata.map(address).or(google.metadata) },
        }
    }

    /// With a token from this metadata server for this storage.
    pub fn with_token(storage: &str, metadata: &str) -> Self {
        Self { storage: storage.to_owned(), metadata: Some(metadata.to_owned()) }
    }
}

/// A line of a bucket's list.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Object {
    name: String,
    /// A number, as text.
    size: String,
    generation: String,
    md5_hash: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Page {
    #[serde(default)]
    items: Vec<Object>,
    next_page_token: Option<String>,
}

#[derive(Deserialize)]
struct Token {
    access_token: String,
}

/// Brings the model files of `gs://BUCKET[/FOLDER]` into a folder below `cache`, or the one that `gs://BUCKET/…/NAME.safetensors`
/// names, and returns the path of that folder or file.
///
/// # Errors
/// [`Error::Invalid`] for an address that is none, or that has no model files, more than 256, larger ones than 2 GiB, or ones without an
/// MD5; [`Error::Download`] if a server cannot be reached, refuses, or stops sending; [`Error::Data`] for a file that arrives damaged;
/// [`Error::Io`] if it cannot be stored. Files that had arrived stay.
pub fn fetch(uri: &str, endpoints: &Endpoints, cache: &Path) -> Result<PathBuf> {
    let (bucket, prefix) = parts(uri)?;
    let authorization = match &endpoints.metadata {
        None => None,
        Some(host) => {
            let url = format!("{host}/computeMetadata/v1/instance/service-accounts/default/token");
            let token: Token = ask(&url, Some(("Metadata-Flavor", "Google")))?;
            Some(format!("Bearer {}", token.access_token))
        }
    };
    let address = format!("{}/storage/v1/b/{bucket}/o", endpoints.storage);
    let objects = list(&address, prefix, authorization.as_deref())?;
    if objects.is_empty() {
        return Err(Error::invalid(uri, "no model files", "NAME.safetensors or NAME/VERSION/….safetensors in it"));
    }

    // Two addresses never share a folder, and the folder's own name can be that of the model.
    let place: String = Sha256::digest(uri.trim_end_matches('/')).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let last = prefix.rsplit('/').find(|word| !word.is_empty()).unwrap_or(bucket);
    let folder = cache.join("models").join(place).join(if is_name(last) { last } else { "model" });
    let terms = Terms { authorization, largest: MAX_MODEL_BYTES };
    let mut kept = Vec::new();
    for (relative, object) in &objects {
        kept.push(bring(&address, relative, object, &terms, &folder)?);
    }
    remove_others(&folder, &kept)?;
    match objects.as_slice() {
        [(_, only)] if only.name == prefix => Ok(kept.remove(0)),
        _ => Ok(folder),
    }
}

/// Bucket and prefix.
fn parts(uri: &str) -> Result<(&str, &str)> {
    let rest = uri.strip_prefix("gs://").unwrap_or_default();
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    // What a bucket may be called; nothing of it needs to be encoded.
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte);
    match (3..=222).contains(&bucket.len()) && bucket.bytes().all(allowed) {
        true => Ok((bucket, prefix.trim_end_matches('/'))),
        false => Err(Error::invalid("the address of the models", uri, "gs://BUCKET/FOLDER")),
    }
}

/// The model files at or below a prefix, with their paths from there.
fn list(address: &str, prefix: &str, authorization: Option<&str>) -> Result<Vec<(PathBuf, Object)>> {
    let header = authorization.map(|value| (header::AUTHORIZATION.as_str(), value));
    let (mut found, mut next) = (Vec::new(), None::<String>);
    loop {
        let fields = "items(name,size,generation,md5Hash),nextPageToken";
        let page = next.as_deref().map_or(String::new(), |token| format!("&pageToken={}", encoded(token)));
        let url = format!("{address}?prefix={}&fields={}{page}", encoded(prefix), encoded(fields));
        let answer: Page = ask(&url, header)?;
        for object in answer.items {
            let Some(relative) = relative(&object.name, prefix) else { continue };
            found.push((relative, object));
        }
        if found.len() > MOST {
            return Err(Error::invalid("model files in the bucket", format!("more than {MOST}"), format!("at most {MOST}")));
        }
        // A page that leads to itself would be followed for ever.
        match answer.next_page_token {
            Some(token) if next.as_ref() != Some(&token) => next = Some(token),
            _ => return Ok(found),
        }
    }
}

/// Where an object of this name belongs, if it is a model file of the folder: every part of it is checked, for it becomes a path.
fn relative(name: &str, prefix: &str) -> Option<PathBuf> {
    if !name.ends_with(".safetensors") {
        return None;
    }
    let below = match name.strip_prefix(prefix)? {
        "" => name.rsplit('/').next()?,
        below if prefix.is_empty() => below,
        below => below.strip_prefix('/')?,
    };
    let words: Vec<&str> = below.split('/').collect();
    if words.len() > 3 || !words.iter().all(|word| is_name(word)) {
        log::warn!("{}: left out, expected NAME.safetensors or NAME/VERSION/….safetensors", name.escape_debug());
        return None;
    }
    Some(words.iter().collect())
}

/// A file of the folder, from the bucket if it is not there yet.
fn bring(address: &str, relative: &Path, object: &Object, terms: &Terms, folder: &Path) -> Result<PathBuf> {
    let what = || format!("{} in the bucket", object.name.escape_debug());
    let size: u64 = object.size.parse().map_err(|_| Error::invalid(what(), format!("size {:?}", object.size), "a number"))?;
    if size > MAX_MODEL_BYTES {
        return Err(Error::invalid(what(), format!("{size} bytes"), format!("at most {MAX_MODEL_BYTES}")));
    }
    let md5 = object.md5_hash.as_ref().and_then(|text| STANDARD.decode(text).ok()).filter(|md5| md5.len() == 16);
    let remedy = "one: an object that was uploaded in parts has none; upload it again in one piece";
    let md5 = md5.ok_or_else(|| Error::invalid(format!("MD5 of {}", what()), "none", remedy))?;
    let md5: String = md5.iter().map(|byte| format!("{byte:02x}")).collect();

    let path = folder.join(relative);
    if fs::metadata(&path).is_ok_and(|status| status.is_file() && status.len() == size) && digest(&path)? == md5 {
        log::debug!("{} is there already", path.display());
        return Ok(path);
    }
    // The generation is what was listed, even if the object is written again meanwhile.
    let url = format!("{address}/{}?alt=media&generation={}", encoded(&object.name), encoded(&object.generation));
    let (parent, name) = (path.parent().unwrap_or(folder), path.file_name().and_then(|name| name.to_str()).unwrap_or_default());
    let path = fetch_with(&Source { url: &url, md5: &md5, name }, terms, parent, &mut |_, _| {})?;
    log::info!("fetched {} ({size} bytes)", object.name.escape_debug());
    Ok(path)
}

/// Removes model files that are not among these: what the bucket no longer has is not to be served.
fn remove_others(folder: &Path, kept: &[PathBuf]) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(Error::io(folder, "cannot list"))? {
        let path = entry.map_err(Error::io(folder, "cannot list"))?.path();
        if path.is_dir() {
            remove_others(&path, kept)?;
        } else if path.extension().is_some_and(|extension| extension == "safetensors") && !kept.contains(&path) {
            fs::remove_file(&path).map_err(Error::io(&path, "cannot remove"))?;
        }
    }
    Ok(())
}

/// The answer, in JSON, to a GET. Servers that cannot be reached or are busy are asked again.
fn ask<T: DeserializeOwned>(url: &str, header: Option<(&str, &str)>) -> Result<T> {
    let failed = |problem: String| Error::Download { url: url.to_owned(), problem };
    let mut wait = WAIT;
    for attempt in 1.. {
        let mut request = download::agent(url).get(url);
        if let Some((name, value)) = header {
            request = request.header(name, value);
        }
        let problem = match request.call() {
            Ok(mut response) if response.status() == StatusCode::OK => {
                let text = response.body_mut().with_config().limit(ANSWER).read_to_vec().map_err(|error| failed(error.to_string()))?;
                return serde_json::from_slice(&text).map_err(|error| failed(format!("an answer that is not what was asked for: {error}")));
            }
            Ok(response) if response.status().is_server_error() || response.status() == StatusCode::TOO_MANY_REQUESTS => {
                format!("the server answered {}", response.status())
            }
            Ok(response) => return Err(failed(format!("the server answered {}{}", response.status(), meaning(response.status())))),
            Err(error) => error.to_string(),
        };
        if attempt == TRIES {
            return Err(failed(format!("{problem}, {TRIES} times")));
        }
        log::debug!("{url}: {problem}; once more in {wait:?}");
        std::thread::sleep(wait);
        wait *= 2;
    }
    unreachable!("the loop returns at its last try")
}

/// What a refusal of Google's means.
fn meaning(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            ": the service account may not read the bucket (it needs Storage Object Viewer)"
        }
        StatusCode::NOT_FOUND => ": no such bucket, or the machine has no service account",
        _ => "",
    }
}

/// Percent-encoded, but for what never needs to be.
fn encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_a_bucket_and_a_folder() {
        assert_eq!(parts("gs://bucket").unwrap(), ("bucket", ""));
        assert_eq!(parts("gs://my-bucket.com/a/b/").unwrap(), ("my-bucket.com", "a/b"));
        for wrong in ["", "gs://", "gs:///a", "gs://ab", "gs://Bucket/a", "gs://bu cket", "gs://b?x=/a", "s3://bucket/a", "gs://../a"] {
            // Two dots are no bucket's name because it has three characters at least.
            assert!(parts(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn names_of_objects_become_paths_below_the_folder_or_nothing() {
        let path = |name: &str, prefix: &str| relative(name, prefix).map(|path| path.to_str().unwrap().to_owned());
        assert_eq!(path("a/m.safetensors", "a").as_deref(), Some("m.safetensors"));
        assert_eq!(path("a/m/2/w.safetensors", "a").as_deref(), Some("m/2/w.safetensors"));
        assert_eq!(path("a/m.safetensors", "a/m.safetensors").as_deref(), Some("m.safetensors"));
        assert_eq!(path("m.safetensors", "").as_deref(), Some("m.safetensors"));
        for wrong in [
            "a/../m.safetensors",
            "a//m.safetensors",
            "a/b/c/d/m.safetensors",
            "ab/m.safetensors",
            "a/m.txt",
            "a/.m.safetensors",
            "a/\\m.safetensors",
        ] {
            assert_eq!(path(wrong, "a"), None, "{wrong}");
        }
    }

    #[test]
    fn text_is_encoded_for_an_address() {
        assert_eq!(encoded("a/b c~1.x"), "a%2Fb%20c~1.x");
        assert_eq!(encoded("ä&="), "%C3%A4%26%3D");
    }

    #[test]
    fn variables_name_hosts_with_and_without_a_scheme() {
        let emulated = Endpoints::new(Some("127.0.0.1:9/"), Some("x"));
        assert_eq!((emulated.storage.as_str(), emulated.metadata), ("http://127.0.0.1:9", None));
        let real = Endpoints::new(None, Some("127.0.0.1:8"));
        assert_eq!((real.storage.as_str(), real.metadata.as_deref()), ("https://storage.googleapis.com", Some("http://127.0.0.1:8")));
    }
}
