//! TLS to the broker: which authorities it is trusted by, and the certificate that this client shows.
//!
//! Always verified: there is no setting that leaves it out.

use std::io;
use std::path::{Path, PathBuf};

use lapin::tcp::{RustlsConnector, RustlsConnectorConfig};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{AlertDescription, CertificateError};

use super::fault::Fault;

/// What makes a TCP stream a verified TLS stream.
#[derive(Clone)]
pub struct Tls(RustlsConnector);

/// A client's certificate and its key, as PEM files.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The certificate, and those between it and its authority.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// Files from which no TLS client can be made. Named by the setting.
#[derive(Debug, thiserror::Error)]
pub enum BadTls {
    /// A file that cannot be read as PEM.
    #[error("{setting}: cannot read {path}: {source}")]
    File {
        /// The setting.
        setting: &'static str,
        /// Its value.
        path: PathBuf,
        /// Why.
        source: rustls::pki_types::pem::Error,
    },
    /// A file without a certificate.
    #[error("{setting}: no certificate is in {path}")]
    Empty {
        /// The setting.
        setting: &'static str,
        /// Its value.
        path: PathBuf,
    },
    /// What was read does not make a client.
    #[error("AMQP_CA_FILE, AMQP_CERT_FILE, AMQP_KEY_FILE: {0}")]
    Unusable(#[from] io::Error),
}

impl Tls {
    /// Trusts the authorities in that PEM file and no others; without one Mozilla's, which are compiled in.
    ///
    /// # Errors
    /// A file that is none, or that holds nothing usable.
    pub fn new(authorities: Option<&Path>, identity: Option<&Identity>) -> Result<Self, BadTls> {
        let config = match authorities {
            Some(path) => {
                RustlsConnectorConfig::default().with_parsable_certificates(certificates("AMQP_CA_FILE", path)?)
            }
            None => RustlsConnectorConfig::new_with_webpki_root_certs(),
        };
        let connector = match identity {
            Some(Identity { certificate, key }) => {
                let chain = certificates("AMQP_CERT_FILE", certificate)?;
                let key = PrivateKeyDer::from_pem_file(key).map_err(unreadable("AMQP_KEY_FILE", key))?;
                config.connector_with_single_cert(chain, key)?
            }
            None => config.connector_with_no_client_auth()?,
        };
        Ok(Self(connector))
    }

    /// What lapin and the probe connect with.
    pub(super) fn connector(&self) -> &RustlsConnector {
        &self.0
    }
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tls")
    }
}

fn certificates(setting: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, BadTls> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let certificates = read.map_err(unreadable(setting, path))?;
    if certificates.is_empty() {
        return Err(BadTls::Empty { setting, path: path.to_owned() });
    }
    Ok(certificates)
}

fn unreadable(setting: &'static str, path: &Path) -> impl FnOnce(rustls::pki_types::pem::Error) -> BadTls {
    let path = path.to_owned();
    move |source| BadTls::File { setting, path, source }
}

/// What a failed handshake says to whoever set the broker or this client up. A client's certificate is refused after the
/// client's part of the handshake, by an alert in place of the broker's first word.
pub(super) fn explain(address: &str, source: io::Error) -> Fault {
    use AlertDescription as Alert;
    let Some(error) = source.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>()) else {
        return Fault::Unreachable { address: address.to_owned(), source };
    };
    let hint = match error {
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => "AMQP_URL must name the host that the certificate is for",
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            "AMQP_CA_FILE must hold the authority that issued it"
        }
        rustls::Error::InvalidCertificate(_) => "the broker needs a certificate that is valid now and for a server",
        rustls::Error::InvalidMessage(_) => "this is no TLS port; AMQP_URL would be amqp:// there",
        rustls::Error::AlertReceived(
            Alert::UnknownCA
            | Alert::BadCertificate
            | Alert::CertificateRequired
            | Alert::CertificateExpired
            | Alert::CertificateRevoked
            | Alert::CertificateUnknown
            | Alert::UnsupportedCertificate
            | Alert::AccessDenied
            | Alert::HandshakeFailure,
        ) => "AMQP_CERT_FILE and AMQP_KEY_FILE must be a certificate that the broker accepts",
        _ => "the broker and this client agree on no TLS",
    };
    Fault::Tls { address: address.to_owned(), error: error.clone(), hint }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_no_certificate_is_named_with_its_setting() {
        let dir = std::env::temp_dir();
        let error = Tls::new(Some(&dir.join("nowhere.pem")), None).unwrap_err().to_string();
        assert!(error.starts_with("AMQP_CA_FILE: ") && error.contains("nowhere.pem"), "{error}");
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
        let error = Tls::new(Some(&manifest), None).unwrap_err().to_string();
        assert!(error.starts_with("AMQP_CA_FILE: no certificate"), "{error}");
    }
}
