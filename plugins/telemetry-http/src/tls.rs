//! rustls: certificates are checked, against this machine's authorities or `ca_file`.

use std::{path::Path, sync::Arc};

use host_core::{ErrorKind, PluginError};
use rustls::{ClientConfig, RootCertStore, crypto::ring};
use rustls_pki_types::{CertificateDer, pem::PemObject};

/// Reads certificates, so it blocks. Without `encrypted` nothing is read: the set-up is there, and never used.
pub(crate) fn config(ca_file: Option<&Path>, encrypted: bool) -> Result<ClientConfig, PluginError> {
    let mut roots = RootCertStore::empty();
    if encrypted {
        let (found, place) = match ca_file {
            Some(file) => (certificates(file)?, file.display().to_string()),
            None => (rustls_native_certs::load_native_certs().certs, "this machine's store".to_owned()),
        };
        roots.add_parsable_certificates(found);
        if roots.is_empty() {
            let message = format!("no certificate authority in {place}; name a file with ca_file");
            return Err(PluginError::new(ErrorKind::Invalid, message));
        }
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| PluginError::new(ErrorKind::Internal, "TLS cannot be set up").with_source(error))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, PluginError> {
    let all =
        CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<std::result::Result<Vec<_>, _>>);
    all.map_err(|error| {
        let message = format!("ca_file, {}, cannot be read as PEM", file.display());
        PluginError::new(ErrorKind::Invalid, message).with_source(error)
    })
}
