//! A certificate for this machine's own name.

use std::{fmt, sync::Arc};

use anyhow::Result;
use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};
use tokio_rustls::TlsAcceptor;

/// A certificate for `localhost` that nobody has signed but itself.
pub struct Certificate(rcgen::CertifiedKey<rcgen::KeyPair>);

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Certificate")
    }
}

impl Certificate {
    /// A fresh one.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn new() -> Result<Self> {
        Ok(Self(rcgen::generate_simple_self_signed(vec!["localhost".to_owned()])?))
    }

    /// What clients have to believe in.
    pub fn pem(&self) -> String {
        self.0.cert.pem()
    }

    pub(crate) fn acceptor(&self) -> Result<TlsAcceptor> {
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.0.signing_key.serialize_der()));
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![self.0.cert.der().clone()], key)?;
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}
