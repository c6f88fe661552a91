//! Which request means what.
//!
//! Addresses are taken apart at slashes and never decoded: every name that a model can have is written as it is, so anything
//! else is simply not found.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::HeaderMap;
use hyper::{Method, Request, Response, StatusCode};
use serde::Deserialize;

use super::answer::{Answer, text};
use super::body::{self, Share};
use super::coding::{Coding, LONG};
use super::numbers::from_json;
use super::refusal::Refusal;
#[cfg(feature = "otel")]
use super::traces::Told;
use super::version::Version;
use super::{Door, State, metrics, oip, picture, v1};

const PAGE: &str = include_str!("page.html");
const OPENAPI: &str = include_str!("openapi.json");

/// Answers a request that came through this door.
pub(super) async fn answer(state: Arc<State>, door: Door, request: Request<Incoming>, peer: SocketAddr) -> Response<Full<Bytes>> {
    let began = Instant::now();
    let id = state.request_id(request.headers());
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    #[cfg(feature = "otel")]
    let traced = state.traces.as_ref().map(|traces| traces.begin(request.headers()));
    let mut share = state.budget.share();
    let coding = Coding::accepted(request.headers());
    let mut answer = route(&state, door, request, peer.ip(), &mut share).await.unwrap_or_else(Answer::from);
    state.answers.count(answer.status.as_u16());
    #[cfg(feature = "otel")]
    if let (Some(traces), Some(traced)) = (&state.traces, traced) {
        let name = kind_of(&path);
        traces.end(
            traced,
            &Told { name, method: method.as_str(), path: &path, status: answer.status.as_u16(), peer: peer.ip(), request_id: &id },
        );
    }
    let level = match answer.status.as_u16() {
        ..400 => log::Level::Debug,
        400..500 => log::Level::Info,
        _ => log::Level::Warn,
    };
    log::log!(target: "shadernet::serve::access", level, request_id = id, method = method.as_str(), path = super::repository::printable(&path),
        status = answer.status.as_u16(), seconds = began.elapsed().as_secs_f64(), peer:%; "answered");
    if let Some(coding) = coding {
        compress(&state, &mut answer, coding).await;
    }
    answer.into_response(&id, state.is_leaving())
}

/// Compresses an answer, if that is worthwhile; a long one away from the threads that answer.
async fn compress(state: &State, answer: &mut Answer, coding: Coding) {
    let body = answer.body.clone();
    let small = if body.len() < LONG { coding.encode(&body) } else { state.away(move || coding.encode(&body)).await.flatten() };
    if let Some(small) = small {
        (answer.body, answer.coding) = (small, Some(coding));
    }
}

/// What a request is about, in a few words.
#[cfg(feature = "otel")]
fn kind_of(path: &str) -> &'static str {
    match path {
        "/metrics" => "metrics",
        "/healthz" | "/readyz" | "/ping" | "/v2/health/live" | "/v2/health/ready" => "health",
        _ if path.ends_with("/infer") || path.ends_with(":predict") || path.starts_with("/classify") => "infer",
        _ => "other",
    }
}

/// What is left of a request once it is known where it goes.
struct Call<'a> {
    state: &'a Arc<State>,
    peer: IpAddr,
    headers: HeaderMap,
    query: Option<String>,
    /// Until it is read.
    body: Option<Incoming>,
    share: &'a mut Share,
}

impl Call<'_> {
    /// Turns the request away if its client asks too often or the model has no room for it, before its body is read for anything but its end.
    async fn enter(&mut self, version: &Version) -> Result<(), Refusal> {
        let admitted = self.state.admit(&self.headers, self.peer).and_then(|()| version.room());
        let Err(refusal) = admitted else { return Ok(()) };
        let rest = self.body.take();
        let all = match rest {
            Some(rest) => body::discard(rest, self.state.limits.body_timeout).await,
            None => true,
        };
        Err(Refusal { unread: !all, ..refusal })
    }

    /// The body. `copies` is how many times its size what it becomes may take besides.
    async fn body(&mut self, copies: usize) -> Result<Bytes, Refusal> {
        let coding = Coding::of(&self.headers)?;
        let limits = &self.state.limits;
        let Some(body) = self.body.take() else { return Ok(Bytes::new()) };
        let mut bytes = body::read(body, limits.body, limits.body_timeout, self.share).await?;
        if let Some(coding) = coding {
            bytes = self.decompress(coding, bytes).await?;
        }
        self.share.grow(copies * bytes.len())?;
        Ok(bytes)
    }

    /// Decompresses a body, away from the threads that answer.
    async fn decompress(&mut self, coding: Coding, bytes: Bytes) -> Result<Bytes, Refusal> {
        let (limit, mut share) = (self.state.limits.body, self.state.budget.share());
        let decoded = self.state.away(move || Ok((coding.decode(&bytes, limit, &mut share)?, share))).await;
        let (bytes, share) = decoded.ok_or_else(|| Refusal::bad("the body cannot be decompressed"))??;
        self.share.absorb(share);
        Ok(bytes)
    }
}

