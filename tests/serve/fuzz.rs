//! Requests that were damaged at random: each is answered, none as if it were the server's fault, and the server stays well.

use shadernet::exec::selftest::noise;

use super::client::*;

/// A whole number below `bound`.
fn below(bound: usize, seed: u64, draw: usize) -> usize {
    ((noise(seed, draw) * bound as f64) as usize).min(bound - 1)
}

/// Words that parsers of numbers, lists and headers stumble over.
const WORDS: [&str; 22] = [
    "-1",
    "0",
    "1e999",
    "-0.0",
    "18446744073709551615",
    "9223372036854775808",
    "null",
    "true",
    "NaN",
    "\"\"",
    "[]",
    "{}",
    "[[",
    "]]",
    "{\"a\":",
    ",",
    ":",
    "\"",
    "\\u0000",
    "\u{fffd}",
    "\r\n",
    "\0",
];

/// One to six damages: a byte changed, a stretch dropped, a stretch repeated, or a word put in.
fn damage(bytes: &mut Vec<u8>, seed: u64) {
    for round in 0..1 + below(6, seed, 0) {
        let draw = |i: usize| 10 * (round + 1) + i;
        let at = below(bytes.len() + 1, seed, draw(0));
        let end = (at + 1 + below(12, seed, draw(1))).min(bytes.len());
        match below(4, seed, draw(2)) {
            0 if at < bytes.len() => bytes[at] = below(256, seed, draw(3)) as u8,
            1 => drop(bytes.drain(at.min(end)..end)),
            2 => {
                let stretch = bytes[at.min(end)..end].to_vec();
                bytes.splice(at..at, stretch);
            }
            _ => drop(bytes.splice(at..at, WORDS[below(WORDS.len(), seed, draw(3))].bytes())),
        }
    }
}

#[test]
fn damaged_requests_are_answered_and_never_as_our_fault() {
    let served = Served::with(|config| config.limits = impatient());
    let data = images(0, IMAGE);
    let tensor = format!("{{\"name\":\"images\",\"datatype\":\"UINT8\",\"shape\":[1,6,5,3],\"data\":{data:?}}}");
    let json = format!(
        "{{\"id\":\"a\",\"parameters\":{{\"timeout\":9000000}},\"inputs\":[{tensor}],\"outputs\":[{{\"name\":\"probabilities\"}}]}}"
    );
    let head = "{\"inputs\":[{\"name\":\"images\",\"datatype\":\"UINT8\",\"shape\":[1,6,5,3],\"parameters\":{\"binary_data_size\":90}}]}";
    let binary = [head.as_bytes(), &data].concat();
    let length = head.len().to_string();
    let v1 = format!("{{\"instances\":{:?}}}", [[[[0.5; 3]; 5]; 6]]);
    let b64 =
        "{\"instances\":[{\"b64\":\"iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC\"}]}";
    let infer = "/v2/models/m/infer";
    let (split, raw) = (("inference-header-content-length", length.as_str()), ("inference-header-content-length", "0"));
    type Request<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a [u8]);
    let requests: [Request<'_>; 5] = [
        (infer, &[], json.as_bytes()),
        (infer, &[split], &binary),
        (infer, &[raw], &data),
        ("/v1/models/m:predict", &[], v1.as_bytes()),
        ("/v1/models/m:predict", &[], b64.as_bytes()),
    ];
    let (mut good, mut bad) = (0, 0);
    let mut client = Client::new(served.http);
    for seed in 0..4000_u64 {
        let (path, headers, body) = requests[seed as usize % requests.len()];
        let mut body = body.to_vec();
        if seed as usize >= requests.len() {
            damage(&mut body, seed); // the first of each are as they should be
        }
        client.send("POST", path, headers, &body);
        let reply = client.receive().unwrap_or_else(|| panic!("seed {seed}: no answer"));
        assert!(reply.status < 500, "seed {seed}: {reply:?} to {:?}", String::from_utf8_lossy(&body));
        assert!(reply.status == 200 || seed as usize >= requests.len(), "{reply:?}");
        *if reply.status == 200 { &mut good } else { &mut bad } += 1;
        if reply.header("connection") == Some("close") {
            client = Client::new(served.http);
        }
    }
    assert!(good > 100 && bad > 1000, "{good} answered and {bad} refused: the damage is not what it should be");

    // The same for what stands before the body. Here the connection may also be closed.
    for seed in 0..1000_u64 {
        let mut request =
            format!("POST {infer} HTTP/1.1\r\nhost: a\r\n{}: {length}\r\ncontent-length: {}\r\n\r\n", split.0, binary.len()).into_bytes();
        damage(&mut request, seed);
        let mut client = Client::new(served.http);
        client.raw(&request);
        client.raw(&binary);
        let _ = client.0.shutdown(std::net::Shutdown::Write); // the server may have closed already
        if let Some(reply) = client.receive() {
            assert!(reply.status < 500, "seed {seed}: {reply:?} to {:?}", String::from_utf8_lossy(&request));
        }
    }
    let bytes = images(1, IMAGE);
    assert_eq!(infer_raw(served.http, &bytes).floats(), expected(&small_model(), 1, &bytes));
}
