//! What goes wrong on the other side of the connection, and below the server.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::client::*;
use super::fragile::Faults;

const INFER: &str = "/v2/models/m/infer";
const LABELS: &str = "{model=\"m\",version=\"1\"}";

/// Whether the server still answers, and rightly.
fn is_well(served: &Served) -> bool {
    let bytes = images(9, IMAGE);
    infer_raw(served.http, &bytes).floats() == expected(&small_model(), 1, &bytes)
}

#[test]
fn malformed_requests_are_refused_and_nothing_else_happens() {
    let served = Served::new();
    for bytes in [
        &b"\0\x01\x02\x03\r\n\r\n"[..],
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\ncontent-length: 99999999999999999999999\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nabcdef",
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ] {
        let mut client = Client::new(served.http);
        client.raw(bytes);
        client.0.shutdown(std::net::Shutdown::Write).unwrap();
        if let Some(reply) = client.receive() {
            assert!((400..500).contains(&reply.status), "{bytes:?}: {reply:?}");
        }
    }
    // A head larger than any that is meant.
    let mut client = Client::new(served.http);
    client.raw(format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "y".repeat(1 << 20)).as_bytes());
    assert!(client.receive().is_none_or(|reply| reply.status == 431));
    let mut client = Client::new(served.http);
    client.raw(format!("GET / HTTP/1.1\r\nhost: a\r\n{}\r\n", "a: b\r\n".repeat(1000)).as_bytes());
    assert!(client.receive().is_none_or(|reply| reply.status == 431));
    assert!(is_well(&served));
}

#[test]
fn malformed_calls_of_grpc_are_refused_and_nothing_else_happens() {
    let served = Served::with(|config| config.limits = impatient());
    let grpc = served.server.as_ref().unwrap().grpc().unwrap();
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    for bytes in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0xff; 100],
        &[&preface[..], &[0xff; 64]].concat(),                       // a frame of 16 MiB
        &[&preface[..], b"\0\0\x04\x08\0\0\0\0\0\0\0\0\0"].concat(), // a window update of 0
        &[&preface[..], b"\0\0\x05\x01\x04\0\0\0\x01\xff\xff\xff\xff\xff"].concat(), // headers that do not unpack
        &preface[..],                                                // and then nothing
        b"",
    ] {
        let mut client = Client::new(grpc);
        client.raw(bytes);
        assert!(client.closes_within(ms(3000)), "{bytes:?}");
    }
    assert!(is_well(&served));
}

#[test]
fn body_in_many_tiny_chunks_is_one_body() {
    let served = Served::new();
    let bytes = images(0, 3 * IMAGE);
    let mut client = Client::new(served.http);
    client.raw(b"POST /v2/models/m/infer HTTP/1.1\r\nhost: a\r\ninference-header-content-length: 0\r\ntransfer-encoding: chunked\r\n\r\n");
    for byte in &bytes {
        client.raw(&[b"1\r\n", &[*byte][..], b"\r\n"].concat());
    }
    client.raw(b"0\r\n\r\n");
    assert_eq!(client.receive().unwrap().floats(), expected(&small_model(), 1, &bytes));
}

#[test]
fn lengths_that_lie_are_found_before_memory_is_taken() {
    let served = Served::new();
    let state = |length: u64| {
        let mut client = Client::new(served.http);
        client.raw(format!("POST {INFER} HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n\r\n").as_bytes());
        client.receive().unwrap().status
    };
    for length in [(16 << 20) + 1, 1 << 40, u64::MAX >> 1] {
        assert_eq!(state(length), 413, "{length}");
    }
    let split = |length: &str| call(served.http, "POST", INFER, &[("inference-header-content-length", length)], &images(0, IMAGE));
    for length in ["91", "18446744073709551615", "18446744073709551616", "-1", "x", "", "1e1"] {
        assert_eq!(split(length).status, 400, "{length:?}");
    }
    for size in ["89", "91", "18446744073709551615", "-1"] {
        let head = format!(
            "{{\"inputs\":[{{\"name\":\"images\",\"datatype\":\"UINT8\",\"shape\":[1,6,5,3],\"parameters\":{{\"binary_data_size\":{size}}}}}]}}"
        );
        let body = [head.as_bytes(), &images(0, IMAGE)].concat();
        let reply = call(served.http, "POST", INFER, &[("inference-header-content-length", &head.len().to_string())], &body);
        assert_eq!(reply.status, 400, "{size}: {reply:?}");
    }
    // Half an image, and the bytes of a body that never come.
    assert_eq!(infer_raw(served.http, &images(0, IMAGE / 2)).status, 400);
    let mut client = Client::new(served.http);
    client.raw(format!("POST {INFER} HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n\r\nabc").as_bytes());
    client.0.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(client.receive().is_none_or(|reply| reply.status == 400));
    assert!(is_well(&served));
}

