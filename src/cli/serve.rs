//! `shadernet serve`: which flags and variables become which server, and what signals do to it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use shadernet::Error;
use shadernet::exec::Executor;
use shadernet::exec::gpu::DeviceChoice;
use shadernet::serve::storage::{self, Endpoints};
use shadernet::serve::{Config, Limits, Opener, Routes, Server, Source};
use tokio::signal::unix::{SignalKind, signal};

use super::{Device, Failure, Result, at_least_one, batch_size, progress};

/// Serve models to clients of the Open Inference Protocol (Triton, KServe), TensorFlow Serving, and browsers.
///
/// Each model answers on HTTP (JSON, binary tensors, pictures) and on gRPC; the admin port answers about metrics and the
/// repository as well. Requests that arrive together are computed together; what a request is answered does not depend on that.
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Arguments {
    /// The models: files as `train --out` writes them, or folders with NAME.safetensors or NAME/VERSION/*.safetensors in them.
    /// NAME=PATH gives a file another name than its own. gs://BUCKET/FOLDER takes them from Google Cloud Storage, once, with the
    /// machine's own service account. Without any: what AIP_STORAGE_URI names.
    #[arg(value_name = "[NAME=]PATH")]
    models: Vec<String>,
    /// Address of the HTTP and the gRPC port [default: 127.0.0.1; 0.0.0.0 where AIP_HTTP_PORT or PORT is set].
    #[arg(long, value_name = "IP")]
    host: Option<IpAddr>,
    /// HTTP port; 0 takes a free one [default: AIP_HTTP_PORT, else PORT, else 8000].
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// gRPC port, or `off`.
    #[arg(long, value_name = "PORT", default_value = "8001", value_parser = optional_port)]
    grpc_port: OptionalPort,
    /// Address of the admin port. Whoever reaches it can load and unload models.
    #[arg(long, value_name = "IP", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    admin_host: IpAddr,
    /// Admin port, or `off`.
    #[arg(long, value_name = "PORT", default_value = "8002", value_parser = optional_port)]
    admin_port: OptionalPort,
    #[command(flatten)]
    device: Device,
    /// Threads with the model in memory, for each model, which compute batches side by side [default: on the CPU, where they share
    /// the cores, one for each core but at most 8; 2 on a GPU, so that one batch is prepared while the other is computed].
    #[arg(long, value_name = "N", value_parser = at_least_one, allow_negative_numbers = true)]
    instances: Option<usize>,
    /// Most images of a batch.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = batch_size, allow_negative_numbers = true)]
    max_batch: usize,
    /// How long a request waits for others while the batch is not full. With 0, batches form from what arrives while the device
    /// is busy.
    #[arg(long, value_name = "TIME", default_value = "0ms", value_parser = duration)]
    max_delay: Duration,
    /// Sizes of batch that do not wait any longer; more requests are cut to the largest that fits.
    #[arg(long, value_name = "N,N…", value_delimiter = ',', value_parser = batch_size)]
    preferred_batch: Vec<usize>,
    /// Most images of one model under way, waiting or computing; more are answered 503.
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = at_least_one, allow_negative_numbers = true)]
    queue: usize,
    /// Longest time to an answer (504 after it); a request may ask for less.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    timeout: Duration,
    /// Most bytes of a request's body.
    #[arg(long, value_name = "BYTES", default_value_t = Limits::default().body, value_parser = at_least_one)]
    max_body: usize,
    /// Most bytes that the bodies of all requests under way hold, with what is made of them.
    #[arg(long, value_name = "BYTES", default_value_t = Limits::default().memory, value_parser = at_least_one)]
    max_memory: usize,
    /// Most connections.
    #[arg(long, value_name = "N", default_value_t = Limits::default().connections, value_parser = at_least_one)]
    max_connections: usize,
    /// Most requests to models a second of one client, known by its token or else its address; more are answered 429 [default: no bound].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    client_rate: Option<u32>,
    /// Longest time for the head of a request, and for a TLS handshake.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    head_timeout: Duration,
    /// Longest time for a body.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    body_timeout: Duration,
    /// Longest time that a connection is open and does nothing.
    #[arg(long, value_name = "TIME", default_value = "75s", value_parser = duration)]
    idle_timeout: Duration,
    /// Longest time that a client does not take what is sent to it.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    write_timeout: Duration,
    /// Ask every request for a bearer token that is a line of this file; health and the page are open. Read again on SIGHUP.
    #[arg(long, value_name = "FILE")]
    tokens: Option<PathBuf>,
    /// Certificates (PEM) for TLS on all ports.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Their private key (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Send a span of every request to this OpenTelemetry collector [default: OTEL_EXPORTER_OTLP_ENDPOINT, else none].
    #[cfg(feature = "otel")]
    #[arg(long, value_name = "URL")]
    otlp: Option<String>,
    /// After SIGTERM, how long to go on answering while saying not to be ready.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = duration)]
    drain_delay: Duration,
    /// After that, how long to wait for requests under way.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    drain: Duration,
    /// How the log is written.
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = LogFormat::Text)]
    pub(super) log_format: LogFormat,
}

