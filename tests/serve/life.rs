//! How a server starts, changes its models, and ends, while it is asked.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use shadernet::serve::{Config, Routes, Server, Source};

use super::client::*;

/// Asks all the time while `work` is done; each answer must be what one of these weights gives, and none may fail.
pub(crate) fn under_load(address: SocketAddr, seeds: &[u64], work: impl FnOnce()) {
    let bytes = images(4, 2 * IMAGE);
    let good: Vec<Vec<f32>> = seeds.iter().map(|&seed| expected(&small_model(), seed, &bytes)).collect();
    let (done, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !done.load(Ordering::SeqCst) {
                    let reply = infer_raw(address, &bytes);
                    assert_eq!(reply.status, 200, "{reply:?}");
                    assert!(good.contains(&reply.floats()), "an answer of neither model");
                    asked.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        let _end = AtEnd(&done);
        std::thread::sleep(ms(50));
        work();
        std::thread::sleep(ms(50));
    });
    assert!(asked.load(Ordering::SeqCst) > 10);
}

pub(crate) fn answers_as(address: SocketAddr, seed: u64) -> bool {
    let bytes = images(5, IMAGE);
    infer_raw(address, &bytes).floats() == expected(&small_model(), seed, &bytes)
}

#[test]
fn new_weights_take_over_and_bad_files_do_not() {
    let served = Served::new();
    let path = served.folder.path().join("m.safetensors");
    let load = || post(served.admin, "/v2/repository/models/m/load", b"{}");
    under_load(served.http, &[1, 2], || {
        save(&path, &small_model(), 2);
        assert_eq!(load().status, 200);
        assert!(answers_as(served.http, 2));
        let good = std::fs::read(&path).unwrap();
        for bad in [&b""[..], b"not a model", &good[..good.len() - 5], &[0xff; 64]] {
            std::fs::write(&path, bad).unwrap();
            let reply = load();
            assert_eq!(reply.status, 400);
            assert!(reply.error().contains("m.safetensors"), "{}", reply.error());
            assert!(answers_as(served.http, 2), "the old version goes on");
        }
        std::fs::remove_file(&path).unwrap();
        assert_eq!(load().status, 400);
    });
    let index = post(served.admin, "/v2/repository/index", b"").json();
    assert_eq!((&index[0]["name"], &index[0]["state"]), (&json!("m"), &json!("READY")));
    assert!(index[0]["reason"].as_str().unwrap().contains("the last load failed"), "{index}");
    save(&path, &small_model(), 3);
    served.server.as_ref().unwrap().reload();
    assert!(answers_as(served.http, 3));
    assert_eq!(post(served.admin, "/v2/repository/index", b"{\"ready\":true}").json()[0]["reason"], json!(""));
}

#[test]
fn weights_that_are_no_numbers_do_not_serve() {
    let served = Served::new();
    let mut broken = weights(&small_model(), 2);
    broken[0].data[0] = f32::NAN;
    shadernet::files::save_model(&served.folder.path().join("m.safetensors"), &small_model(), &broken).unwrap();
    assert!(post(served.admin, "/v2/repository/models/m/load", b"").error().contains("finite"));
    assert!(answers_as(served.http, 1));
}

#[test]
fn models_can_be_taken_down_and_put_back() {
    let served = Served::new();
    let change = |what: &str| post(served.admin, &format!("/v2/repository/models/m/{what}"), b"").status;
    assert_eq!(change("unload"), 200);
    assert_eq!(get(served.http, "/v2/models/m").status, 404);
    assert_eq!(get(served.http, "/v2/health/ready").status, 503);
    assert_eq!(change("unload"), 404);
    assert_eq!(post(served.admin, "/v2/repository/index", b"").json()[0]["state"], json!("UNAVAILABLE"));
    assert_eq!(change("load"), 200);
    assert!(answers_as(served.http, 1));
}

#[test]
fn folders_have_models_and_versions() {
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, seed| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        save(&path, &small_model(), seed);
    };
    put("a.safetensors", 1);
    put("m/1/x.safetensors", 2);
    put("m/10/x.safetensors", 3);
    let served = Served::with(|config| config.models = vec![Source::Folder(folder.path().to_owned())]);
    let bytes = images(6, IMAGE);
    let ask = |path: &str| call(served.http, "POST", path, &[("inference-header-content-length", "0")], &bytes).floats();
    assert_eq!(ask("/v2/models/a/infer"), expected(&small_model(), 1, &bytes));
    assert_eq!(ask("/v2/models/m/infer"), expected(&small_model(), 3, &bytes), "the highest version");
    assert_eq!(ask("/v2/models/m/versions/1/infer"), expected(&small_model(), 2, &bytes));
    assert_eq!(get(served.http, "/v2/models/m").json()["versions"], json!(["1", "10"]));
    put("m/11/x.safetensors", 4);
    put("b.safetensors", 5);
    let load = |name: &str| post(served.admin, &format!("/v2/repository/models/{name}/load"), b"").status;
    assert_eq!((load("m"), load("b")), (200, 200));
    assert_eq!(ask("/v2/models/m/infer"), expected(&small_model(), 4, &bytes));
    assert_eq!(ask("/v2/models/b/infer"), expected(&small_model(), 5, &bytes));
}