#[test]
fn requests_for_too_much_are_refused() {
    let served = Served::new();
    let outputs = format!("{{\"outputs\":[{}", "{\"name\":\"x\"},".repeat(1_000_000));
    assert!(post(served.http, INFER, outputs.as_bytes()).error().contains("more than 16"));
    for deep in ["[".repeat(1_000_000), "{\"inputs\":".repeat(100_000), format!("{{\"parameters\":{}", "{\"a\":".repeat(100_000))] {
        assert_eq!(post(served.http, INFER, deep.as_bytes()).status, 400);
        assert_eq!(post(served.http, "/v1/models/m:predict", deep.as_bytes()).status, 400);
    }
    let instances = format!("{{\"instances\":{}", "[".repeat(1_000_000));
    assert_eq!(post(served.http, "/v1/models/m:predict", instances.as_bytes()).status, 400);
    assert_eq!(infer_raw(served.http, &images(0, 1025 * IMAGE)).status, 413);
    assert!(is_well(&served));
}

#[test]
fn names_do_not_lead_to_files() {
    let served = Served::new();
    for name in ["..", ".", "%2e%2e", "..%2f..%2fetc%2fpasswd", "m%00", "/etc/passwd", "m/../m", "a\\b", "m.safetensors"] {
        for path in [format!("/v2/models/{name}"), format!("/v2/models/m/versions/{name}"), format!("/v1/models/{name}")] {
            assert_eq!(get(served.http, &path).status, 404, "{path}");
        }
        assert_eq!(post(served.admin, &format!("/v2/repository/models/{name}/load"), b"").status, 404, "{name}");
    }
    assert_eq!(post(served.http, "/v2/repository/models/m/unload", b"").status, 403);
    assert!(is_well(&served));
}

#[test]
fn slow_clients_are_cut_off_and_others_do_not_notice() {
    let served = Served::with(|config| config.limits = impatient());
    let head = format!("POST {INFER} HTTP/1.1\r\nhost: a\r\ncontent-length: 90\r\n\r\n");
    let mut clients: Vec<(&str, Client)> = ["silent", "half a head", "dripping head", "half a body", "dripping body", "idle"]
        .map(|kind| {
            let mut client = Client::new(served.http);
            match kind {
                "half a head" => client.raw(b"POST /v2"),
                "half a body" => client.raw(format!("{head}abc").as_bytes()),
                "dripping body" => client.raw(head.as_bytes()),
                "idle" => {
                    client.send("GET", "/v2", &[], b"");
                    assert_eq!(client.receive().unwrap().status, 200);
                }
                _ => {}
            }
            (kind, client)
        })
        .into();
    let began = Instant::now();
    while began.elapsed() < ms(250) {
        for (kind, client) in &mut clients {
            if kind.starts_with("dripping") {
                client.raw(b"G");
            }
        }
        let asked = Instant::now();
        assert!(is_well(&served));
        assert!(asked.elapsed() < ms(200), "a client beside the slow ones waited {:?}", asked.elapsed());
        std::thread::sleep(ms(20));
    }
    for (kind, client) in &mut clients {
        assert!(client.closes_within(ms(1500)), "{kind}: still open after {:?}", began.elapsed());
    }
    served.until("no connection is left", |served| served.metric("shadernet_connections") <= 1.0);
}

