//! The Open Inference Protocol over gRPC, and gRPC's own health service.
//!
//! Managing the repository is left to the admin port: what is not here answers UNIMPLEMENTED.

mod convert;
mod messages;

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::{Request, Response, StatusCode};
use tonic::server::{Grpc, UnaryService};
use tonic::{Code, Status};
use tonic_prost::ProstCodec;

use self::messages::{Empty, Flag, Health, InferRequest, ModelName};
use super::State;
use super::body::Share;
use super::refusal::Refusal;
#[cfg(feature = "otel")]
use super::traces::Told;
use super::version::Version;

/// Answers a call.
pub(super) async fn answer(state: Arc<State>, request: Request<Incoming>, peer: SocketAddr) -> Response<tonic::body::Body> {
    let began = Instant::now();
    let id = state.request_id(request.headers());
    let path = request.uri().path().to_owned();
    #[cfg(feature = "otel")]
    let traced = state.traces.as_ref().map(|traces| traces.begin(request.headers()));
    let bound = state.limits.body_timeout + state.limits.timeout;
    let answered = tokio::time::timeout(bound, route(&state, request, peer.ip())).await;
    let response = answered.unwrap_or_else(|_| Status::deadline_exceeded("the request does not arrive").into_http());
    let code = response.headers().get("grpc-status").map_or("0", |code| code.to_str().unwrap_or("2"));
    #[cfg(feature = "otel")]
    if let (Some(traces), Some(traced)) = (&state.traces, traced) {
        let name = if path.ends_with("/ModelInfer") { "infer" } else { "other" };
        // As HTTP would have it, for which 500 and more is the server's fault.
        let status = match code {
            "0" => 200,
            "2" | "4" | "13" | "14" => 500,
            _ => 400,
        };
        traces.end(traced, &Told { name, method: "POST", path: &path, status, peer: peer.ip(), request_id: &id });
    }
    log::debug!(target: "shadernet::serve::access", request_id = id, path = super::repository::printable(&path), code = code,
        seconds = began.elapsed().as_secs_f64(), peer:%; "answered");
    response
}

async fn route(state: &Arc<State>, request: Request<Incoming>, peer: IpAddr) -> Response<tonic::body::Body> {
    let path = request.uri().path().to_owned();
    let mut segments = path.split('/').skip(1);
    let (service, method) = (segments.next().unwrap_or_default(), segments.next().unwrap_or_default());
    let open = matches!((service, method), ("grpc.health.v1.Health", _) | (_, "ServerLive" | "ServerReady"));
    if !open && !state.tokens.accept(request.headers()) {
        return Status::unauthenticated("no or no known token, expected metadata authorization: Bearer TOKEN").into_http();
    }
    if method == "ModelInfer"
        && let Err(refusal) = state.admit(request.headers(), peer)
    {
        return Status::from(refusal).into_http();
    }
    match (service, method) {
        ("grpc.health.v1.Health", "Check") => {
            unary(state, request, |state, _: Empty| async move { Ok(Health { status: if state.is_ready() { 1 } else { 2 } }) }).await
        }
        ("inference.GRPCInferenceService", "ServerLive") => unary(state, request, |_, _: Empty| async { Ok(Flag { yes: true }) }).await,
        ("inference.GRPCInferenceService", "ServerReady") => {
            unary(state, request, |state, _: Empty| async move { Ok(Flag { yes: state.is_ready() }) }).await
        }
        ("inference.GRPCInferenceService", "ModelReady") => {
            unary(state, request, |state, name: ModelName| async move {
                let ready = find(&state, &name)?.is_ready() && !state.is_leaving();
                Ok(Flag { yes: ready })
            })
            .await
        }
        ("inference.GRPCInferenceService", "ServerMetadata") => {
            unary(state, request, |_, _: Empty| async { Ok(convert::server_metadata()) }).await
        }
        ("inference.GRPCInferenceService", "ModelMetadata") => {
            unary(state, request, |state, name: ModelName| async move { Ok(convert::metadata(&state, &*find(&state, &name)?)) }).await
        }
        ("inference.GRPCInferenceService", "ModelConfig") => {
            unary(state, request, |state, name: ModelName| async move { Ok(convert::config(&*find(&state, &name)?)) }).await
        }
        ("inference.GRPCInferenceService", "ModelStatistics") => {
            unary(state, request, |state, name: ModelName| async move {
                let versions = if name.name.is_empty() { state.repository.serving() } else { vec![find(&state, &name)?] };
                Ok(convert::statistics(&versions))
            })
            .await
        }
        ("inference.GRPCInferenceService", "ModelInfer") => {
            unary(state, request, |state, request: InferRequest| async move {
                let name = ModelName { name: request.model_name.clone(), version: request.model_version.clone() };
                convert::infer(&state, &*find(&state, &name)?, request).await
            })
            .await
        }
        _ => Status::unimplemented("this call is not answered here").into_http(),
    }
}