#[test]
fn settings_and_models_that_cannot_be_are_refused_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.safetensors");
    let fails = |change: &dyn Fn(&mut Config), words: &str| {
        let mut config = Config::new(vec![Source::File { name: "m".to_owned(), path: path.clone() }], cpu());
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        (config.http, config.grpc, config.admin) = (any, Some(any), Some(any));
        change(&mut config);
        let error = Server::start(config).err().expect("an error").to_string();
        assert!(error.contains(words), "no {words:?} in {error}");
    };
    fails(&|_| {}, "m.safetensors");
    save(&path, &small_model(), 1);
    fails(&|config| config.models = vec![Source::Folder(folder.path().join("none"))], "none");
    let empty = tempfile::tempdir().unwrap();
    fails(&|config| config.models = vec![Source::Folder(empty.path().to_owned())], "at least one");
    fails(&|config| config.models.push(config.models[0].clone()), "twice");
    fails(&|config| config.max_batch = 0, "images of a batch");
    fails(&|config| config.queue = 7, "images of the queue");
    fails(&|config| config.preferred_batches = vec![65], "preferred");
    fails(&|config| config.tokens = Some(folder.path().join("tokens")), "tokens");
    fails(&|config| config.tls = Some((path.clone(), path.clone())), "certificates");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    fails(&|config| config.http = taken.local_addr().unwrap(), "address");
}

#[test]
fn tokens_are_asked_of_everything_but_health_and_the_page() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "secret\n").unwrap();
    let served = Served::with(|config| config.tokens = Some(file.path().to_owned()));
    for path in ["/v2/health/live", "/v2/health/ready", "/", "/openapi.json"] {
        assert_eq!(get(served.http, path).status, 200, "{path}");
    }
    for (address, path) in [(served.http, "/v2"), (served.http, "/v2/models/m"), (served.http, "/nothing"), (served.admin, "/metrics")] {
        let reply = get(address, path);
        assert_eq!((reply.status, reply.header("www-authenticate")), (401, Some("Bearer")), "{path}");
    }
    assert_eq!(infer_raw(served.http, &images(0, IMAGE)).status, 401);
    let with = |token: &str| call(served.http, "GET", "/v2/models/m", &[("authorization", &format!("Bearer {token}"))], b"").status;
    assert_eq!((with("secret"), with("secre"), with("secret2")), (200, 401, 401));
    std::fs::write(file.path(), "other\n").unwrap();
    served.server.as_ref().unwrap().reload();
    assert_eq!((with("secret"), with("other")), (401, 200));
}

#[test]
fn request_ids_come_back_or_are_made() {
    let served = Served::new();
    let id = |headers: &[(&str, &str)]| call(served.http, "GET", "/v2", headers, b"").header("x-request-id").unwrap().to_owned();
    assert_eq!(id(&[("x-request-id", "mine-1")]), "mine-1");
    let made = [id(&[]), id(&[]), id(&[("x-request-id", "a b")]), id(&[("x-request-id", &"x".repeat(200))])];
    assert!(made.iter().all(|id| id.len() == 16) && made[0] != made[1], "{made:?}");
}

#[test]
fn further_addresses_answer_as_cloud_services_ask() {
    let routes = Routes { health: Some("/ai/health".to_owned()), predict: Some("/ai/predict".to_owned()) };
    let served = Served::with(|config| config.routes = routes);
    assert_eq!(get(served.http, "/ai/health").status, 200);
    let body = json!({ "instances": [vec![vec![[0.5; 3]; 5]; 6]], "parameters": {} }).to_string();
    assert_eq!(post(served.http, "/ai/predict", body.as_bytes()).json()["predictions"][0].as_array().unwrap().len(), CLASSES);
}

#[test]
fn end_answers_what_is_under_way_and_asks_clients_to_go() {
    let faults = std::sync::Arc::new(super::fragile::Faults::default());
    let served = Served::with(|config| config.open = faults.opener());
    let (http, bytes) = (served.http, images(7, IMAGE));
    let want = expected(&small_model(), 1, &bytes);
    faults.gate.close();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| infer_raw(http, &bytes).floats());
        served.until("a request waits", |served| served.metric("nv_inference_pending_request_count{model=\"m\",version=\"1\"}") == 1.0);
        let stopping = scope.spawn(move || served.stop(ms(400), ms(5000)));
        std::thread::sleep(ms(100));
        let reply = get(http, "/v2/health/ready");
        assert_eq!((reply.status, reply.header("connection")), (503, Some("close")), "leaving");
        assert_eq!(get(http, "/v2").status, 200, "still answering");
        std::thread::sleep(ms(500));
        assert!(std::net::TcpStream::connect(http).is_err(), "no new connections");
        faults.gate.open();
        assert_eq!(waiting.join().unwrap(), want);
        assert!(stopping.join().unwrap());
    });
}