#[test]
fn head_that_follows_an_answer_has_a_bound_of_its_own() {
    let served = Served::with(|config| config.limits.head_timeout = ms(200)); // the idle one is 75 s
    let mut client = Client::new(served.http);
    for _ in 0..2 {
        client.send("GET", "/v2", &[], b"");
        assert_eq!(client.receive().unwrap().status, 200);
        std::thread::sleep(ms(300));
    }
    client.raw(b"GET /v2 HT");
    assert!(client.closes_within(ms(1000)));
}

#[test]
fn client_that_does_not_read_is_cut_off() {
    let served = Served::with(|config| config.limits = impatient());
    let mut client = Client::new(served.http);
    client.0.set_write_timeout(Some(ms(200))).unwrap();
    // Answers pile up until the buffers between are full, and the server can write no more.
    let request = b"GET /v2/models/m/config HTTP/1.1\r\nhost: a\r\n\r\n".repeat(1000);
    let began = Instant::now();
    served.until("the connection is given up", |served| {
        client_raw(&client, &request);
        served.metric("shadernet_connections") <= 1.0 && began.elapsed() > ms(100)
    });
    let mut rest = Vec::new();
    let _ = client.0.read_to_end(&mut rest);
}

/// Sends as much as is taken.
fn client_raw(client: &Client, bytes: &[u8]) {
    use std::io::Write;
    let _ = (&client.0).write_all(bytes);
}

#[test]
fn connections_are_bounded() {
    let served = Served::with(|config| config.limits.connections = 4);
    let mut open: Vec<Client> = (0..4).map(|_| Client::new(served.http)).collect();
    for client in &mut open {
        client.send("GET", "/v2", &[], b"");
        assert_eq!(client.receive().unwrap().status, 200);
    }
    let mut more = Client::new(served.http);
    let reply = more.receive().unwrap();
    assert_eq!((reply.status, reply.header("retry-after")), (503, Some("1")));
    reply.error();
    drop(open);
    served.until("connections are free again", |served| infer_raw(served.http, &images(0, IMAGE)).status == 200);
}

#[test]
fn what_is_too_much_is_turned_away_at_once() {
    let faults = Arc::new(Faults::default());
    let served = Served::with(|config| {
        config.open = faults.opener();
        config.queue = 8;
    });
    faults.gate.close();
    let bytes = images(0, 4 * IMAGE);
    let want = expected(&small_model(), 1, &bytes);
    std::thread::scope(|scope| {
        let waiting: Vec<_> = (0..2).map(|_| scope.spawn(|| infer_raw(served.http, &bytes).floats())).collect();
        served.until("two requests wait", |served| served.metric(&format!("nv_inference_pending_request_count{LABELS}")) == 2.0);
        for _ in 0..20 {
            let asked = Instant::now();
            let reply = infer_raw(served.http, &images(0, IMAGE));
            assert_eq!((reply.status, reply.header("retry-after")), (503, Some("1")));
            assert!(reply.error().contains("queue is full") && asked.elapsed() < ms(100), "{:?}", asked.elapsed());
        }
        assert_eq!(get(served.http, "/v2/health/ready").status, 200, "busy is not broken");
        faults.gate.open();
        waiting.into_iter().for_each(|client| assert_eq!(client.join().unwrap(), want));
    });
    assert_eq!(served.metric("nv_inference_request_failure{model=\"m\",version=\"1\",reason=\"REJECTED\"}"), 20.0);
}

#[test]
fn bodies_under_way_are_bounded_together() {
    let served = Served::with(|config| {
        config.limits.body = 64 << 10;
        config.limits.memory = 100 << 10;
    });
    let head = format!("POST {INFER} HTTP/1.1\r\nhost: a\r\ninference-header-content-length: 0\r\ncontent-length: 65536\r\n\r\n");
    let mut holder = Client::new(served.http);
    holder.raw(head.as_bytes());
    holder.raw(&[0; 60 << 10]);
    let mut second = Client::new(served.http);
    std::thread::sleep(ms(100));
    second.raw(head.as_bytes());
    second.raw(&[0; 64 << 10]);
    assert_eq!(second.receive().unwrap().status, 503);
    drop(holder);
    served.until("the memory is there again", |served| infer_raw(served.http, &images(0, 300 * IMAGE)).status == 200);
}

