//! Files that a task leaves for others, in the one directory that is meant for them.

use std::fs::{File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::ensure;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::handler::TaskError;

/// Longer ones most file systems refuse.
const LONGEST_NAME: usize = 255;

/// A name for a file, and nothing but a name.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
pub(super) struct FileName(String);

impl TryFrom<String> for FileName {
    type Error = &'static str;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        if name.is_empty() || name.len() > LONGEST_NAME {
            Err("a file name has from 1 to 255 bytes")
        } else if name.starts_with('.') || name.contains(['/', '\\']) || name.contains(char::is_control) {
            Err("not a mere file name: a leading dot, `/`, `\\` and control characters are refused")
        } else {
            Ok(Self(name))
        }
    }
}

/// `ARTIFACTS_DIR`, when it is configured.
pub(super) struct Artifacts(Option<PathBuf>);

impl Artifacts {
    pub(super) fn new(dir: Option<PathBuf>) -> anyhow::Result<Self> {
        if let Some(dir) = &dir {
            ensure!(dir.is_dir(), "ARTIFACTS_DIR: {} is not a directory", dir.display());
        }
        Ok(Self(dir))
    }

    pub(super) fn configured(&self) -> Result<&Path, TaskError> {
        let missing =
            || TaskError::fail("NotConfigured", "ARTIFACTS_DIR is not set on this worker: no file is written");
        self.0.as_deref().ok_or_else(missing)
    }

    /// Writes the file whole or not at all, and returns its path relative to the directory.
    pub(super) fn write(&self, FileName(name): FileName, content: &[u8]) -> Result<String, TaskError> {
        let dir = self.configured()?;
        let failed = |error: io::Error| TaskError::retry("ArtifactNotWritten", format!("ARTIFACTS_DIR: {error}"));
        replace(dir, &name, content).map_err(failed)?;
        Ok(name)
    }
}

fn replace(dir: &Path, name: &str, content: &[u8]) -> io::Result<()> {
    // As readable as the umask lets it be; temporary files are their owner's alone otherwise.
    let mut file =
        tempfile::Builder::new().prefix(".errand-").permissions(Permissions::from_mode(0o666)).tempfile_in(dir)?;
    file.write_all(content)?;
    file.as_file().sync_all()?;
    file.persist(dir.join(name))?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> Result<FileName, &'static str> {
        FileName::try_from(name.to_owned())
    }

    #[test]
    fn a_file_name_leads_nowhere() {
        for good in ["thumb.png", "a..b", "Größe 1.png", "-"] {
            assert!(name(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", ".hidden", "a/b", "../a", "/a", "a\\b", "a\0b", "a\nb", &"a".repeat(256)] {
            assert!(name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_file_is_replaced_and_nothing_else_stays() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("secret"), "kept").unwrap();
        std::os::unix::fs::symlink(dir.path().join("secret"), dir.path().join("a.png")).unwrap();
        let artifacts = Artifacts::new(Some(dir.path().to_owned())).unwrap();
        for content in [b"one".as_slice(), b"two"] {
            assert_eq!(artifacts.write(name("a.png").unwrap(), content).unwrap(), "a.png");
            assert_eq!(std::fs::read(dir.path().join("a.png")).unwrap(), content);
        }
        assert_eq!(std::fs::read(dir.path().join("secret")).unwrap(), b"kept");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_directory_that_is_not_there_is_told() {
        let error = Artifacts::new(Some("/nowhere/at/all".into())).err().unwrap();
        assert!(error.to_string().contains("ARTIFACTS_DIR"), "{error}");
        let error = Artifacts::new(None).unwrap().write(name("a").unwrap(), b"").unwrap_err();
        assert_eq!(error.error().kind, "NotConfigured");
        assert!(error.error().message.contains("ARTIFACTS_DIR"));
    }

    #[test]
    fn a_file_that_cannot_be_written_may_be_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("taken")).unwrap();
        let artifacts = Artifacts::new(Some(dir.path().to_owned())).unwrap();
        let error = artifacts.write(name("taken").unwrap(), b"x").unwrap_err();
        assert!(matches!(&error, TaskError::Retry { error, .. } if error.kind == "ArtifactNotWritten"), "{error:?}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
