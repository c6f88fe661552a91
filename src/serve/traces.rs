//! Requests as OpenTelemetry spans, sent to a collector over OTLP (protobuf over HTTP).
//!
//! A request that comes with a `traceparent` (W3C Trace Context) becomes a part of that trace, sampled as it says; any other begins one,
//! sampled as `OTEL_TRACES_SAMPLER` says. Spans leave in batches from a thread of their own: a collector that is slow or away
//! costs spans, never answers.

use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use hyper::{HeaderMap, Request, Response, Uri};
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{Span, SpanKind, Status, Tracer, TracerProvider};
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::{HeaderExtractor, HttpClient, HttpError};
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};

use crate::error::{Error, Result};

/// Where spans go.
pub(super) struct Traces {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    propagator: TraceContextPropagator,
}

/// A request that is answered, or not, and was part of something.
pub(super) struct Traced {
    began: SystemTime,
    parent: Context,
}

/// What is told of an answer.
pub(super) struct Told<'a> {
    /// Without names of models: few names for many requests.
    pub(super) name: &'static str,
    pub(super) method: &'a str,
    pub(super) path: &'a str,
    pub(super) status: u16,
    pub(super) peer: std::net::IpAddr,
    pub(super) request_id: &'a str,
}

/// How long a collector may take to accept a batch.
const PATIENCE: Duration = Duration::from_secs(10);
/// Where collectors take traces.
const PATH: &str = "/v1/traces";

impl Traces {
    /// To the collector at this address, `http://HOST:PORT` or with a path.
    ///
    /// # Errors
    /// An address that is none, or a thread that cannot be had.
    pub(super) fn new(endpoint: &str) -> Result<Self> {
        let wrong =
            |found: &dyn std::fmt::Display| Error::invalid("the collector's address", found, "http://HOST:PORT, as http://127.0.0.1:4318");
        let uri: Uri = endpoint.parse().map_err(|_| wrong(&endpoint))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none() {
            return Err(wrong(&endpoint));
        }
        let base = endpoint.trim_end_matches('/');
        let address = if uri.path().trim_end_matches('/').is_empty() { format!("{base}{PATH}") } else { base.to_owned() };
        let agent = ureq::Agent::config_builder().timeout_global(Some(PATIENCE)).http_status_as_error(false).build().into();
        let exporter = SpanExporter::builder().with_http().with_http_client(Client(agent)).with_endpoint(address).build();
        let exporter = exporter.map_err(|error| wrong(&error))?;
        let attributes = [KeyValue::new("service.version", env!("CARGO_PKG_VERSION"))];
        let mut resource = Resource::builder().with_attributes(attributes);
        if std::env::var_os("OTEL_SERVICE_NAME").is_none() {
            resource = resource.with_service_name("shadernet");
        }
        let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource.build()).build();
        let tracer = provider.tracer("shadernet");
        Ok(Self { provider, tracer, propagator: TraceContextPropagator::new() })
    }

    /// A request came.
    pub(super) fn begin(&self, headers: &HeaderMap) -> Traced {
        Traced { began: SystemTime::now(), parent: self.propagator.extract_with_context(&Context::new(), &HeaderExtractor(headers)) }
    }

    /// It was answered.
    pub(super) fn end(&self, traced: Traced, told: &Told<'_>) {
        let attributes = [
            KeyValue::new("http.request.method", told.method.to_owned()),
            KeyValue::new("url.path", told.path.to_owned()),
            KeyValue::new("http.response.status_code", i64::from(told.status)),
            KeyValue::new("client.address", told.peer.to_string()),
            KeyValue::new("shadernet.request_id", told.request_id.to_owned()),
        ];
        let builder =
            self.tracer.span_builder(told.name).with_kind(SpanKind::Server).with_start_time(traced.began).with_attributes(attributes);
        let mut span = builder.start_with_context(&self.tracer, &traced.parent);
        if told.status >= 500 {
            span.set_status(Status::error(""));
        }
        span.end();
    }

    /// Sends what has not been sent.
    pub(super) fn flush(&self) {
        if let Err(error) = self.provider.shutdown_with_timeout(PATIENCE) {
            log::warn!("traces: {error}");
        }
    }
}

/// What carries the spans: the HTTP client that the data loaders have as well.
#[derive(Debug)]
struct Client(ureq::Agent);

impl HttpClient for Client {
    // Called on the exporter's own thread, which has nothing else to do.
    fn send_bytes<'a, 'b>(
        &'a self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = std::result::Result<Response<Bytes>, HttpError>> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let answer = self.0.run(Request::from_parts(head, body.to_vec()))?;
            let (head, mut body) = answer.into_parts();
            Ok(Response::from_parts(head, Bytes::from(body.with_config().limit(1 << 20).read_to_vec()?)))
        })
    }
}