/// Decodes a message as those of inference and of the other calls are.
pub(super) fn decode_whole(message: &[u8], version: &Version) -> Result<(), Refusal> {
    use prost::Message;
    let wrong = |error: prost::DecodeError| Refusal::bad(error.to_string());
    ModelName::decode(message).map_err(wrong)?;
    let mut request = InferRequest::decode(Bytes::copy_from_slice(message)).map_err(wrong)?;
    convert::decode(&mut request, version).map(drop)
}

fn find(state: &State, name: &ModelName) -> Result<Arc<Version>, Refusal> {
    state.repository.get(&name.name, Some(&name.version))
}

/// One message in, one message out.
async fn unary<Q, A, R>(state: &Arc<State>, request: Request<Incoming>, work: fn(Arc<State>, Q) -> R) -> Response<tonic::body::Body>
where
    Q: prost::Message + Default + Send + 'static,
    A: prost::Message + Send + 'static,
    R: Future<Output = Result<A, Refusal>> + Send + 'static,
{
    struct Call<Q, R>(Arc<State>, fn(Arc<State>, Q) -> R);
    impl<Q, A, R> UnaryService<Q> for Call<Q, R>
    where
        R: Future<Output = Result<A, Refusal>> + Send + 'static,
    {
        type Response = A;
        type Future = Pin<Box<dyn Future<Output = Result<tonic::Response<A>, Status>> + Send>>;

        fn call(&mut self, request: tonic::Request<Q>) -> Self::Future {
            let work = (self.1)(self.0.clone(), request.into_inner());
            Box::pin(async { work.await.map(tonic::Response::new).map_err(Status::from) })
        }
    }
    let mut grpc = Grpc::new(ProstCodec::<A, Q>::new()).max_decoding_message_size(state.limits.body);
    let request = request.map(|inner| Metered { inner, share: state.budget.share() });
    grpc.unary(Call(state.clone(), work), request).await
}

/// A body whose bytes are taken from the budget as they arrive, and given back when all of it has been read.
struct Metered {
    inner: Incoming,
    share: Share,
}

impl Body for Metered {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(context));
        let frame = frame.map(|frame| {
            let frame = frame.map_err(|error| Status::cancelled(format!("the message does not arrive: {error}")))?;
            // What a message becomes takes up to its memory twice besides.
            self.share.grow(3 * frame.data_ref().map_or(0, Bytes::len)).map_err(Status::from)?;
            Ok(frame)
        });
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let code = match refusal.status {
            StatusCode::BAD_REQUEST => Code::InvalidArgument,
            StatusCode::UNAUTHORIZED => Code::Unauthenticated,
            StatusCode::NOT_FOUND => Code::NotFound,
            StatusCode::PAYLOAD_TOO_LARGE | StatusCode::TOO_MANY_REQUESTS => Code::ResourceExhausted,
            StatusCode::SERVICE_UNAVAILABLE => Code::Unavailable,
            StatusCode::GATEWAY_TIMEOUT | StatusCode::REQUEST_TIMEOUT => Code::DeadlineExceeded,
            StatusCode::NOT_IMPLEMENTED => Code::Unimplemented,
            _ => Code::Internal,
        };
        Self::new(code, refusal.message)
    }
}
