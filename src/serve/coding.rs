//! Bodies that are compressed: gzip and deflate (zlib), as tritonclient and other HTTP clients send and take them.

use std::io::{Read, Write};

use bytes::Bytes;
use flate2::Compression;
use flate2::bufread::{MultiGzDecoder, ZlibDecoder};
use flate2::write::{GzEncoder, ZlibEncoder};
use hyper::StatusCode;
use hyper::header::{ACCEPT_ENCODING, CONTENT_ENCODING, HeaderMap};

use super::body::Share;
use super::refusal::Refusal;

/// How a body is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coding {
    Gzip,
    Deflate,
}

/// Smaller answers are not worth compressing.
const LEAST: usize = 1024;

/// Answers of so many bytes keep a thread for about a millisecond.
pub(super) const LONG: usize = 64 << 10;

impl Coding {
    /// Its name in a header.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Deflate => "deflate",
        }
    }

    fn named(name: &str) -> Option<Self> {
        [Self::Gzip, Self::Deflate].into_iter().find(|coding| name.trim().eq_ignore_ascii_case(coding.name()))
    }

    /// How the body of these headers is compressed, if it is.
    pub(super) fn of(headers: &HeaderMap) -> Result<Option<Self>, Refusal> {
        let Some(encoding) = headers.get(CONTENT_ENCODING) else { return Ok(None) };
        let name = encoding.to_str().unwrap_or_default();
        match Self::named(name) {
            None if name.trim().eq_ignore_ascii_case("identity") => Ok(None),
            None => {
                let message = format!("content-encoding: found {encoding:?}, expected gzip, deflate or none");
                Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message))
            }
            found => Ok(found),
        }
    }

    /// How an answer to these headers may be compressed: the first that is named and not ruled out.
    pub(super) fn accepted(headers: &HeaderMap) -> Option<Self> {
        let names = headers.get(ACCEPT_ENCODING)?.to_str().ok()?;
        names.split(',').find_map(|name| {
            let (name, quality) = name.split_once(';').map_or((name, None), |(name, rest)| (name, rest.trim().strip_prefix("q=")));
            let wanted = quality.is_none_or(|quality| quality.trim().parse::<f32>().is_ok_and(|quality| quality > 0.0));
            Self::named(name).filter(|_| wanted)
        })
    }

    /// What a body of at most `limit` bytes was before it was compressed. Memory is taken from `share` as it comes out.
    pub(super) fn decode(self, body: &[u8], limit: usize, share: &mut Share) -> Result<Bytes, Refusal> {
        match self {
            Self::Gzip => read(MultiGzDecoder::new(body), self, limit, share),
            Self::Deflate => read(ZlibDecoder::new(body), self, limit, share),
        }
    }

    /// Compresses an answer, if that is worthwhile.
    pub(super) fn encode(self, body: &[u8]) -> Option<Bytes> {
        if body.len() < LEAST {
            return None;
        }
        let small = match self {
            Self::Gzip => {
                let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
                encoder.write_all(body).and_then(|()| encoder.finish())
            }
            Self::Deflate => {
                let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
                encoder.write_all(body).and_then(|()| encoder.finish())
            }
        };
        small.ok().filter(|small| small.len() < body.len()).map(Bytes::from)
    }
}

fn read(mut decoder: impl Read, coding: Coding, limit: usize, share: &mut Share) -> Result<Bytes, Refusal> {
    let (mut all, mut block) = (Vec::new(), vec![0; 16 << 10]);
    loop {
        let len = decoder.read(&mut block).map_err(|error| Refusal::bad(format!("the body is not {}: {error}", coding.name())))?;
        if len == 0 {
            return Ok(all.into());
        }
        if all.len() + len > limit {
            return Err(Refusal::too_large(format!("the body is larger than {limit} bytes when decompressed")));
        }
        share.grow(len)?;
        all.extend_from_slice(&block[..len]);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::body::Budget;
    use super::*;

    fn text(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i * i % 251) as u8 & 0x3f).collect()
    }

    #[test]
    fn what_was_compressed_comes_back_and_no_more_than_the_limit_of_it() {
        let budget = Arc::new(Budget::new(1 << 20));
        for coding in [Coding::Gzip, Coding::Deflate] {
            let body = text(100_000);
            let small = coding.encode(&body).unwrap();
            assert_eq!(coding.decode(&small, 100_000, &mut budget.share()).unwrap(), body);
            assert_eq!(coding.decode(&small, 99_999, &mut budget.share()).unwrap_err().status, StatusCode::PAYLOAD_TOO_LARGE);
            assert_eq!(coding.decode(b"nothing of the kind", 100, &mut budget.share()).unwrap_err().status, StatusCode::BAD_REQUEST);
            assert_eq!(
                coding.decode(&small[..small.len() - 20], 100_000, &mut budget.share()).unwrap_err().status,
                StatusCode::BAD_REQUEST
            );
            // A megabyte and more of zeros, in a kilobyte, against a budget of one.
            let bomb = coding.encode(&vec![0; 2 << 20]).unwrap();
            assert!(bomb.len() < 20_000);
            assert_eq!(coding.decode(&bomb, 4 << 20, &mut budget.share()).unwrap_err().status, StatusCode::SERVICE_UNAVAILABLE);
        }
        let mut share = budget.share();
        share.grow(1 << 20).expect("all of the budget is there again");
    }

    #[test]
    fn answers_are_compressed_as_asked_and_if_worthwhile() {
        let accepted = |value: &str| Coding::accepted(&HeaderMap::from_iter([(ACCEPT_ENCODING, value.parse().unwrap())]));
        assert_eq!(accepted("gzip, deflate"), Some(Coding::Gzip));
        assert_eq!(accepted("br;q=1.0, deflate;q=0.5"), Some(Coding::Deflate));
        for none in ["identity", "br", "gzip;q=0", "gzip; q=0.0", "", "gzip;q=x"] {
            assert_eq!(accepted(none), None, "{none}");
        }
        assert_eq!(Coding::accepted(&HeaderMap::new()), None);
        assert!(Coding::Gzip.encode(&text(LEAST - 1)).is_none());
    }
}