#[test]
fn deadline_ends_a_request_and_its_work() {
    let faults = Arc::new(Faults::default());
    let served = Served::with(|config| {
        config.open = faults.opener();
        config.max_batch = 1;
        config.limits.timeout = ms(2000);
    });
    let computed = faults.images.load(Ordering::SeqCst);
    faults.gate.close();
    let body = |timeout: u64| {
        let data = images(0, IMAGE);
        format!(
            "{{\"parameters\":{{\"timeout\":{timeout}}},\"inputs\":[{{\"name\":\"images\",\"datatype\":\"UINT8\",\"shape\":[1,6,5,3],\"data\":{data:?}}}]}}"
        )
    };
    for _ in 0..3 {
        let asked = Instant::now();
        let reply = post(served.http, INFER, body(50_000).as_bytes());
        assert_eq!(reply.status, 504, "{reply:?}");
        assert!((ms(50)..ms(1000)).contains(&asked.elapsed()), "{:?}", asked.elapsed());
    }
    faults.gate.open();
    assert!(is_well(&served));
    let computed = faults.images.load(Ordering::SeqCst) - computed;
    assert!(computed <= 2, "{computed} images computed: one was under way, the others were given up before");
    assert_eq!(served.metric("nv_inference_request_failure{model=\"m\",version=\"1\",reason=\"CANCELED\"}"), 3.0);
}

#[test]
fn requests_of_clients_that_left_are_not_computed() {
    let faults = Arc::new(Faults::default());
    let served = Served::with(|config| {
        config.open = faults.opener();
        config.max_batch = 1;
        config.queue = 50;
    });
    let before = faults.images.load(Ordering::SeqCst);
    faults.gate.close();
    let pending = format!("nv_inference_pending_request_count{LABELS}");
    let clients: Vec<Client> = (0..50)
        .map(|_| {
            let mut client = Client::new(served.http);
            client.send("POST", INFER, &[("inference-header-content-length", "0")], &images(0, IMAGE));
            client
        })
        .collect();
    served.until("all wait", |served| served.metric(&pending) == 50.0);
    drop(clients);
    served.until("all places are free", |served| served.metric(&pending) == 0.0);
    faults.gate.open();
    assert!(is_well(&served));
    let computed = faults.images.load(Ordering::SeqCst) - before;
    assert!(computed <= 2, "{computed} images computed for clients that had left");
}

#[test]
fn lost_device_is_opened_again_and_nobody_gets_a_wrong_answer() {
    for panics in [false, true] {
        let faults = Arc::new(Faults::default());
        let served = Served::with(|config| config.open = faults.opener());
        assert!(is_well(&served));
        faults.closed.store(2, Ordering::SeqCst);
        if panics { &faults.panic } else { &faults.lose }.store(1, Ordering::SeqCst);
        let reply = infer_raw(served.http, &images(0, IMAGE));
        assert_eq!((reply.status, reply.header("retry-after")), (503, Some("1")), "{reply:?}");
        assert_eq!(get(served.http, "/v2/health/ready").status, 503);
        assert_eq!(get(served.http, "/v2/health/live").status, 200);
        assert_eq!(infer_raw(served.http, &images(0, IMAGE)).status, 503, "while there is no device");
        served.until("ready again", |served| get(served.http, "/v2/health/ready").status == 200);
        assert!(is_well(&served));
        let lost = served.metric(&format!("shadernet_device_lost_total{LABELS}"));
        assert_eq!(lost, if panics { 0.0 } else { 1.0 });
        assert!(served.stop(Duration::ZERO, ms(2000)));
    }
}

#[test]
fn server_ends_while_its_device_is_lost() {
    let faults = Arc::new(Faults::default());
    let served = Served::with(|config| config.open = faults.opener());
    faults.closed.store(usize::MAX, Ordering::SeqCst);
    faults.lose.store(1, Ordering::SeqCst);
    assert_eq!(infer_raw(served.http, &images(0, IMAGE)).status, 503);
    let began = Instant::now();
    assert!(served.stop(Duration::ZERO, ms(5000)));
    assert!(began.elapsed() < ms(4000), "{:?}", began.elapsed());
}
