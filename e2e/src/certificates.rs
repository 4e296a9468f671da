//! Owns a certificate authority of a test's own, and what it issues.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::guard;

/// A private authority. Its files go with it.
#[derive(Debug)]
pub struct Authority {
    dir: TempDir,
}

/// A certificate and its key, as PEM files.
#[derive(Debug, Clone)]
pub struct Certificate {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its key, which a broker that runs as another user can read too.
    pub key: PathBuf,
}

impl Authority {
    /// Makes one.
    pub fn new() -> Result<Self> {
        let authority = Self { dir: guard::scratch_dir("authority-")? };
        authority.openssl("authority", &["-subj", "/CN=errand test authority"])?;
        Ok(authority)
    }

    /// The PEM file of its own certificate.
    #[must_use]
    pub fn certificate(&self) -> PathBuf {
        self.dir.path().join("authority.pem")
    }

    /// Issues a certificate: `names` is its subject alternative name, like `DNS:localhost`.
    pub fn issue(&self, subject: &str, names: &str) -> Result<Certificate> {
        let (subject_name, names) = (format!("/CN={subject}"), format!("subjectAltName={names}"));
        let signed = ["-CA", "authority.pem", "-CAkey", "authority.key", "-subj", &subject_name];
        let extensions = ["-addext", &names, "-addext", "basicConstraints=critical,CA:FALSE"];
        self.openssl(subject, &[&signed[..], &extensions].concat())?;
        let file = |extension: &str| self.dir.path().join(format!("{subject}.{extension}"));
        Ok(Certificate { certificate: file("pem"), key: file("key") })
    }

    fn openssl(&self, name: &str, args: &[&str]) -> Result<()> {
        let key = format!("{name}.key");
        let made = Command::new("/usr/bin/openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
            .args(args)
            .args(["-keyout", &key, "-out", &format!("{name}.pem")])
            .current_dir(self.dir.path())
            .output()
            .context("openssl")?;
        ensure!(made.status.success(), "openssl: {}", String::from_utf8_lossy(&made.stderr));
        fs::set_permissions(self.dir.path().join(key), PermissionsExt::from_mode(0o644))?;
        Ok(())
    }
}
