//! rustls, as strict as the URL's `sslmode` says.

use std::{path::Path, sync::Arc};

use host_core::{ErrorKind, PluginError, pubsub::Result};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::target::{Tls, Verify};

/// The driver's TLS. Reads the certificates, so it blocks.
pub(crate) fn connector(tls: &Tls, encrypted: bool) -> Result<MakeRustlsConnect> {
    let provider = Arc::new(ring::default_provider());
    let verifier = if encrypted { verifier(tls, &provider)? } else { Checked::nothing(&provider) };
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable("TLS cannot be set up", error))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let config = match (&tls.certificate, &tls.key) {
        (Some(certificate), Some(key)) => {
            let key = PrivateKeyDer::from_pem_file(key).map_err(|error| unreadable("sslkey", key, error))?;
            config
                .with_client_auth_cert(certificates("sslcert", certificate)?, key)
                .map_err(|error| unusable("the client certificate (sslcert, sslkey) cannot be used", error))?
        }
        _ => config.with_no_client_auth(),
    };
    Ok(MakeRustlsConnect::new(config))
}

fn verifier(tls: &Tls, provider: &Arc<CryptoProvider>) -> Result<Checked> {
    if tls.verify == Verify::Nothing {
        return Ok(Checked::nothing(provider));
    }
    let mut roots = RootCertStore::empty();
    let (found, place) = match &tls.authorities {
        Some(file) => (certificates("sslrootcert", file)?, format!("{}", file.display())),
        None => (rustls_native_certs::load_native_certs().certs, "this machine's store".to_owned()),
    };
    roots.add_parsable_certificates(found);
    let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider)).build();
    let inner = inner.map_err(|error| {
        let what = format!(
            "no certificate authority in {place}; name a file with sslrootcert=, or choose another sslmode"
        );
        unusable(&what, error)
    })?;
    Ok(Checked { verify: tls.verify, inner: Some(inner), provider: Arc::clone(provider) })
}

fn certificates(parameter: &str, file: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let all =
        CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<std::result::Result<Vec<_>, _>>);
    let all = all.map_err(|error| unreadable(parameter, file, error))?;
    if all.is_empty() {
        return Err(unreadable(parameter, file, "it holds no certificate"));
    }
    Ok(all)
}

fn unreadable(
    parameter: &str,
    file: &Path,
    error: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> PluginError {
    unusable(&format!("{parameter}={} cannot be read as PEM", file.display()), error)
}

fn unusable(what: &str, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> PluginError {
    PluginError::new(ErrorKind::Invalid, what).with_source(error)
}

/// Checks as much as it is told to. Whatever is not checked, the server holds the key of the certificate it shows.
#[derive(Debug)]
struct Checked {
    verify: Verify,
    /// `None` only with [`Verify::Nothing`].
    inner: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl Checked {
    fn nothing(provider: &Arc<CryptoProvider>) -> Self {
        Self { verify: Verify::Nothing, inner: None, provider: Arc::clone(provider) }
    }
}

impl ServerCertVerifier for Checked {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, Error> {
        let Some(inner) = &self.inner else { return Ok(ServerCertVerified::assertion()) };
        let checked = inner.verify_server_cert(certificate, intermediates, name, ocsp, now);
        match checked {
            // The name comes last: everything else holds.
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if self.verify == Verify::Authority => Ok(ServerCertVerified::assertion()),
            checked => checked,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
