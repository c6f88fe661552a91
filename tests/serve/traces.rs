//! Spans, as a collector gets them. It is no more than a socket here: what must be in a batch is looked for in its bytes.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};

use super::client::*;

/// Heads and bodies.
type Batches = Arc<Mutex<Vec<(String, Vec<u8>)>>>;

/// A collector: its address, and what it got.
fn collector(status: &'static str) -> (SocketAddr, Batches) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let batches = Batches::default();
    let kept = batches.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|len| len == 1) {
                head.push(byte[0]);
            }
            let head = String::from_utf8(head).unwrap().to_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
            let mut body = vec![0; length];
            stream.read_exact(&mut body).unwrap();
            kept.lock().unwrap().push((head, body));
            let _ = stream.write_all(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").as_bytes());
        }
    });
    (address, batches)
}

fn holds(body: &[u8], part: &[u8]) -> bool {
    body.windows(part.len()).any(|window| window == part)
}

#[test]
fn requests_are_spans_of_the_traces_they_name() {
    let (address, batches) = collector("200 OK");
    let served = Served::with(|config| config.otlp = Some(format!("http://{address}")));
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let parent = format!("00-{trace}-b7ad6b7169203331-01");
    let headers = [("inference-header-content-length", "0"), ("traceparent", parent.as_str()), ("x-request-id", "mine-1")];
    assert_eq!(call(served.http, "POST", "/v2/models/m/infer", &headers, &images(0, IMAGE)).status, 200);
    // Not sampled upstream: no span. A wrong traceparent: a trace of its own.
    let unsampled = [("traceparent", "00-1af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"), ("x-request-id", "unsampled-1")];
    assert_eq!(call(served.http, "GET", "/v2", &unsampled, b"").status, 200);
    assert_eq!(call(served.http, "GET", "/nothing", &[("traceparent", "00-zz"), ("x-request-id", "lost-1")], b"").status, 404);
    assert!(served.stop(ms(0), ms(2000)));

    let batches = batches.lock().unwrap();
    assert!(batches.iter().all(|(head, _)| head.starts_with("post /v1/traces ") && head.contains("application/x-protobuf")), "{batches:?}");
    let body: Vec<u8> = batches.iter().flat_map(|(_, body)| body.clone()).collect();
    let bytes = |hex: &str| (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect::<Vec<u8>>();
    assert!(holds(&body, &bytes(trace)), "the trace's id");
    assert!(holds(&body, &bytes("b7ad6b7169203331")), "the parent's id");
    for words in ["shadernet", "infer", "/v2/models/m/infer", "http.response.status_code", "mine-1", "lost-1", "/nothing"] {
        assert!(holds(&body, words.as_bytes()), "no {words}");
    }
    assert!(!holds(&body, b"unsampled-1"));
}

#[test]
fn a_collector_that_is_away_or_refuses_costs_no_answer() {
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (refusing, batches) = collector("503 Service Unavailable");
    for address in [gone, refusing] {
        let served = Served::with(|config| config.otlp = Some(format!("http://{address}/")));
        for i in 0..20 {
            assert_eq!(infer_raw(served.http, &images(i, IMAGE)).status, 200);
        }
        assert!(served.stop(ms(0), ms(2000)));
    }
    assert!(!batches.lock().unwrap().is_empty());
}
