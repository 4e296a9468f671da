//! `process_file(source, kind=None, delimiter=None, header=true)`: counts what is in a file, and sums its numbers.
//!
//! The file streams through: what is held of it is one chunk and one record, however long it is.

mod column;
mod folder;
mod input;
mod table;
mod text;

use std::collections::BTreeMap;

use fetch::Fetcher;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::task::yield_now;

use self::column::Totals;
use self::folder::Folder;
use self::input::Input;
use self::table::Table;
use self::text::Text;
use crate::config::TaskSettings;
use crate::context::{Cancelled, Context};
use crate::handler::{Handler, TaskError};
use crate::tasks::remote;

const MAX_BYTES: u64 = 10 << 30;
/// Worked through in a millisecond or so, and then it is the other tasks' turn.
const PIECE: usize = 64 * 1024;

pub(crate) struct ProcessFile {
    fetcher: Fetcher,
    folder: Folder,
}

impl ProcessFile {
    /// # Errors
    /// `FILES_DIR` is not a directory.
    pub(crate) fn new(settings: &TaskSettings, fetcher: Fetcher) -> anyhow::Result<Self> {
        Ok(Self { fetcher, folder: Folder::new(settings.files_dir.clone())? })
    }
}

/// Reads a CSV or text file of up to 10 GiB: counts a CSV's rows and sums its numbers column by column, or counts a
/// text's lines and words. Its progress is in bytes.
///
/// A CSV follows RFC 4180: fields may be in double quotes, and every row has as many as the first; empty lines are
/// skipped. One that does not fails as `MalformedCsv` with the row's number. A row may have up to 1 MiB and 10,000
/// fields.
#[derive(Deserialize, JsonSchema)]
pub(crate) struct Args {
    /// A file below the worker's `FILES_DIR`, as a relative path, or an http or https URL.
    source: String,
    /// What it is: `csv` if its name ends in `.csv` or `.tsv`, otherwise `text`, unless this says it.
    #[serde(default)]
    kind: Option<Kind>,
    /// What stands between the fields of a CSV: one ASCII character. A comma, or a tab in what ends in `.tsv`, unless
    /// this says it.
    #[serde(default)]
    delimiter: Option<Delimiter>,
    /// Whether the first row of a CSV holds the columns' names. Without, they are called `1`, `2`, and so on.
    #[serde(default = "yes")]
    header: bool,
}

fn yes() -> bool {
    true
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Csv,
    Text,
}

/// One ASCII character.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(try_from = "char")]
struct Delimiter(#[schemars(with = "char")] u8);

impl TryFrom<char> for Delimiter {
    type Error = &'static str;

    fn try_from(character: char) -> Result<Self, Self::Error> {
        match u8::try_from(character) {
            Ok(byte) if byte.is_ascii() && !matches!(byte, b'"' | b'\r' | b'\n') => Ok(Self(byte)),
            _ => Err("a delimiter is one ASCII character, and neither a double quote nor the end of a line"),
        }
    }
}

/// What is in the file.
#[derive(Debug, PartialEq, Serialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum Summary {
    /// Of a CSV.
    Csv {
        /// Without the header and without empty lines.
        rows: u64,
        /// The size of the file.
        bytes: u64,
        /// Every column that holds a number, by its name. One without a name is called by its position, counted from
        /// 1; to a name that an earlier column has the position is appended.
        columns: BTreeMap<String, Totals>,
    },
    /// Of a text.
    Text {
        /// The last one counts whether or not its end is there.
        lines: u64,
        /// What ASCII white space separates.
        words: u64,
        /// The size of the file.
        bytes: u64,
    },
}

impl Handler for ProcessFile {
    const NAME: &'static str = "process_file";
    type Args = Args;
    type Output = Summary;

    async fn run(&self, args: Args, ctx: Context) -> Result<Summary, TaskError> {
        tokio::select! {
            biased;
            reason = ctx.cancelled_by(|reason| reason != Cancelled::Shutdown) => Err(reason.into()),
            summary = self.process(&args, &ctx) => summary,
        }
    }
}

impl ProcessFile {
    async fn process(&self, args: &Args, ctx: &Context) -> Result<Summary, TaskError> {
        let mut counter = Counter::new(args);
        let mut input = if remote::is_url(&args.source) {
            Input::fetch(&self.fetcher, &args.source, ctx).await?
        } else {
            Input::open(&self.folder, &args.source).await?
        };
        let (mut read, total) = (0, input.total());
        check_size(total.unwrap_or_default())?;
        ctx.progress(read, total);
        while let Some(chunk) = input.next().await? {
            for piece in chunk.chunks(PIECE) {
                counter.push(piece)?;
                read += piece.len() as u64;
                check_size(read)?;
                ctx.progress(read, total);
                yield_now().await;
            }
        }
        counter.finish(read)
    }
}

fn check_size(bytes: u64) -> Result<(), TaskError> {
    if bytes <= MAX_BYTES {
        return Ok(());
    }
    Err(TaskError::fail("FileTooLarge", format!("the file is longer than {MAX_BYTES} bytes")))
}

enum Counter {
    Csv(Box<Table>),
    Text(Text),
}

impl Counter {
    fn new(args: &Args) -> Self {
        let extension = extension(&args.source);
        let tabs = extension.eq_ignore_ascii_case("tsv");
        let by_name = if tabs || extension.eq_ignore_ascii_case("csv") { Kind::Csv } else { Kind::Text };
        match args.kind.unwrap_or(by_name) {
            Kind::Text => Self::Text(Text::default()),
            Kind::Csv => {
                let by_name = Delimiter(if tabs { b'\t' } else { b',' });
                Self::Csv(Box::new(Table::new(args.delimiter.unwrap_or(by_name).0, args.header)))
            }
        }
    }

    fn push(&mut self, piece: &[u8]) -> Result<(), TaskError> {
        match self {
            Self::Csv(table) => table.push(piece),
            Self::Text(text) => {
                text.push(piece);
                Ok(())
            }
        }
    }

    fn finish(self, bytes: u64) -> Result<Summary, TaskError> {
        match self {
            Self::Csv(table) => table.finish().map(|(rows, columns)| Summary::Csv { rows, bytes, columns }),
            Self::Text(Text { lines, words, .. }) => Ok(Summary::Text { lines, words, bytes }),
        }
    }
}

/// Of a path or of a URL's path.
fn extension(source: &str) -> &str {
    let path = if remote::is_url(source) { source.split(['?', '#']).next().unwrap_or_default() } else { source };
    let name = path.rsplit('/').next().unwrap_or_default();
    name.rsplit_once('.').map_or("", |(_, extension)| extension)
}

#[cfg(test)]
mod tests;
