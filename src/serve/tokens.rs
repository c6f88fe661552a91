//! Who may ask: bearer tokens from a file, and TLS from two.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use hyper::HeaderMap;
use hyper::header::AUTHORIZATION;
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::error::{Error, Result};

/// The tokens that are accepted; without a file, everyone is.
#[derive(Debug)]
pub(super) struct Tokens {
    path: Option<PathBuf>,
    /// Digests of the tokens: all of one length, and of no use to whoever reads memory.
    digests: RwLock<Vec<[u8; 32]>>,
}

/// The largest file of tokens.
const FILE_BYTES: u64 = 1 << 20;

impl Tokens {
    /// Reads the file, if there is one.
    pub(super) fn open(path: Option<PathBuf>) -> Result<Self> {
        let tokens = Self { path, digests: RwLock::default() };
        tokens.reload()?;
        Ok(tokens)
    }

    /// Reads the file again. Tokens stay as they were if that fails.
    ///
    /// # Errors
    /// A file that cannot be read, or has no token in it: that would lock everyone out.
    pub(super) fn reload(&self) -> Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        let size = std::fs::metadata(path).map_err(Error::io(path, "cannot open"))?.len();
        if size > FILE_BYTES {
            return Err(Error::invalid(
                format!("the tokens in {}", path.display()),
                format!("{size} bytes"),
                format!("at most {FILE_BYTES}"),
            ));
        }
        let text = std::fs::read_to_string(path).map_err(Error::io(path, "cannot read"))?;
        let digests = digests(&text);
        if digests.is_empty() {
            return Err(Error::invalid(format!("the tokens in {}", path.display()), "none", "one in each line"));
        }
        *self.digests.write().unwrap_or_else(PoisonError::into_inner) = digests;
        Ok(())
    }

    /// Whether these headers have a token that is accepted. Takes the same time whichever token it is, and wherever it differs.
    pub(super) fn accept(&self, headers: &HeaderMap) -> bool {
        if self.path.is_none() {
            return true;
        }
        let Some(digest) = self.given(headers) else { return false };
        let digests = self.digests.read().unwrap_or_else(PoisonError::into_inner);
        digests.iter().fold(Choice::from(0), |found, one| found | one.as_slice().ct_eq(&digest)).into()
    }

    /// The digest of the token that these headers have, accepted or not; nothing where no token is asked for.
    pub(super) fn given(&self, headers: &HeaderMap) -> Option<[u8; 32]> {
        self.path.as_ref()?;
        let (scheme, token) = headers.get(AUTHORIZATION)?.as_bytes().split_at_checked(7)?;
        scheme.eq_ignore_ascii_case(b"bearer ").then(|| Sha256::digest(token.trim_ascii()).into())
    }
}

/// Digests of the tokens in the text of a file.
fn digests(text: &str) -> Vec<[u8; 32]> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(|line| Sha256::digest(line.as_bytes()).into()).collect()
}

/// TLS with the certificates and the key in these PEM files, for these protocols.
pub(super) fn acceptor(certificates: &Path, key: &Path, protocols: &[&[u8]]) -> Result<TlsAcceptor> {
    let wrong = |path: &Path, what: &str, found: &dyn std::fmt::Display| {
        Error::invalid(format!("{what} in {}", path.display()), found, "PEM, as openssl writes it")
    };
    let chain = CertificateDer::pem_file_iter(certificates).map_err(|e| wrong(certificates, "the certificates", &e))?;
    let chain = chain.collect::<Result<Vec<_>, _>>().map_err(|e| wrong(certificates, "the certificates", &e))?;
    if chain.is_empty() {
        return Err(wrong(certificates, "the certificates", &"none"));
    }
    let private = PrivateKeyDer::from_pem_file(key).map_err(|e| wrong(key, "the private key", &e))?;
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider())).with_safe_default_protocol_versions();
    let config = config.map_err(|e| wrong(certificates, "TLS", &e))?.with_no_client_auth();
    let mut config = config.with_single_cert(chain, private).map_err(|e| wrong(certificates, "the certificates", &e))?;
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(TlsAcceptor::from(Arc::new(config)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_accepted_whole_and_as_bearers_only() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "# ours\n secret-1 \n\nsecret-2\n").unwrap();
        let tokens = Tokens::open(Some(file.path().to_owned())).unwrap();
        let accepts = |value: &str| tokens.accept(&HeaderMap::from_iter([(AUTHORIZATION, value.parse().unwrap())]));
        assert!(accepts("Bearer secret-1") && accepts("bearer secret-2"));
        for wrong in ["", "Bearer", "Bearer ", "Bearer secret-", "Bearer secret-11", "Basic secret-1", "secret-1", "Bearer # ours"] {
            assert!(!accepts(wrong), "{wrong:?}");
        }
        assert!(!tokens.accept(&HeaderMap::new()));

        std::fs::write(file.path(), "\n# none\n").unwrap();
        assert!(tokens.reload().is_err());
        assert!(accepts("Bearer secret-1"), "a bad file must not take effect");
        std::fs::write(file.path(), "secret-3").unwrap();
        tokens.reload().unwrap();
        assert!(accepts("Bearer secret-3") && !accepts("Bearer secret-1"));
    }

    #[test]
    fn without_a_file_everyone_is_accepted() {
        assert!(Tokens::open(None).unwrap().accept(&HeaderMap::new()));
    }
}
