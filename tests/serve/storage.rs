//! Models that come from Cloud Storage, of which a small likeness answers on loopback.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use md5::{Digest, Md5};
use serde_json::json;
use shadernet::serve::storage::{Endpoints, fetch};

use super::client::*;

/// A bucket, its metadata server, and what was asked of them.
struct Bucket {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    objects: Mutex<BTreeMap<String, Vec<u8>>>,
    asked: Mutex<Vec<String>>,
    trouble: Mutex<Trouble>,
}

/// What the server is to do wrong.
#[derive(Clone, Copy, Default)]
struct Trouble {
    /// Requests that are answered 503 first.
    busy: usize,
    /// The next download ends after so many bytes.
    cut: Option<usize>,
    /// The list states a wrong MD5, or none.
    wrong_md5: bool,
    no_md5: bool,
    /// The size in the list.
    size: Option<u64>,
}

impl Bucket {
    fn new(objects: &[(&str, &[u8])]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        *shared.objects.lock().unwrap() = objects.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec())).collect();
        let served = shared.clone();
        std::thread::spawn(move || listener.incoming().for_each(|stream| served.answer(stream.unwrap())));
        Self { address, shared }
    }

    fn fetch(&self, uri: &str, cache: &Path) -> shadernet::Result<std::path::PathBuf> {
        let host = format!("http://{}", self.address);
        fetch(uri, &Endpoints::with_token(&host, &host), cache)
    }

    /// Downloads asked for so far.
    fn downloads(&self) -> usize {
        self.shared.asked.lock().unwrap().iter().filter(|line| line.contains("alt=media")).count()
    }
}

impl Shared {
    fn answer(&self, mut stream: TcpStream) {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) == 1 {
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap();
        let line = head.lines().next().unwrap_or_default().to_owned();
        let has = |header: &str| head.to_ascii_lowercase().contains(&format!("\r\n{header}\r\n"));
        self.asked.lock().unwrap().push(line.clone());
        let mut trouble = self.trouble.lock().unwrap();
        let (mut status, mut body, mut extra, mut cut) = ("200 OK", Vec::new(), String::new(), None);
        if trouble.busy > 0 {
            trouble.busy -= 1;
            status = "503 Busy";
        } else if line.contains("/computeMetadata/") {
            assert!(has("metadata-flavor: google"), "{head}");
            body = json!({ "access_token": "sesame", "expires_in": 3600, "token_type": "Bearer" }).to_string().into_bytes();
        } else if !has("authorization: bearer sesame") {
            status = "401 Unauthorized";
        } else if line.contains("alt=media") {
            let name = line.split("/o/").nth(1).unwrap().split('?').next().unwrap().replace("%2F", "/");
            body = self.objects.lock().unwrap()[&name].clone();
            let start: Option<usize> =
                head.to_ascii_lowercase().lines().find_map(|line| line.strip_prefix("range: bytes=")?.strip_suffix('-')?.parse().ok());
            if let Some(start) = start {
                extra = format!("Content-Range: bytes {start}-{}/{}\r\n", body.len() - 1, body.len());
                status = "206 Partial Content";
                body.drain(..start);
            }
            cut = trouble.cut.take();
        } else {
            let objects = self.objects.lock().unwrap();
            // A page an object, so that pages are followed.
            let page: usize = line.split("pageToken=").nth(1).map_or(0, |rest| rest.split([' ', '&']).next().unwrap().parse().unwrap());
            let items: Vec<_> = objects
                .iter()
                .skip(page)
                .take(1)
                .map(|(name, bytes)| {
                    let md5 = STANDARD.encode(Md5::digest(if trouble.wrong_md5 { b"other" } else { bytes.as_slice() }));
                    let size = trouble.size.unwrap_or(bytes.len() as u64).to_string();
                    let mut item = json!({ "name": name, "size": size, "generation": "17", "md5Hash": md5 });
                    if trouble.no_md5 {
                        item.as_object_mut().unwrap().remove("md5Hash");
                    }
                    item
                })
                .collect();
            let next = (page + 1 < objects.len()).then(|| (page + 1).to_string());
            body = json!({ "items": items, "nextPageToken": next }).to_string().into_bytes();
        }
        let head = format!("HTTP/1.1 {status}\r\n{extra}Content-Length: {}\r\nConnection: close\r\n\r\n", body.len());
        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body[..cut.unwrap_or(body.len())]));
    }
}

