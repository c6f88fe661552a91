//! The same fault again and again: what happens once may leave something behind, what happens a hundred times shows it.

use std::path::Path;

use super::client::*;
use super::life::{answers_as, under_load};

/// Files that are no model, or not one to serve: at these places of a file that is one, bytes are cut off, spoilt, or all there is.
fn spoil(path: &Path, round: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    match round % 5 {
        0 => bytes.truncate(bytes.len() / 2),
        1 => bytes.clear(),
        2 => bytes[..8].fill(0xff),
        3 => bytes.truncate(bytes.len() - 1),
        _ => {
            let len = bytes.len();
            bytes[len - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
        }
    }
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn models_change_again_and_again_under_load_and_no_request_fails() {
    let served = Served::new();
    let path = served.folder.path().join("m.safetensors");
    let seeds: Vec<u64> = (1..=11).collect();
    under_load(served.http, &seeds, || {
        for (round, &seed) in seeds[1..].iter().enumerate() {
            save(&path, &small_model(), seed);
            assert_eq!(post(served.admin, "/v2/repository/models/m/load", b"").status, 200, "round {round}");
            assert!(answers_as(served.http, seed), "round {round}: the new one answers");
            spoil(&path, round);
            let reply = post(served.admin, "/v2/repository/models/m/load", b"");
            assert_eq!(reply.status, 400, "round {round}: {reply:?}");
            assert!(answers_as(served.http, seed), "round {round}: the last good one goes on");
        }
    });
}

#[cfg(all(target_os = "linux", feature = "cli"))]
mod process {
    use std::sync::RwLock;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::time::{Duration, Instant};

    use super::super::process::{Held, Process};
    use super::*;

    /// Waits until something is so, for longer than threads that do nothing are kept.
    fn until(what: &str, so: impl Fn() -> bool) {
        let began = Instant::now();
        while !so() {
            assert!(began.elapsed() < Duration::from_secs(40), "never: {what}");
            std::thread::sleep(ms(20));
        }
    }

    /// Waits until a process holds no more threads and files than before, and holds its memory against it.
    fn holds_what_it_held(process: &Process, before: Held, more_kilobytes: i64) {
        until("what was held is given back", || {
            let now = process.held();
            now.threads <= before.threads && now.files <= before.files
        });
        let now = process.held();
        assert!(now.resident - before.resident < more_kilobytes, "before {before:?}, now {now:?}");
    }

    #[test]
    fn models_that_were_replaced_leave_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.safetensors");
        save(&path, &small_model(), 1);
        let process = Process::start(&path);
        let reason = || post(process.admin, "/v2/repository/index", b"").json()[0]["reason"].as_str().unwrap().to_owned();
        let change = |seed: u64| {
            save(&path, &small_model(), seed);
            process.signal("-HUP");
            until("the new weights answer", || answers_as(process.http, seed));
            spoil(&path, seed as usize);
            process.signal("-HUP");
            until("a bad file is told of", || reason().contains("the last load failed"));
            assert!(answers_as(process.http, seed), "the last good one goes on");
        };
        under_load(process.http, &[1, 2, 3], || (2..4).for_each(change));
        std::thread::sleep(ms(500));
        let before = process.held();
        under_load(process.http, &(3..15).collect::<Vec<_>>(), || (4..15).for_each(change));
        holds_what_it_held(&process, before, 4096);
    }

    #[test]
    fn clients_that_vanish_leave_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.safetensors");
        save(&path, &small_model(), 1);
        let process = Process::start(&path);
        let body = images(2, 256 * IMAGE);
        let head = format!(
            "POST /v2/models/m/infer HTTP/1.1\r\nhost: a\r\ninference-header-content-length: 0\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let request = [head.as_bytes(), &body].concat();
        let vanish = |clients: usize| {
            let mut open = Vec::new();
            for i in 0..clients {
                let mut client = Client::new(process.http);
                match i % 6 {
                    0 => {}
                    1 => client.raw(&request[..head.len() / 2]),
                    2 => client.raw(&request[..head.len() + body.len() / 2]),
                    3 => client.raw(&request[..request.len() - 1]),
                    4 => client.raw(&request),
                    _ => client.raw(&request.repeat(3)),
                }
                // Some leave at once, some when up to twenty others have come.
                open.push(client);
                if i % 20 == 0 {
                    open.clear();
                }
            }
        };
        let quiet = || {
            until("no connection is left, and nothing waits", || {
                process.metric("nv_inference_pending_request_count{model=\"m\",version=\"1\"}") == 0.0
                    && process.metric("shadernet_connections") <= 1.0
            });
        };
        vanish(600);
        quiet();
        assert!(answers_as(process.http, 1));
        let before = process.held();
        for _ in 0..3 {
            vanish(600);
            quiet();
        }
        // Their bodies together are 38 MB; as many as are there at a time make for 3 more or less.
        holds_what_it_held(&process, before, 8192);
        assert!(answers_as(process.http, 1));
    }

    #[test]
    fn server_killed_under_load_starts_again_on_its_port_and_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.safetensors");
        save(&path, &small_model(), 1);
        let mut process = Process::start(&path);
        let (http, bytes) = (process.http, images(8, IMAGE));
        let want = expected(&small_model(), 1, &bytes);
        let (done, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
        // No one connects to a port without a server: on loopback such a connection can be one with itself, and then the port is taken.
        let port = RwLock::new(());
        std::thread::scope(|scope| {
            let ask = || {
                while !done.load(Ordering::SeqCst) {
                    let mut client = {
                        let _open = port.read().unwrap();
                        Client::new(http)
                    };
                    // Until the connection ends with the server.
                    while !done.load(Ordering::SeqCst) {
                        client.send("POST", "/v2/models/m/infer", &[("inference-header-content-length", "0")], &bytes);
                        let Some(reply) = client.receive() else { break };
                        match reply.status {
                            200 => assert_eq!(reply.floats(), want, "a whole answer is a right one"),
                            503 => {} // it is there, its model not yet
                            _ => panic!("{reply:?}"),
                        }
                        answered.fetch_add(usize::from(reply.status == 200), Ordering::SeqCst);
                    }
                }
            };
            for _ in 0..4 {
                scope.spawn(ask);
            }
            let _end = AtEnd(&done);
            let answers = |more: usize| {
                let from = answered.load(Ordering::SeqCst);
                until("requests are answered", || answered.load(Ordering::SeqCst) >= from + more);
            };
            answers(20);
            for _ in 0..5 {
                let restarting = port.write().unwrap();
                process.signal("-KILL");
                process.child.wait().unwrap();
                process = Process::start_at(&path, http.port());
                drop(restarting);
                answers(20);
            }
        });
    }
}
