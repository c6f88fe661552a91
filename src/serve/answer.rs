//! Answers as HTTP has them.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{
    CACHE_CONTROL, CONNECTION, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, RETRY_AFTER, VARY, WWW_AUTHENTICATE,
};
use hyper::{Response, StatusCode};
use serde_json::{Value, json};

use super::coding::Coding;
use super::oip::infer::HEADER_LENGTH;
use super::refusal::Refusal;

/// An answer, before it is HTTP.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) content_type: &'static str,
    pub(super) body: Bytes,
    /// Where JSON ends and tensors begin.
    pub(super) header_length: Option<usize>,
    /// Whether trying again helps, and when: seconds.
    pub(super) retry_after: Option<u32>,
    /// Methods that would have been right.
    pub(super) allow: Option<&'static str>,
    /// Whether the connection ends after it.
    pub(super) close: bool,
    /// How the body is compressed.
    pub(super) coding: Option<Coding>,
}

/// An answer of JSON that is text already.
pub(super) fn json_answer(body: impl Into<Bytes>) -> Answer {
    let content_type = "application/json";
    Answer {
        status: StatusCode::OK,
        content_type,
        body: body.into(),
        header_length: None,
        retry_after: None,
        allow: None,
        close: false,
        coding: None,
    }
}

/// An answer of this type.
pub(super) fn text(content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    Answer { content_type, ..json_answer(body) }
}

impl From<Value> for Answer {
    fn from(value: Value) -> Self {
        json_answer(value.to_string())
    }
}

impl From<Refusal> for Answer {
    fn from(refusal: Refusal) -> Self {
        let retry_after = refusal.retry_after();
        Self { status: refusal.status, retry_after, close: refusal.unread, ..json!({ "error": refusal.message }).into() }
    }
}

impl Answer {
    /// As HTTP, under the request's id. A server that is leaving asks its clients to go elsewhere.
    pub(super) fn into_response(self, id: &str, leaving: bool) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(self.body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
        if let Ok(id) = HeaderValue::from_str(id) {
            headers.insert("x-request-id", id);
        }
        if let Some(length) = self.header_length {
            headers.insert(HEADER_LENGTH, HeaderValue::from(length));
        }
        if let Some(coding) = self.coding {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static(coding.name()));
            headers.insert(VARY, HeaderValue::from_static("accept-encoding"));
        }
        if let Some(seconds) = self.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(methods) = self.allow {
            headers.insert(hyper::header::ALLOW, HeaderValue::from_static(methods));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if self.content_type.starts_with("text/html") {
            let policy = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src blob: data:; connect-src 'self'; \
                frame-ancestors 'none'; base-uri 'none'; form-action 'none'";
            headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
        }
        if leaving || self.close {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}