const AFTER_HELP: &str = "\
Examples:
  shadernet serve cnn.safetensors
  curl --data-binary @cat.png http://127.0.0.1:8000/classify
  shadernet serve cifar=run1/best.safetensors --host 0.0.0.0 --tokens tokens.txt
  shadernet serve /mnt/models --max-batch 256 --max-delay 2ms

Signals: SIGTERM and Ctrl-C end in order (exit code 0 if every request under way was answered, else 1), a second one
at once; SIGHUP reads models and tokens again.
Environment: RUST_LOG=debug also logs requests that were answered; AIP_HTTP_PORT, AIP_HEALTH_ROUTE, AIP_PREDICT_ROUTE,
AIP_STORAGE_URI (Google Cloud Vertex AI) and PORT (Cloud Run) are taken as those services set them; for models in Cloud
Storage STORAGE_EMULATOR_HOST and GCE_METADATA_HOST are as in Google's libraries, and SHADERNET_CACHE is where they are kept.
The addresses are described in http://127.0.0.1:8000/openapi.json.";

/// How the log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// A port, or none.
#[derive(Clone, Copy)]
struct OptionalPort(Option<u16>);

fn optional_port(text: &str) -> Result<OptionalPort, String> {
    if text == "off" {
        return Ok(OptionalPort(None));
    }
    text.parse().map(|port| OptionalPort(Some(port))).map_err(|_| "expected a port from 0 to 65535, or off".to_owned())
}

/// `500us`, `5ms`, `2.5s`, `1m`.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "expected a time such as 500us, 5ms, 2.5s or 1m, at most a day".to_owned();
    let unit = text.find(|c: char| c.is_ascii_alphabetic()).ok_or_else(wrong)?;
    let (number, unit) = text.split_at(unit);
    let seconds = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        _ => return Err(wrong()),
    };
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let time = Duration::try_from_secs_f64(number * seconds).map_err(|_| wrong())?;
    if time <= Duration::from_secs(86_400) { Ok(time) } else { Err(wrong()) }
}

/// Runs the command.
pub(super) fn run(arguments: Arguments) -> Result {
    let (delay, limit) = (arguments.drain_delay, arguments.drain);
    let config = configure(arguments)?;
    let server = Server::start(config)?;
    let at = |what: &str, address: Option<SocketAddr>| address.map_or(String::new(), |address| format!(", {what} {address}"));
    progress::line(&format!("serving  HTTP {}{}{}", server.http(), at("gRPC", server.grpc()), at("admin", server.admin())));

    server.wait_for(serve_until_told(&server)).map_err(|e| Error::invalid("handlers of signals", e, "ones that the system accepts"))?;
    log::info!("ending: answering what is under way");
    if server.stop(delay, limit) {
        log::info!("ended: every request was answered");
        return Ok(());
    }
    log::warn!("ended with requests that were not answered in time");
    Err(Failure::Told)
}

/// Waits for a signal to end. After it, the next one ends at once.
async fn serve_until_told(server: &Server) -> std::io::Result<()> {
    let mut hangup = signal(SignalKind::hangup())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    loop {
        tokio::select! {
            _ = hangup.recv() => tokio::task::block_in_place(|| server.reload()),
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        std::process::exit(130);
    });
    Ok(())
}

