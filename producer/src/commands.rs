//! `producer keys`: makes, lists and revokes the API keys of a store, whether or not a producer runs on it. A key is
//! shown once, on standard output; the store has a hash of it only.

use std::io::{self, Write};

use protocol::timestamp::{from_unix_ms, rfc3339};

use crate::config::{KeysCommand, NewKey};
use crate::key::{Scope, Token};
use crate::store::{ApiKey, KeyLimits, Keybook, UnixMs};

/// Does it to the store at a URL.
///
/// # Errors
/// The store cannot be opened or written, or has no such key.
pub async fn keys(database_url: &str, command: KeysCommand) -> anyhow::Result<()> {
    let mut book = Keybook::open(database_url).await?;
    match command {
        KeysCommand::Create(new) => create(&mut book, &new).await,
        KeysCommand::List => list(&book.all().await?).map_err(Into::into),
        KeysCommand::Revoke { id } if book.revoke(&id).await? => Ok(()),
        KeysCommand::Revoke { id } => {
            Err(anyhow::anyhow!("there is no key with the id {id:?}: see `producer keys list`"))
        }
    }
}

async fn create(book: &mut Keybook, new: &NewKey) -> anyhow::Result<()> {
    let token = Token::generate()?;
    let limits =
        KeyLimits { requests: new.requests_per_second, open_tasks: new.open_tasks, waiting_bytes: new.waiting_bytes };
    book.add(&token, &new.name, &new.scope, limits).await?;
    writeln!(io::stderr(), "key {} is made; it is shown now and never again:", token.id)?;
    writeln!(io::stdout(), "{}", token.reveal())?;
    Ok(())
}

fn list(keys: &[ApiKey]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "id\tname\tscopes\tcreated\trevoked\trequests/s\topen tasks\twaiting bytes")?;
    for key in keys {
        let scopes: Vec<&str> = key.scopes.iter().copied().map(Scope::name).collect();
        let of = |now: i64, max: Option<String>| max.map_or(now.to_string(), |max| format!("{now}/{max}"));
        writeln!(
            out,
            "{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}",
            key.id,
            key.name,
            scopes.join(","),
            time(Some(key.created_at)),
            time(key.revoked_at),
            key.limits.requests.map_or("-".to_owned(), |rate| rate.to_string()),
            of(key.open_tasks, key.limits.open_tasks.map(|max| max.to_string())),
            of(key.waiting_bytes, key.limits.waiting_bytes.map(|max| max.to_string())),
        )?;
    }
    Ok(())
}

fn time(at: Option<UnixMs>) -> String {
    at.and_then(from_unix_ms).map_or("-".to_owned(), rfc3339)
}
