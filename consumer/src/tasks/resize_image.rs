//! `resize_image(source, width, height, format="png", file=None)`: an image, made to fit within a box.
//!
//! Images come from strangers: it runs in a process of its own, and what an image would take is known before it is
//! decoded.

mod artifact;
mod jpeg;
mod picture;
mod source;

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use fetch::Fetcher;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::artifact::{Artifacts, FileName};
use self::picture::Picture;
use crate::config::TaskSettings;
use crate::context::{Cancelled, Context};
use crate::handler::{Handler, TaskError};
use crate::options::{ResourceLimits, TaskOptions};

pub(crate) struct ResizeImage {
    fetcher: Fetcher,
    artifacts: Artifacts,
}

impl ResizeImage {
    /// # Errors
    /// `ARTIFACTS_DIR` is not a directory.
    pub(crate) fn new(settings: &TaskSettings, fetcher: Fetcher) -> anyhow::Result<Self> {
        Ok(Self { fetcher, artifacts: Artifacts::new(settings.artifacts_dir.clone())? })
    }
}

/// Resizes an image. It keeps its proportions and becomes as large as fits within width × height, which may be larger
/// than it was. A photo is turned upright, of an animation the first picture is taken, other metadata is dropped.
///
/// It reads PNG, JPEG, GIF and WebP of at most 50 megapixels and 256 MiB decoded, and 32 MiB as a file. The result has
/// at most 16 megapixels.
#[derive(Deserialize, JsonSchema)]
pub(crate) struct Args {
    /// The image: its http or https URL, or itself as base64, with or without `data:image/png;base64,` in front.
    source: String,
    /// The width of the box in pixels, from 1 to 10000.
    width: Side,
    /// Its height in pixels, from 1 to 10000.
    height: Side,
    /// The format of the result. JPEG knows no transparency, so what is transparent becomes white; GIF has 256 colours;
    /// WebP is lossless.
    #[serde(default)]
    format: Format,
    /// To write the result into a file of this name in the worker's `ARTIFACTS_DIR` instead of returning it, which
    /// fails as `ResultTooLarge` when it is long. A file that has the name is replaced. It is a name only, without
    /// directories or a leading dot, and no extension is added.
    #[serde(default)]
    file: Option<FileName>,
}

/// Pixels along one side.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(try_from = "u32")]
struct Side(#[schemars(range(min = 1, max = 10_000))] u32);

impl TryFrom<u32> for Side {
    type Error = &'static str;

    fn try_from(pixels: u32) -> Result<Self, Self::Error> {
        if (1..=10_000).contains(&pixels) { Ok(Self(pixels)) } else { Err("not a number of pixels from 1 to 10000") }
    }
}

/// What the result is encoded as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Format {
    #[default]
    Png,
    #[serde(alias = "jpg")]
    Jpeg,
    Webp,
    Gif,
}

/// The resized image, in `data` or in a file.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Resized {
    format: Format,
    /// In pixels.
    width: u32,
    /// In pixels.
    height: u32,
    /// The size of the encoded image.
    bytes: usize,
    /// The encoded image as base64, unless a file was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<String>,
    /// The file it was written to, relative to `ARTIFACTS_DIR`.
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
}

impl Handler for ResizeImage {
    const NAME: &'static str = "resize_image";
    /// A large image takes most of that memory, so only a few at once.
    const OPTIONS: TaskOptions = TaskOptions::new()
        .isolated(ResourceLimits { memory: 1 << 30, cpu: Duration::from_mins(1) })
        .concurrency_limit(4);
    type Args = Args;
    type Output = Resized;

    async fn run(&self, args: Args, ctx: Context) -> Result<Resized, TaskError> {
        if args.file.is_some() {
            self.artifacts.configured()?;
        }
        let encoded = tokio::select! {
            encoded = source::read(&args.source, &self.fetcher, &ctx) => encoded?,
            reason = ctx.cancelled_by(|reason| reason != Cancelled::Shutdown) => return Err(reason.into()),
        };
        let picture = Picture::decode(&encoded)?;
        // Before the resized one needs memory too.
        drop((encoded, args.source));
        let picture = picture.fit_within(args.width.0, args.height.0)?;
        let (width, height) = picture.dimensions();
        let encoded = picture.encode(args.format)?;
        let (data, file) = match args.file {
            None => (Some(BASE64.encode(&encoded)), None),
            Some(name) => (None, Some(self.artifacts.write(name, &encoded)?)),
        };
        Ok(Resized { format: args.format, width, height, bytes: encoded.len(), data, file })
    }
}

#[cfg(test)]
mod tests;