fn configure(arguments: Arguments) -> Result<Config, Error> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let port_of = |name: &str| match variable(name).map(|port| port.parse::<u16>()) {
        None => Ok(None),
        Some(Ok(port)) => Ok(Some(port)),
        Some(Err(_)) => Err(Error::invalid(name, variable(name).unwrap_or_default(), "a port")),
    };
    let set = port_of("AIP_HTTP_PORT")?.or(port_of("PORT")?);
    let host = arguments.host.unwrap_or(if set.is_some() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv4Addr::LOCALHOST.into() });
    let models = match (arguments.models.as_slice(), variable("AIP_STORAGE_URI")) {
        ([], None) => return Err(Error::invalid("models to serve", "none", "a file or a folder: shadernet serve cnn.safetensors")),
        ([], Some(uri)) => vec![local("AIP_STORAGE_URI", &uri)?],
        (models, _) => models.iter().map(|model| local("the address of a model", model)).collect::<Result<Vec<Source>, Error>>()?,
    };
    let on_cpu = arguments.device.is_cpu()?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let instances = arguments.instances.unwrap_or(if on_cpu { cores.min(8) } else { 2 });
    let limits = Limits {
        body: arguments.max_body,
        memory: arguments.max_memory,
        connections: arguments.max_connections,
        client_rate: arguments.client_rate,
        timeout: arguments.timeout,
        head_timeout: arguments.head_timeout,
        body_timeout: arguments.body_timeout,
        idle_timeout: arguments.idle_timeout,
        write_timeout: arguments.write_timeout,
    };
    Ok(Config {
        http: SocketAddr::from((host, arguments.port.or(set).unwrap_or(8000))),
        grpc: arguments.grpc_port.0.map(|port| SocketAddr::from((host, port))),
        admin: arguments.admin_port.0.map(|port| SocketAddr::from((arguments.admin_host, port))),
        max_batch: arguments.max_batch,
        max_delay: arguments.max_delay,
        preferred_batches: arguments.preferred_batch,
        instances,
        queue: arguments.queue,
        limits,
        tokens: arguments.tokens,
        tls: arguments.tls_cert.zip(arguments.tls_key),
        #[cfg(feature = "otel")]
        otlp: arguments.otlp.or_else(|| variable("OTEL_EXPORTER_OTLP_ENDPOINT")),
        routes: Routes { health: variable("AIP_HEALTH_ROUTE"), predict: variable("AIP_PREDICT_ROUTE") },
        ..Config::new(models, opener(arguments.device, instances))
    })
}

/// Where the models are that an address stands for; those in Cloud Storage are brought here.
fn local(what: &str, uri: &str) -> Result<Source, Error> {
    if uri.starts_with("gs://") {
        let cache = shadernet::data::cache::folder().unwrap_or_else(|| std::env::temp_dir().join("shadernet"));
        let path = storage::fetch(uri, &Endpoints::from_variables(), &cache)?;
        return path.to_string_lossy().parse();
    }
    match uri.strip_prefix("file://") {
        Some(path) => path.parse(),
        None if !uri.contains("://") => uri.parse(),
        None => Err(Error::invalid(what, uri, "a path, gs://BUCKET/FOLDER or file:///PATH")),
    }
}

/// Opens the device anew at each call: after a loss, what was open is of no use.
fn opener(device: Device, instances: usize) -> Opener {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = device.threads.unwrap_or((cores / instances).max(1));
    Arc::new(move || {
        let device =
            Device { threads: (device.device == DeviceChoice::Cpu || device.threads.is_some()).then_some(threads), ..device.clone() };
        let (exec, why): (Box<dyn Executor>, String) = device.open()?;
        log::debug!("device {}: {why}", exec.device());
        Ok(exec)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units_and_bounds() {
        assert_eq!(duration("500us"), Ok(Duration::from_micros(500)));
        assert_eq!(duration("2.5s"), Ok(Duration::from_millis(2500)));
        assert_eq!(duration("0ms"), Ok(Duration::ZERO));
        for wrong in ["", "5", "ms", "-1s", "1h", "NaNs", "1e300s", "100000s", "5 ms x"] {
            assert!(duration(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn storage_addresses_are_paths_or_refused() {
        let path = "/mnt/models/m.safetensors";
        let file = Source::File { name: "m".to_owned(), path: path.into() };
        assert_eq!(local("x", path).unwrap(), file);
        assert_eq!(local("x", &format!("file://{path}")).unwrap(), file);
        for wrong in ["s3://bucket/model", "gs://", "gs://Bucket/m"] {
            assert!(local("x", wrong).unwrap_err().to_string().contains("gs://BUCKET/FOLDER"), "{wrong}");
        }
    }
}
