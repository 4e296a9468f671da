//! `producer callbacks`: what an operator asks of the store, beside the producer that runs on it.

use std::io::Write as _;

use anyhow::Context as _;
use clap::Subcommand;
use protocol::timestamp::now_ms;

use super::post::NOBODY;
use crate::store::{Secret, secret_at};

/// What is asked.
#[derive(Subcommand)]
pub enum Callbacks {
    /// Show the secret that callbacks are signed with, for their receivers; the first time it is made
    Secret {
        /// The id of the API key whose tasks' callbacks it signs [default: those of tasks submitted without one]
        #[arg(long)]
        key: Option<String>,

        /// Make a new one: the old one signs beside it for 24 hours
        #[arg(long)]
        rotate: bool,
    },
}

impl Callbacks {
    /// Does it, in the store at that URL.
    ///
    /// # Errors
    /// The store cannot be opened or written.
    pub async fn run(self, database_url: &str) -> anyhow::Result<()> {
        let Self::Secret { key, rotate } = self;
        let owner = key.as_deref().unwrap_or(NOBODY);
        let secret = secret_at(database_url, owner, &Secret::fresh()?, rotate, now_ms()).await?;
        let secret =
            secret.with_context(|| format!("there is no key with the id {owner:?}: see `producer keys list`"))?;
        Ok(writeln!(std::io::stdout(), "{}", secret.shown())?)
    }
}
