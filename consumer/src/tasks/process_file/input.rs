//! The bytes to be processed, from a file or a URL, as they come.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use fetch::{Fetcher, Response};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, Take};

use super::PIECE;
use super::folder::{Folder, read_failed};
use crate::context::Context;
use crate::handler::TaskError;
use crate::tasks::remote;

/// For a URL, when the run has no time limit that ends earlier.
const LONGEST: Duration = Duration::from_hours(6);

pub(super) enum Input {
    /// As long as it was when it was opened: what is appended meanwhile is not read.
    File { content: Take<File>, size: u64 },
    /// What follows, and its length if the server says it.
    Body { response: Box<Response>, size: Option<u64> },
}

impl Input {
    pub(super) async fn open(folder: &Folder, source: &str) -> Result<Self, TaskError> {
        let (folder, source) = (folder.clone(), source.to_owned());
        // Of a file system on the network even that may take its time.
        let (file, size) = tokio::task::spawn_blocking(move || folder.open(&source)).await??;
        Ok(Self::File { content: File::from_std(file).take(size), size })
    }

    pub(super) async fn fetch(fetcher: &Fetcher, url: &str, ctx: &Context) -> Result<Self, TaskError> {
        let response = Box::new(remote::get(fetcher, url, LONGEST, ctx).await?);
        let size = response.content_length();
        Ok(Self::Body { response, size })
    }

    /// How many bytes there are, if that is known.
    pub(super) fn total(&self) -> Option<u64> {
        match self {
            Self::File { size, .. } => Some(*size),
            Self::Body { size, .. } => *size,
        }
    }

    /// More of them, `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, TaskError> {
        match self {
            Self::Body { response, .. } => response.chunk().await.map_err(|error| remote::task_error(&error)),
            Self::File { content, .. } => {
                let mut chunk = BytesMut::with_capacity(PIECE);
                let read = content.read_buf(&mut chunk).await.map_err(|error| read_failed("the file", &error))?;
                Ok((read > 0).then(|| chunk.freeze()))
            }
        }
    }
}
