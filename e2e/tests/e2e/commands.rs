//! `run_command` with the machine's own programs: what reaches them, and what comes back.

use std::path::Path;

use anyhow::{Result, ensure};
use e2e::{Pair, broker, guard, procfs, until};
use serde_json::{Value, json};

use crate::life::SOON;

/// A pair whose consumer knows these commands.
async fn pair(commands: &Value) -> Result<Pair> {
    // Kept: the processes of isolated tasks read the file anew.
    let dir = guard::scratch_dir("commands-")?.keep();
    let file = dir.join("commands.json");
    std::fs::write(&file, commands.to_string())?;
    Pair::on(broker::shared().await?).consumer_env("COMMANDS_FILE", &file.display().to_string()).start().await
}

async fn run(pair: &Pair, name: &str, args: &[&str]) -> Result<Value> {
    let wish = json!({"task": "run_command", "args": [name, args], "retry": {"max_retries": 0}});
    let id = pair.client().accepted(&wish).await?;
    pair.client().await_terminal(&id, SOON).await
}

#[tokio::test]
async fn arguments_reach_the_program_as_they_are_and_the_workers_secrets_do_not() -> Result<()> {
    let pair = pair(&json!({
        "print": {"program": "/usr/bin/printf", "args": ["[%s]"], "max_args": 3},
        "env": {"program": "/usr/bin/env", "env": {"GREETING": "hello world"}},
        "where": {"program": "/bin/pwd", "directory": "/usr"},
    }))
    .await?;
    let printed = run(&pair, "print", &["; rm -rf /", "$(id)", "a b\n*"]).await?;
    assert_eq!(printed["result"], json!({"exit_code": 0, "stdout": "[; rm -rf /][$(id)][a b\n*]", "stderr": ""}));
    let env = run(&pair, "env", &[]).await?;
    let mut lines: Vec<&str> = env["result"]["stdout"].as_str().unwrap_or_default().lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["GREETING=hello world", "PATH=/usr/local/bin:/usr/bin:/bin"]);
    assert_eq!(run(&pair, "where", &[]).await?["result"]["stdout"], "/usr\n");
    pair.stop().await
}

#[tokio::test]
async fn a_command_that_fails_says_how_and_what_is_not_allowed_is_not_started() -> Result<()> {
    let pair = pair(&json!({
        "fail": {"program": "/bin/sh", "args": ["-c", "echo out; echo why >&2; exit 7"]},
        "flood": {"program": "/usr/bin/yes", "max_output": 1000},
        "print": {"program": "/bin/echo", "max_args": 1},
    }))
    .await?;
    let many = ["a"; 2];
    for (name, args, kind, message) in [
        ("fail", &[] as &[&str], "CommandFailed", "exit code 7: why"),
        ("flood", &[], "OutputTooLarge", "more than 1000 bytes of standard output"),
        ("print", &many, "InvalidArguments", "at most 1, 2 given"),
        ("print", &["--version"], "InvalidArguments", "begins with `-`"),
        ("fail", &["; true"], "InvalidArguments", "at most 0, 1 given"),
        ("/bin/echo", &[], "UnknownCommand", "/bin/echo"),
    ] {
        let ended = run(&pair, name, args).await?;
        assert_eq!((&ended["state"], &ended["error"]["type"]), (&json!("FAILURE"), &json!(kind)), "{ended:#}");
        assert!(ended["error"]["message"].as_str().unwrap_or_default().contains(message), "{ended:#}");
    }
    pair.stop().await
}

#[tokio::test]
async fn a_worker_without_a_file_of_commands_says_so() -> Result<()> {
    let pair = Pair::on(broker::shared().await?).start().await?;
    let ended = run(&pair, "print", &[]).await?;
    assert_eq!(ended["error"]["type"], "NotConfigured", "{ended:#}");
    assert!(ended["error"]["message"].as_str().unwrap_or_default().contains("COMMANDS_FILE"), "{ended:#}");
    pair.stop().await
}

/// Waits until so many processes have this word in their environment.
async fn await_processes(mark: &Path, count: usize) -> Result<()> {
    until(&format!("{count} processes of {}", mark.display()), SOON, async || {
        let found = procfs::processes_of(mark)?;
        ensure!(found.len() == count, "there are {found:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn what_a_command_started_ends_with_its_time_and_with_its_worker() -> Result<()> {
    let mark = format!("mark-of-{}", std::process::id());
    let script = "/bin/sleep 600 & /bin/sleep 600; exit 0";
    let mut pair = pair(&json!({
        "linger": {"program": "/bin/sh", "args": ["-c", script], "env": {"MARK": mark}},
    }))
    .await?;
    let mark = Path::new(&mark);
    let limited = json!({"task": "run_command", "args": ["linger"], "time_limit": 3});
    let id = pair.client().accepted(&limited).await?;
    await_processes(mark, 3).await?;
    let ended = pair.client().await_terminal(&id, SOON).await?;
    let known = (&ended["state"], &ended["error"]["type"], &ended["retries"]);
    assert_eq!(known, (&json!("FAILURE"), &json!("TimeLimitExceeded"), &json!(0)), "{ended:#}");
    await_processes(mark, 0).await?;

    pair.client().accepted(&json!({"task": "run_command", "args": ["linger"]})).await?;
    await_processes(mark, 3).await?;
    pair.consumers[0].kill()?;
    await_processes(mark, 0).await
}
