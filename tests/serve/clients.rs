//! Clients that ask too often, and those that compress.

use std::io::{Read, Write};

use flate2::Compression;
use flate2::read::{GzDecoder, ZlibDecoder};
use flate2::write::{GzEncoder, ZlibEncoder};
use serde_json::json;

use super::client::*;

const INFER: &str = "/v2/models/m/infer";

#[test]
fn a_client_that_asks_too_often_is_told_when_to_come_again() {
    let served = Served::with(|config| config.limits.client_rate = Some(5));
    let statuses: Vec<u16> = (0..8).map(|i| infer_raw(served.http, &images(i, IMAGE)).status).collect();
    assert_eq!(statuses[..5], [200; 5]);
    let reply = infer_raw(served.http, &images(0, IMAGE));
    assert_eq!((reply.status, reply.header("retry-after")), (429, Some("1")), "{reply:?}");
    assert!(reply.error().contains("more than 5 requests a second"), "{}", reply.error());
    assert_eq!(post(served.http, "/v1/models/m:predict", b"{}").status, 429, "of all protocols together");
    assert_eq!(get(served.http, "/v2/models/m").status, 200, "what costs nothing is not bounded");
    std::thread::sleep(ms(1000));
    assert_eq!(infer_raw(served.http, &images(0, IMAGE)).status, 200);
}

#[test]
fn clients_with_tokens_are_told_apart_by_them() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "one\nother\n").unwrap();
    let served = Served::with(|config| {
        config.tokens = Some(file.path().to_owned());
        config.limits.client_rate = Some(2);
    });
    let ask = |token: &str| {
        let headers = [("authorization", format!("Bearer {token}")), ("inference-header-content-length", "0".to_owned())];
        call(served.http, "POST", INFER, &headers.each_ref().map(|(name, value)| (*name, value.as_str())), &images(0, IMAGE)).status
    };
    assert_eq!([ask("one"), ask("one"), ask("one")], [200, 200, 429]);
    assert_eq!([ask("other"), ask("other"), ask("other")], [200, 200, 429]);
    assert_eq!(ask("a stranger's"), 401, "and takes nothing from anyone's");
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn compressed_requests_are_what_they_were_before() {
    let served = Served::new();
    let bytes = images(3, 2 * IMAGE);
    let want = expected(&small_model(), 1, &bytes);
    let mut zlib = ZlibEncoder::new(Vec::new(), Compression::default());
    zlib.write_all(&bytes).unwrap();
    for (coding, body) in [("gzip", gzip(&bytes)), ("GZIP", gzip(&bytes)), ("deflate", zlib.finish().unwrap())] {
        let headers = [("inference-header-content-length", "0"), ("content-encoding", coding)];
        assert_eq!(call(served.http, "POST", INFER, &headers, &body).floats(), want, "{coding}");
    }
    // As tritonclient does it: JSON and tensor together, the length of the JSON before it was compressed.
    let input = json!({ "name": "images", "datatype": "UINT8", "shape": [2, 6, 5, 3], "parameters": { "binary_data_size": bytes.len() } });
    let head = json!({ "inputs": [input], "parameters": { "binary_data_output": true } }).to_string();
    let body = gzip(&[head.as_bytes(), &bytes].concat());
    let length = head.len().to_string();
    let headers = [("inference-header-content-length", length.as_str()), ("content-encoding", "gzip"), ("accept-encoding", "gzip")];
    assert_eq!(call(served.http, "POST", INFER, &headers, &body).floats(), want);
}

#[test]
fn damaged_and_exploding_bodies_are_refused() {
    let served = Served::with(|config| config.limits.body = 100_000);
    let ask =
        |body: &[u8]| call(served.http, "POST", INFER, &[("inference-header-content-length", "0"), ("content-encoding", "gzip")], body);
    let good = gzip(&images(3, 100 * IMAGE));
    for cut in [0, 1, 9, 10, good.len() / 2, good.len() - 1] {
        let reply = ask(&good[..cut]);
        assert_eq!(reply.status, 400, "{cut} bytes: {reply:?}");
    }
    let bomb = gzip(&vec![0; 50 << 20]);
    assert!(bomb.len() < 100_000, "the bomb has to pass as a body");
    let reply = ask(&bomb);
    assert_eq!(reply.status, 413, "{reply:?}");
    assert!(reply.error().contains("when decompressed"), "{}", reply.error());
    assert_eq!(ask(&good).status, 200);
}

#[test]
fn answers_are_compressed_for_those_who_ask() {
    let served = Served::new();
    let bytes = images(3, 64 * IMAGE);
    let plain = infer_raw(served.http, &bytes);
    assert_eq!(plain.header("content-encoding"), None);
    let headers = [("inference-header-content-length", "0"), ("accept-encoding", "gzip, deflate")];
    let packed = call(served.http, "POST", INFER, &headers, &bytes);
    assert_eq!((packed.header("content-encoding"), packed.header("vary")), (Some("gzip"), Some("accept-encoding")));
    assert_eq!(packed.header("inference-header-content-length"), plain.header("inference-header-content-length"));
    let mut body = Vec::new();
    GzDecoder::new(packed.body.as_slice()).read_to_end(&mut body).unwrap();
    assert_eq!(body, plain.body);
    assert!(packed.body.len() < plain.body.len());
    let small = call(served.http, "POST", INFER, &headers, &bytes[..IMAGE]);
    assert_eq!(small.header("content-encoding"), None, "not worthwhile");
}

#[test]
fn long_answers_are_compressed_for_many_at_a_time() {
    let served = Served::with(|config| config.queue = 100_000);
    let bytes = images(3, 64 * IMAGE).repeat(128);
    let plain = infer_raw(served.http, &bytes);
    assert!(plain.body.len() > 100_000, "{} bytes", plain.body.len());
    std::thread::scope(|scope| {
        for coding in ["gzip", "deflate", "gzip", "deflate", "gzip", "deflate", "gzip", "deflate"] {
            let (served, bytes, plain) = (&served, &bytes, &plain);
            scope.spawn(move || {
                let headers = [("inference-header-content-length", "0"), ("accept-encoding", coding)];
                let packed = call(served.http, "POST", INFER, &headers, bytes);
                assert_eq!(packed.header("content-encoding"), Some(coding));
                let mut body = Vec::new();
                match coding {
                    "gzip" => GzDecoder::new(packed.body.as_slice()).read_to_end(&mut body).unwrap(),
                    _ => ZlibDecoder::new(packed.body.as_slice()).read_to_end(&mut body).unwrap(),
                };
                assert!(body == plain.body && packed.body.len() < body.len(), "{coding}: another answer than without");
            });
        }
    });
    // Clients that do not wait for what is compressed for them keep no one from it.
    for _ in 0..30 {
        let mut client = Client::new(served.http);
        client.send("POST", INFER, &[("inference-header-content-length", "0"), ("accept-encoding", "gzip")], &bytes);
    }
    let headers = [("inference-header-content-length", "0"), ("accept-encoding", "gzip")];
    assert_eq!(call(served.http, "POST", INFER, &headers, &bytes).status, 200);
}
