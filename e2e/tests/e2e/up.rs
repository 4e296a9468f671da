//! What `deploy/up` runs after building: the first task succeeds, and nothing stays, however it ends.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::broker::Release;
use e2e::guard::{self, Launch, Process};
use e2e::{Env, config, procfs, until, users};
use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::sync::Mutex;

/// All of them want the usual ports.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

const START: Duration = Duration::from_mins(2);
const END: Duration = Duration::from_mins(1);

/// Starts it with a TMPDIR of its own, so that what it leaves behind can be told from the rest. The path is its log's.
fn up(home: &Path, env: &[(&str, &str)]) -> Result<(Process, PathBuf)> {
    let log = home.join("up.log");
    let work = home.join("tmp");
    std::fs::create_dir(&work)?;
    std::fs::set_permissions(&work, PermissionsExt::from_mode(0o711))?;
    let mut all = Env::from([("TMPDIR".to_owned(), work.display().to_string())]);
    if let Release::Installed(number) = config::release() {
        all.insert("ERRAND_RABBITMQ".to_owned(), number);
    }
    all.extend(env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    let program = env!("CARGO_BIN_EXE_up").into();
    let launch = Launch { program, args: Vec::new(), env: all, dir: home.to_owned(), log: log.clone(), user: None };
    Ok((Process::spawn(&launch)?, log))
}

async fn await_line(up: &mut Process, log: &Path, text: &str) -> Result<String> {
    let mut ended = false;
    until(&format!("{text:?} in its output"), START, async || {
        let output = std::fs::read_to_string(log)?;
        assert!(!ended || output.contains(text), "it ended without {text:?} in\n{output}");
        ended = up.try_wait()?.is_some();
        ensure!(output.contains(text), "{output}");
        Ok(output)
    })
    .await
}

/// Neither a process nor a file, once it has ended.
async fn await_nothing_left(home: &Path) -> Result<()> {
    let work = home.join("tmp");
    until("nothing is left", END, async || {
        let (processes, files) = (procfs::processes_of(&work)?, std::fs::read_dir(&work)?.count());
        ensure!(processes.is_empty() && files == 0, "left: processes {processes:?}, {files} files");
        Ok(())
    })
    .await
}

/// What stands between two words of the output.
fn between<'a>(output: &'a str, before: &str, after: &str) -> Result<&'a str> {
    let found = output.split_once(before).and_then(|(_, rest)| rest.split_once(after));
    found.map(|(found, _)| found).with_context(|| format!("no {before:?} and {after:?} in\n{output}"))
}

/// The operator who is printed sees no guest, and nobody else reads the passwords.
async fn only_its_own_users_are_there(output: &str) -> Result<()> {
    let url = format!("{}api/users", between(output, "management  ", " (user")?);
    let password = between(output, "errand-admin, password ", ")")?;
    let answer = e2e::client::http()?.get(url).basic_auth(users::ADMIN, Some(password)).send().await?;
    let answer: Value = serde_json::from_str(&answer.text().await?)?;
    let names: Vec<&Value> = answer.as_array().into_iter().flatten().map(|user| &user["name"]).collect();
    assert_eq!(names, [users::ADMIN, users::CONSUMER, users::PRODUCER]);
    let secrets = std::fs::read_dir(between(output, "(passwords in ", ")")?)?;
    let modes = secrets.map(|file| Ok(file?.metadata()?.permissions().mode() & 0o777)).collect::<Result<Vec<_>>>()?;
    assert!(modes.len() >= 5 && modes.iter().all(|mode| *mode == 0o600), "{modes:?}");
    Ok(())
}

#[tokio::test]
async fn up_ends_in_a_success_also_where_the_usual_ports_are_taken() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    // Whoever else has them serves the purpose as well.
    let _taken = [5672, 15672, 8080, 8081, 4369].map(|port| TcpListener::bind(("127.0.0.1", port)));
    let home = guard::scratch_dir("up-test-")?;
    let (mut up, log) = up(home.path(), &[("UP_ONCE", "1")])?;
    let status = up.wait(START).await;
    let output = std::fs::read_to_string(log)?;
    assert!(status.is_ok_and(|status| status.success()), "{output}");
    for text in ["GET  STARTED", "GET  SUCCESS  ", "result 42", "management  http://127.0.0.1:"] {
        assert!(output.contains(text), "no {text:?} in\n{output}");
    }
    await_nothing_left(home.path()).await
}

#[tokio::test]
async fn up_revives_a_worker_and_leaves_nothing_after_ctrl_c() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let home = guard::scratch_dir("up-test-")?;
    let (mut up, log) = up(home.path(), &[])?;
    let output = await_line(&mut up, &log, "running;").await?;
    only_its_own_users_are_there(&output).await?;
    let consumer = procfs::processes_of(&home.path().join("tmp"))?
        .into_iter()
        .find(|pid| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "consumer"));
    let consumer = nix::unistd::Pid::from_raw(consumer.expect("a consumer").cast_signed());
    nix::sys::signal::kill(consumer, Signal::SIGKILL)?;
    await_line(&mut up, &log, "the consumer died").await?;
    up.signal(Signal::SIGINT)?;
    let status = up.wait(END).await?;
    assert!(status.success(), "{status}\n{}", std::fs::read_to_string(log)?);
    await_nothing_left(home.path()).await
}

#[tokio::test]
async fn up_leaves_nothing_when_killed() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let home = guard::scratch_dir("up-test-")?;
    let (mut up, log) = up(home.path(), &[])?;
    await_line(&mut up, &log, "GET  STARTED").await?;
    up.kill()?;
    await_nothing_left(home.path()).await
}