async fn route(state: &Arc<State>, door: Door, request: Request<Incoming>, peer: IpAddr, share: &mut Share) -> Result<Answer, Refusal> {
    let (head, body) = request.into_parts();
    let path = head.uri.path();
    let mut segments: Vec<&str> = path.split('/').skip(1).take(10).collect();
    if segments.last() == Some(&"") && segments.len() > 1 {
        segments.pop(); // one slash at the end does not matter
    }
    let get = matches!(head.method, Method::GET | Method::HEAD);
    let post = head.method == Method::POST;
    // Whoever keeps the server running asks these without a token.
    match segments.as_slice() {
        [""] | ["index.html"] if get => return Ok(text("text/html; charset=utf-8", PAGE)),
        ["openapi.json"] if get => return Ok(text("application/json", OPENAPI)),
        ["v2", "health", "live"] | ["healthz"] | ["ping"] if get => return Ok(text("application/json", "{\"live\":true}")),
        ["v2", "health", "ready"] | ["readyz"] if get => return ready(state.is_ready()),
        _ if state.routes.is_health(path) && get => return ready(state.is_ready()),
        _ => {}
    }
    if !state.tokens.accept(&head.headers) {
        return Err(Refusal::new(StatusCode::UNAUTHORIZED, "no or no known token, expected a header Authorization: Bearer TOKEN"));
    }
    let mut call = Call { state, peer, headers: head.headers, query: head.uri.query().map(str::to_owned), body: Some(body), share };
    match segments.as_slice() {
        ["v2"] if get => Ok(oip::server_metadata().into()),
        ["v2", "models", "stats"] if get => Ok(oip::statistics(&state.repository.serving()).into()),
        ["v2", "models", "stats"] => wrong_method("GET, HEAD"),
        ["v2", "models", name, "versions", version, rest @ ..] => model(&mut call, name, Some(version), rest, get, post).await,
        ["v2", "models", name, rest @ ..] => model(&mut call, name, None, rest, get, post).await,
        ["v1", "models", rest @ ..] => v1_model(&mut call, rest, get, post).await,
        ["classify"] if post => {
            let version = state.repository.default()?;
            classify(&mut call, &version).await
        }
        ["classify", name] if post => {
            let version = state.repository.get(name, None)?;
            classify(&mut call, &version).await
        }
        ["metrics"] | ["v2", "repository", ..] if door != Door::Admin => {
            Err(Refusal::new(StatusCode::FORBIDDEN, "answered on the admin port only"))
        }
        ["metrics"] if get => Ok(text(metrics::CONTENT_TYPE, metrics::render(state))),
        ["v2", "repository", rest @ ..] if post => repository(&mut call, rest).await,
        _ if state.routes.is_predict(path) && post => {
            let version = state.repository.default()?;
            call.enter(&version).await?;
            let body = call.body(3).await?;
            v1::predict(state, &version, body).await
        }
        ["classify", ..] | ["v2", "repository", ..] => wrong_method("POST"),
        ["v2"] | ["metrics"] | [""] | ["openapi.json"] | ["healthz"] | ["readyz"] | ["ping"] | ["v2", "health", "live" | "ready"] => {
            wrong_method("GET, HEAD")
        }
        _ => Err(Refusal::not_found(format_args!("path {}", super::repository::printable(path)))),
    }
}

fn wrong_method(allow: &'static str) -> Result<Answer, Refusal> {
    let refusal = Refusal::new(StatusCode::METHOD_NOT_ALLOWED, format!("the method is not one of {allow}"));
    Ok(Answer { allow: Some(allow), ..refusal.into() })
}

