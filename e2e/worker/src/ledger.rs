//! Owns the ledger: a file outside all processes that says which handler ran when. It must know nothing of the tasks.
//!
//! A line is one write to a file that is open for appending, so lines of many processes never mix and one that was
//! written outlives the process: `event n task_id attempt pid milliseconds`.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use consumer::context::Context;

/// The file, open for appending.
#[derive(Debug, Clone)]
pub(crate) struct Ledger {
    file: Arc<File>,
    path: PathBuf,
}

impl Ledger {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = Arc::new(File::options().create(true).append(true).open(path)?);
        Ok(Self { file, path: path.to_owned() })
    }

    /// A handler starts on the n-th order.
    pub(crate) fn start(&self, n: u64, ctx: &Context) -> io::Result<Run> {
        let run = Run { ledger: self.clone(), n, id: ctx.task_id().to_owned(), attempt: ctx.attempt() };
        run.write("start").map(|()| run)
    }
}

/// A run that has started. One that is dropped before its end is seen to have none.
#[derive(Debug)]
pub(crate) struct Run {
    ledger: Ledger,
    n: u64,
    id: String,
    attempt: u32,
}

impl Run {
    /// What the task is for has been done.
    pub(crate) fn effect(&self) -> io::Result<()> {
        self.write("effect")
    }

    /// The handler returns.
    pub(crate) fn end(self) -> io::Result<()> {
        self.write("end")
    }

    /// The process dies of it if it is one of the task's first `deaths` runs. Which run it is is known from files, as no
    /// process that could remember it survives.
    pub(crate) fn crash(&self, deaths: u32) -> io::Result<()> {
        for death in 0..deaths {
            let mut mark = self.ledger.path.clone().into_os_string();
            mark.push(format!(".{}.{death}", self.n));
            match File::create_new(mark) {
                Ok(_) => {
                    self.write("crash")?;
                    std::process::abort();
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn write(&self, event: &str) -> io::Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let Self { n, id, attempt, .. } = self;
        let line = format!("{event} {n} {id} {attempt} {} {now}\n", std::process::id());
        (&*self.ledger.file).write_all(line.as_bytes())
    }
}
