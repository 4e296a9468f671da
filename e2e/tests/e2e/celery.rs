//! Stock Celery clients and workers against the pair: every test for both versions that `deploy/install --test` installs.

mod calls;
pub(crate) mod control;
mod events;
mod flask;
mod foreign;
mod hostile;
mod later;
mod workflows;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::guard::{Launch, Process};
use e2e::{Env, Pair, broker, installed};
use serde_json::Value;
use tokio::process::Command;
use tokio::time::timeout;

/// The names that the environments have in the build's directory.
const VERSIONS: [&str; 2] = ["5.3.6", "newest"];
/// With the program's own folder, and nothing else of its user's, on the path.
const PLAIN: [&str; 3] = ["-s", "-E", "-B"];
const DEADLINE: Duration = Duration::from_mins(2);

/// What a program of `e2e/celery` prints, run on each version against a pair of its own.
#[expect(clippy::print_stdout, reason = "a test that fails shows it")]
async fn on_each_version<F>(program: &str, show: impl Fn(Pair, Value) -> F) -> Result<()>
where
    F: Future<Output = Result<()>>,
{
    for version in VERSIONS {
        let pair = Pair::on(broker::shared().await?).start().await?;
        let told = run(&pair, version, program).await?;
        println!("Celery {version}: {told:#}");
        show(pair, told).await.with_context(|| format!("with Celery {version}"))?;
    }
    Ok(())
}

async fn run(pair: &Pair, version: &str, program: &str) -> Result<Value> {
    let run = Command::new(python(version)?)
        .args(PLAIN)
        .arg(folder().join(program))
        .env_clear()
        .env("AMQP_URL", pair.broker().amqp_url(pair.vhost()))
        .current_dir(pair.dir())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let run = timeout(DEADLINE, run).await.with_context(|| format!("{program} does not end"))??;
    let errors = String::from_utf8_lossy(&run.stderr);
    ensure!(run.status.success(), "{program} on Celery {version}: {errors}");
    Ok(serde_json::from_slice(&run.stdout)?)
}

/// Starts Python with these arguments and this environment, until it is dropped.
fn serve(version: &str, name: &str, args: &[&str], dir: &Path, env: &[(&str, &str)]) -> Result<Process> {
    let args = PLAIN.iter().chain(args).map(OsString::from).collect();
    let home = dir.display().to_string();
    let env: Env =
        env.iter().chain(&[("HOME", home.as_str())]).map(|&(name, value)| (name.into(), value.into())).collect();
    let log = dir.join(format!("{name}.log"));
    Process::spawn(&Launch { program: python(version)?, args, env, dir: dir.to_owned(), log, user: None })
}

/// Where the programs are.
fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("celery")
}

fn python(version: &str) -> Result<PathBuf> {
    installed(&format!("python-celery-{version}/bin/python"), "deploy/install --test")
}