#[test]
fn end_does_not_wait_for_longer_than_it_may() {
    let faults = std::sync::Arc::new(super::fragile::Faults::default());
    let served = Served::with(|config| config.open = faults.opener());
    let http = served.http;
    faults.gate.close();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let mut client = Client::new(http);
            client.send("POST", "/v2/models/m/infer", &[("inference-header-content-length", "0")], &images(0, IMAGE));
            client.receive().is_none_or(|reply| reply.status >= 500)
        });
        served.until("a request waits", |served| served.metric("nv_inference_pending_request_count{model=\"m\",version=\"1\"}") == 1.0);
        let began = Instant::now();
        assert!(!served.stop(Duration::ZERO, ms(300)), "one was not answered");
        assert!(began.elapsed() < ms(2000), "{:?}", began.elapsed());
        faults.gate.open();
        assert!(waiting.join().unwrap());
    });
}

/// Tests of the program itself, with signals.
#[cfg(all(unix, feature = "cli"))]
mod program {
    use std::process::Command;

    use super::super::binary;
    use super::super::process::Process;
    use super::*;

    #[test]
    fn sigterm_under_load_fails_no_request_and_exits_0() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.safetensors");
        save(&path, &small_model(), 1);
        let mut process = Process::start(&path);
        let (bytes, http) = (images(8, IMAGE), process.http);
        let want = expected(&small_model(), 1, &bytes);
        std::thread::scope(|scope| {
            let ask = || {
                let (mut answered, mut connection) = (0, Client::new(http));
                // Until the server asks to go elsewhere, as a client that keeps its connection does.
                loop {
                    connection.send("POST", "/v2/models/m/infer", &[("inference-header-content-length", "0")], &bytes);
                    let reply = connection.receive().expect("an answer to every request");
                    assert_eq!((reply.status, reply.floats() == want), (200, true));
                    answered += 1;
                    if reply.header("connection") == Some("close") {
                        return answered;
                    }
                }
            };
            let clients: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
            std::thread::sleep(ms(200));
            process.signal("-TERM");
            assert!(clients.into_iter().map(|client| client.join().unwrap()).sum::<usize>() > 20);
        });
        assert_eq!(process.child.wait().unwrap().code(), Some(0));
    }

    /// The long version is tests/serve/soak.sh.
    #[cfg(target_os = "linux")]
    #[test]
    fn memory_is_flat_over_thousands_of_requests() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.safetensors");
        save(&path, &small_model(), 1);
        let process = Process::start(&path);
        let (bytes, http) = (images(8, IMAGE), process.http);
        let ask = |times: usize| {
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        let mut connection = Client::new(http);
                        for _ in 0..times / 4 {
                            connection.send("POST", "/v2/models/m/infer", &[("inference-header-content-length", "0")], &bytes);
                            assert_eq!(connection.receive().expect("an answer").status, 200);
                        }
                    });
                }
            });
            process.held().resident
        };
        // What is kept for each request would be 16 MB for 200 bytes more of each 80,000; the bound is for 8,000.
        let warm = ask(4000);
        let end = ask(8000);
        assert!(end - warm < 1600, "{warm} kB after 4,000 requests, {end} kB after 8,000 more");
    }

    #[test]
    fn killed_server_starts_again_on_the_same_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.safetensors");
        save(&path, &small_model(), 1);
        for _ in 0..3 {
            let process = Process::start(&path);
            assert!(answers_as(process.http, 1));
            process.signal("-KILL");
        }
    }

    #[test]
    fn hangup_reads_the_models_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.safetensors");
        save(&path, &small_model(), 1);
        let process = Process::start(&path);
        save(&path, &small_model(), 2);
        process.signal("-HUP");
        let began = Instant::now();
        while !answers_as(process.http, 2) {
            assert!(began.elapsed() < Duration::from_secs(20));
            std::thread::sleep(ms(20));
        }
    }

    #[test]
    fn wrong_use_is_told() {
        let run = |arguments: &[&str]| {
            let mut command = Command::new(binary::program());
            let done = command.arg("serve").args(arguments).env_remove("AIP_STORAGE_URI").output().unwrap();
            (done.status.code(), String::from_utf8(done.stderr).unwrap())
        };
        let (code, text) = run(&[]);
        assert!(code == Some(1) && text.contains("models to serve"), "{code:?} {text}");
        let (code, text) = run(&["nothing.safetensors", "--port", "0", "--admin-port", "0", "--grpc-port", "off", "--device", "cpu"]);
        assert!(code == Some(1) && text.contains("nothing.safetensors"), "{code:?} {text}");
        for wrong in [["x", "--max-delay", "5"], ["x", "--grpc-port", "70000"], ["x", "--max-batch", "0"], ["x", "--tls-cert", "y"]] {
            assert_eq!(run(&wrong).0, Some(2), "{wrong:?}");
        }
    }
}
