//! The one directory whose files tasks may read, with no way out of it.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Component, Path, PathBuf};

use anyhow::ensure;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;

use crate::handler::TaskError;

/// `FILES_DIR`, when it is configured.
#[derive(Clone)]
pub(super) struct Folder(Option<PathBuf>);

impl Folder {
    pub(super) fn new(dir: Option<PathBuf>) -> anyhow::Result<Self> {
        if let Some(dir) = &dir {
            ensure!(dir.is_dir(), "FILES_DIR: {} is not a directory", dir.display());
        }
        Ok(Self(dir))
    }

    /// Opens a regular file, and says how long it is. Blocks as long as the file system does.
    pub(super) fn open(&self, source: &str) -> Result<(File, u64), TaskError> {
        let missing = || TaskError::fail("NotConfigured", "FILES_DIR is not set on this worker: no file is read");
        let folder = self.0.as_deref().ok_or_else(missing)?;
        let downwards = |part| matches!(part, Component::Normal(_) | Component::CurDir);
        if !Path::new(source).components().all(downwards) {
            return Err(refused("neither an absolute path nor `..`"));
        }
        let folder = folder.canonicalize().map_err(|error| read_failed("FILES_DIR", &error))?;
        let file = folder.join(source).canonicalize().map_err(|error| unreadable(&error))?;
        let inside = file.strip_prefix(&folder).map_err(|_| refused("no symbolic link out of FILES_DIR"))?;
        // A device or a socket may act on being opened.
        check(&fs::symlink_metadata(&file).map_err(|error| unreadable(&error))?)?;
        let file = descend(&folder, inside).map_err(|error| unreadable(&error))?;
        let opened = file.metadata().map_err(|error| unreadable(&error))?;
        check(&opened)?;
        Ok((file, opened.len()))
    }
}

/// Opens a path without links step by step: what became a link since it was resolved is not followed. Nor does it
/// wait for the writer of what became a FIFO.
fn descend(folder: &Path, inside: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    let mut names: Vec<OsString> = inside.iter().map(ToOwned::to_owned).collect();
    let last = names.pop().ok_or(Errno::ISDIR)?;
    let mut dir = openat(CWD, folder, flags | OFlags::DIRECTORY, Mode::empty())?;
    for name in names {
        dir = openat(&dir, name, flags | OFlags::DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?;
    }
    Ok(openat(&dir, last, flags | OFlags::NOFOLLOW, Mode::empty())?.into())
}

fn check(metadata: &fs::Metadata) -> Result<(), TaskError> {
    if metadata.is_file() { Ok(()) } else { Err(refused("nothing but regular files")) }
}

fn refused(what: &str) -> TaskError {
    TaskError::fail("PathRefused", format!("a source is a relative path below FILES_DIR: {what}"))
}

fn unreadable(error: &io::Error) -> TaskError {
    match Errno::from_io_error(error) {
        Some(Errno::NOENT | Errno::NOTDIR) => TaskError::fail("FileNotFound", "FILES_DIR has no such file"),
        Some(Errno::ACCESS | Errno::PERM) => TaskError::fail("PathRefused", "the worker may not read this file"),
        Some(Errno::LOOP) => refused("no symbolic link that leads nowhere"),
        // A NUL in the path never reaches the system.
        Some(Errno::NAMETOOLONG | Errno::ISDIR) | None => refused("the path of a file"),
        _ => read_failed("the file", error),
    }
}

/// What may be over the next time.
pub(super) fn read_failed(what: &str, error: &io::Error) -> TaskError {
    TaskError::retry("ReadFailed", format!("{what} cannot be read: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    fn kind(folder: &Folder, source: &str) -> String {
        folder.open(source).unwrap_err().error().kind.clone()
    }

    fn folder(dir: &Path) -> Folder {
        Folder::new(Some(dir.to_owned())).unwrap()
    }

    #[test]
    fn files_below_are_opened_and_links_within_followed() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        fs::write(dir.path().join("a/b/file.csv"), "x,y").unwrap();
        symlink("a/b", dir.path().join("current")).unwrap();
        symlink(dir.path().join("a/b/file.csv"), dir.path().join("file.csv")).unwrap();
        // The folder itself may be a link.
        symlink(dir.path(), dir.path().join("folder")).unwrap();
        let linked = folder(&dir.path().join("folder"));
        for source in ["a/b/file.csv", "./a//b/./file.csv", "current/file.csv", "file.csv"] {
            assert_eq!(folder(dir.path()).open(source).unwrap().1, 3, "{source}");
            assert_eq!(linked.open(source).unwrap().1, 3, "{source}");
        }
    }

    #[test]
    fn there_is_no_way_out() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("secret"), "x").unwrap();
        let dir = tempfile::tempdir_in(outside.path()).unwrap();
        fs::create_dir(dir.path().join("a")).unwrap();
        symlink("../secret", dir.path().join("relative")).unwrap();
        symlink(outside.path().join("secret"), dir.path().join("absolute")).unwrap();
        symlink(outside.path(), dir.path().join("directory")).unwrap();
        symlink("loop", dir.path().join("loop")).unwrap();
        let folder = folder(dir.path());
        let secret = outside.path().join("secret").display().to_string();
        let sources = ["../secret", "a/../../secret", "a/..", &secret, "relative", "absolute", "directory/secret"];
        for source in sources.into_iter().chain(["loop", "/", "..", "a\0b", &"a".repeat(300)]) {
            assert_eq!(kind(&folder, source), "PathRefused", "{source}");
        }
    }

    #[test]
    fn what_became_a_link_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("secret"), "x").unwrap();
        symlink("secret", dir.path().join("file")).unwrap();
        symlink(".", dir.path().join("a")).unwrap();
        for inside in ["file", "a/secret"] {
            assert!(descend(dir.path(), Path::new(inside)).is_err(), "{inside}");
        }
    }

    #[test]
    fn only_regular_files_are_opened_and_the_rest_does_not_hang() {
        let dir = tempfile::tempdir().unwrap();
        let mode = Mode::RUSR | Mode::WUSR;
        rustix::fs::mknodat(CWD, dir.path().join("fifo"), rustix::fs::FileType::Fifo, mode, 0).unwrap();
        let _socket = UnixListener::bind(dir.path().join("socket")).unwrap();
        fs::create_dir(dir.path().join("directory")).unwrap();
        let folder = folder(dir.path());
        for source in ["fifo", "socket", "directory", ".", ""] {
            assert_eq!(kind(&folder, source), "PathRefused", "{source}");
        }
        assert!(!descend(dir.path(), Path::new("fifo")).unwrap().metadata().unwrap().is_file());
    }

    #[test]
    fn what_is_missing_is_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "x").unwrap();
        for source in ["nothing", "a/nothing", "file/below", "nothing.csv"] {
            assert_eq!(kind(&folder(dir.path()), source), "FileNotFound", "{source}");
        }
        assert_eq!(kind(&Folder(None), "file"), "NotConfigured");
        assert!(Folder::new(Some(dir.path().join("file"))).err().unwrap().to_string().contains("FILES_DIR"));
    }
}
