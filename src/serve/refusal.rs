//! Why a request gets no answer, in words for whoever asked and as a status for the machine between.

use hyper::StatusCode;

/// A request that is not answered.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) message: String,
    /// Whether a body may be left that was not read: it cannot be told from a next request, so the connection ends.
    pub(super) unread: bool,
}

/// What an engine's request can fail of, as Triton's `nv_inference_request_failure` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// Not taken in: the queue is full, or there is no device.
    Rejected,
    /// Given up: the deadline passed, or the client left.
    Canceled,
    /// The device or the network failed.
    Backend,
    /// The request was wrong.
    Other,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        let unread = matches!(status, StatusCode::PAYLOAD_TOO_LARGE | StatusCode::REQUEST_TIMEOUT | StatusCode::UNAUTHORIZED);
        Self { status, message: message.into(), unread }
    }

    /// 400: the request is wrong.
    pub(super) fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// 400: a value is wrong, and which would have been right.
    pub(super) fn expected(what: &str, found: impl std::fmt::Display, expected: impl std::fmt::Display) -> Self {
        Self::bad(format!("{what}: found {found}, expected {expected}"))
    }

    /// 404.
    pub(super) fn not_found(what: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("not found: {what}"))
    }

    /// 413: more than the server takes in.
    pub(super) fn too_large(message: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, message)
    }

    /// 503: not now; the answer says when to try again.
    pub(super) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, message)
    }

    /// 504: no answer within the deadline.
    pub(super) fn late() -> Self {
        Self::new(StatusCode::GATEWAY_TIMEOUT, "no answer within the request's deadline")
    }

    /// 500: our fault. What the device said goes to the log, not to the client.
    pub(super) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// Seconds after which trying again is worthwhile, for those refusals that are about now and not about the request.
    pub(super) fn retry_after(&self) -> Option<u32> {
        matches!(self.status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS).then_some(1)
    }

    /// The reason under which the metrics count it.
    pub(super) fn reason(&self) -> Reason {
        match self.status {
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => Reason::Rejected,
            StatusCode::GATEWAY_TIMEOUT => Reason::Canceled,
            StatusCode::INTERNAL_SERVER_ERROR => Reason::Backend,
            _ => Reason::Other,
        }
    }
}