fn ready(ready: bool) -> Result<Answer, Refusal> {
    if ready { Ok(text("application/json", "{\"ready\":true}")) } else { Err(Refusal::unavailable("not ready")) }
}

/// `/v2/models/M[/versions/V]…`
async fn model(call: &mut Call<'_>, name: &str, number: Option<&str>, rest: &[&str], get: bool, post: bool) -> Result<Answer, Refusal> {
    let state = call.state;
    let version = state.repository.get(name, number)?;
    match rest {
        [] if get => Ok(oip::metadata(state, &version).into()),
        ["ready"] if get => ready(version.is_ready() && !state.is_leaving()),
        ["config"] if get => Ok(oip::config(&version).into()),
        ["stats"] if get => Ok(oip::statistics(&[version]).into()),
        ["infer"] if post => {
            call.enter(&version).await?;
            // Text becomes numbers, which take up to twice its memory; binary tensors at most once.
            let copies = if call.headers.contains_key(oip::infer::HEADER_LENGTH) { 1 } else { 3 };
            let body = call.body(copies).await?;
            oip::infer(state, &version, &call.headers, body).await
        }
        [] | ["ready" | "config" | "stats"] => wrong_method("GET, HEAD"),
        ["infer"] => wrong_method("POST"),
        _ => Err(Refusal::not_found("this part of a model")),
    }
}

/// `/v1/models/M[/versions/V][:predict]`, `…/metadata`
async fn v1_model(call: &mut Call<'_>, rest: &[&str], get: bool, post: bool) -> Result<Answer, Refusal> {
    let state = call.state;
    let (name, number, last) = match rest {
        [name] => (*name, None, *name),
        [name, "metadata"] => (*name, None, "metadata"),
        [name, "versions", number] => (*name, Some(*number), *number),
        [name, "versions", number, "metadata"] => (*name, Some(*number), "metadata"),
        _ => return Err(Refusal::not_found("this part of a model")),
    };
    let (last, verb) = last.split_once(':').map_or((last, None), |(last, verb)| (last, Some(verb)));
    let (name, number) = match number {
        None => (name.split(':').next().unwrap_or_default(), None),
        Some(_) if rest.len() == 3 => (name, Some(last)),
        Some(number) => (name, Some(number)),
    };
    let version = state.repository.get(name, number)?;
    match verb {
        Some("predict") if post => {
            call.enter(&version).await?;
            let body = call.body(3).await?;
            v1::predict(state, &version, body).await
        }
        Some("predict") => wrong_method("POST"),
        Some(verb) => {
            Err(Refusal::new(StatusCode::NOT_IMPLEMENTED, format!("verb {}, expected predict", super::repository::printable(verb))))
        }
        None if !get => wrong_method("GET, HEAD"),
        None if last == "metadata" && rest.len() > 1 => Ok(v1::metadata(&version).into()),
        None => {
            let numbers = if number.is_some() { vec![version.number] } else { state.repository.numbers(name) };
            Ok(v1::status(&numbers, version.is_ready()).into())
        }
    }
}

async fn classify(call: &mut Call<'_>, version: &Version) -> Result<Answer, Refusal> {
    call.enter(version).await?;
    let body = call.body(0).await?;
    Ok(picture::classify(call.state, version, call.query.as_deref(), body).await?.into())
}

/// `/v2/repository/…`
async fn repository(call: &mut Call<'_>, rest: &[&str]) -> Result<Answer, Refusal> {
    let state = call.state.clone();
    let body = call.body(0).await?;
    match rest {
        ["index"] => Ok(oip::index(&state, ready_only(&body)?).into()),
        ["models", name, "load"] => state.load((*name).to_owned()).await.map(|()| text("application/json", "{}")),
        ["models", name, "unload"] => {
            if !state.repository.unload(name) {
                return Err(Refusal::not_found(format_args!("model {}", super::repository::printable(name))));
            }
            Ok(text("application/json", "{}"))
        }
        _ => Err(Refusal::not_found("this part of the repository")),
    }
}

/// Whether the body of a request for the index asks for models that are ready and no others.
pub(super) fn ready_only(body: &[u8]) -> Result<bool, Refusal> {
    #[derive(Deserialize)]
    struct Asked {
        #[serde(default)]
        ready: bool,
    }
    if body.is_empty() { Ok(false) } else { from_json(body).map(|asked: Asked| asked.ready) }
}