fn model(seed: u64) -> Vec<u8> {
    let file = tempfile::NamedTempFile::new().unwrap();
    save(file.path(), &small_model(), seed);
    std::fs::read(file.path()).unwrap()
}

#[test]
fn folder_of_a_bucket_becomes_one_here_and_follows_it() {
    let (one, two) = (model(1), model(2));
    let objects: [(&str, &[u8]); 5] = [
        ("a/x/1/m.safetensors", &one),
        ("a/y.safetensors", &two),
        ("a/notes.txt", b"no"),
        ("ab/z.safetensors", &one),
        ("a/../e.safetensors", &one),
    ];
    let bucket = Bucket::new(&objects);
    let cache = tempfile::tempdir().unwrap();
    let folder = bucket.fetch("gs://bucket/a/", cache.path()).unwrap();
    assert!(folder.starts_with(cache.path()) && folder.ends_with("a"), "{folder:?}");
    assert_eq!(std::fs::read(folder.join("x/1/m.safetensors")).unwrap(), one);
    assert_eq!(std::fs::read(folder.join("y.safetensors")).unwrap(), two);
    assert_eq!(bucket.downloads(), 2, "{:?}", bucket.shared.asked.lock().unwrap());
    // What is there is not fetched again; what changed is, and what is gone goes.
    bucket.fetch("gs://bucket/a", cache.path()).unwrap();
    assert_eq!(bucket.downloads(), 2);
    bucket.shared.objects.lock().unwrap().remove("a/x/1/m.safetensors");
    bucket.shared.objects.lock().unwrap().insert("a/y.safetensors".to_owned(), one.clone());
    assert_eq!(bucket.fetch("gs://bucket/a", cache.path()).unwrap(), folder);
    assert_eq!(bucket.downloads(), 3);
    assert!(!folder.join("x/1/m.safetensors").exists());
    assert_eq!(std::fs::read(folder.join("y.safetensors")).unwrap(), one);
    // The address of one file is that file.
    let file = bucket.fetch("gs://bucket/a/y.safetensors", cache.path()).unwrap();
    assert_eq!(std::fs::read(&file).unwrap(), one);
}

#[test]
fn trouble_is_survived_or_told_and_nothing_half_is_left() {
    let bytes = model(1);
    let bucket = Bucket::new(&[("a/m.safetensors", &bytes)]);
    let with = |trouble: Trouble| {
        let cache = tempfile::tempdir().unwrap();
        *bucket.shared.trouble.lock().unwrap() = trouble;
        let fetched = bucket.fetch("gs://bucket/a", cache.path());
        let whole = fetched.as_ref().is_ok_and(|folder| std::fs::read(folder.join("m.safetensors")).unwrap() == bytes);
        (whole, fetched.err().map(|error| error.to_string()).unwrap_or_default())
    };
    let none = Trouble::default();
    assert!(with(Trouble { busy: 2, ..none }).0, "a busy server is asked again");
    assert!(with(Trouble { cut: Some(500), ..none }).0, "a download that is cut goes on");
    for (trouble, words) in [
        (Trouble { wrong_md5: true, ..none }, "MD5"),
        (Trouble { no_md5: true, ..none }, "in one piece"),
        (Trouble { size: Some(1 << 40), ..none }, "1099511627776 bytes"),
        (Trouble { busy: 9, ..none }, "503"),
    ] {
        let (whole, told) = with(trouble);
        assert!(!whole && told.contains(words), "{words}: {told}");
    }
    let cache = tempfile::tempdir().unwrap();
    *bucket.shared.trouble.lock().unwrap() = none;
    let told = bucket.fetch("gs://bucket/nothing", cache.path()).unwrap_err().to_string();
    assert!(told.contains("gs://bucket/nothing") && told.contains("no model files"), "{told}");
    let host = format!("http://{}", bucket.address);
    let told = fetch("gs://bucket/a", &Endpoints::new(Some(&host), None), cache.path()).unwrap_err().to_string();
    assert!(told.contains("401") && told.contains("service account"), "without a token: {told}");
}
