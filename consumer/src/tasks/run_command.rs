//! `run_command(name, args=[])`: one of the commands that the operator allows, never through a shell.
//!
//! It starts the program in the session and process group that it is in itself: killing that group ends both.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::ensure;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::named;
use crate::config::TaskSettings;
use crate::context::{Cancelled, Context};
use crate::handler::{Handler, TaskError};
use crate::options::{ResourceLimits, TaskOptions};

const LIMITS: ResourceLimits = ResourceLimits { memory: 1024 * 1024 * 1024, cpu: Duration::from_mins(5) };
/// The search path of a command whose environment has none.
const PATH: &str = "/usr/local/bin:/usr/bin:/bin";
const MAX_ARGS: usize = 100;
/// Bytes of one argument. Linux takes at most 128 KiB.
const MAX_ARG: usize = 32 * 1024;
/// Bytes of standard output, and of standard error, that a command may have.
const MAX_OUTPUT: usize = 1024 * 1024;
/// Characters of standard error in an error.
const TAIL: usize = 1000;

pub(crate) struct RunCommand {
    commands: Option<BTreeMap<String, Command>>,
}

/// Runs one of the commands that the worker's operator allows, and returns what it printed.
///
/// No shell reads the arguments. Fails with `UnknownCommand`, with `CommandFailed` when the exit code is not 0, and with
/// `OutputTooLarge` when it prints more than the operator allows. It may run twice when the worker dies meanwhile.
#[derive(Deserialize, JsonSchema)]
pub(crate) struct Args {
    /// The command's name in the worker's `COMMANDS_FILE`.
    name: String,
    /// Arguments that follow the fixed ones, as many as the command allows.
    #[serde(default)]
    args: Vec<String>,
}

/// A command that ended well.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Finished {
    /// Always 0.
    exit_code: i32,
    /// What it wrote to standard output. What is not UTF-8 is replaced by U+FFFD.
    stdout: String,
    /// What it wrote to standard error, likewise.
    stderr: String,
}

/// An entry of `COMMANDS_FILE`: `{"thumbnail": {"program": "/usr/bin/convert", "args": ["-strip", "--"], "max_args": 2}}`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Command {
    /// The executable's absolute path.
    program: PathBuf,
    /// Arguments that it always gets, before the caller's.
    #[serde(default)]
    args: Vec<String>,
    /// How many arguments a caller may add.
    #[serde(default)]
    max_args: usize,
    /// Whether those may begin with `-`, which most programs read as an option.
    #[serde(default)]
    allow_options: bool,
    /// The whole environment, but for a `PATH` of the system's directories when it names none.
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// The working directory.
    #[serde(default = "root")]
    directory: PathBuf,
    /// Bytes of standard output, and of standard error, that it may print; at most 1 MiB.
    #[serde(default = "max_output")]
    max_output: usize,
}

fn root() -> PathBuf {
    PathBuf::from("/")
}

fn max_output() -> usize {
    256 * 1024
}

impl RunCommand {
    pub(crate) fn new(settings: &TaskSettings) -> anyhow::Result<Self> {
        let commands = settings.commands_file.as_deref().map(Self::read).transpose()?;
        Ok(Self { commands })
    }

    fn read(path: &Path) -> anyhow::Result<BTreeMap<String, Command>> {
        let commands = named::read("COMMANDS_FILE", "command", path)?;
        for (name, command) in &commands {
            let Command { program, directory, args, env, .. } = command;
            let context = format!("COMMANDS_FILE: command `{name}`");
            ensure!(program.is_absolute() && program.is_file(), "{context}: no program at {}", program.display());
            ensure!(directory.is_dir(), "{context}: no directory at {}", directory.display());
            ensure!(command.max_args <= MAX_ARGS, "{context}: `max_args` is above {MAX_ARGS}");
            ensure!((1..=MAX_OUTPUT).contains(&command.max_output), "{context}: `max_output` is not 1 to {MAX_OUTPUT}");
            ensure!(args.iter().chain(env.values()).all(|text| !text.contains('\0')), "{context}: it holds a NUL");
            let is_name = |name: &String| !name.is_empty() && !name.contains(['=', '\0']);
            ensure!(env.keys().all(is_name), "{context}: `env` has a name that is none");
        }
        Ok(commands)
    }
}

impl Handler for RunCommand {
    const NAME: &'static str = "run_command";
    const OPTIONS: TaskOptions = TaskOptions::new().isolated(LIMITS);
    type Args = Args;
    type Output = Finished;

    async fn run(&self, Args { name, args }: Args, ctx: Context) -> Result<Finished, TaskError> {
        let Some(commands) = &self.commands else {
            return Err(TaskError::fail("NotConfigured", "the worker has no commands: COMMANDS_FILE is not set"));
        };
        let unknown = || TaskError::fail("UnknownCommand", format!("COMMANDS_FILE has no command {name:?}"));
        let command = commands.get(&name).ok_or_else(unknown)?;
        command.check(&args)?;
        tokio::select! {
            finished = execute(command, &args) => finished,
            // Dropping the run kills the program.
            reason = ctx.cancelled_by(|reason| reason != Cancelled::Shutdown) => Err(reason.into()),
        }
    }
}

impl Command {
    /// Whether a caller may add these arguments.
    fn check(&self, args: &[String]) -> Result<(), TaskError> {
        let refused = |what: String| Err(TaskError::fail("InvalidArguments", format!("argument `args`: {what}")));
        if args.len() > self.max_args {
            return refused(format!("the command takes at most {}, {} given", self.max_args, args.len()));
        }
        for (index, arg) in args.iter().enumerate() {
            let number = index + 1;
            if arg.len() > MAX_ARG {
                return refused(format!("number {number} is longer than {MAX_ARG} bytes"));
            }
            if arg.contains('\0') {
                return refused(format!("number {number} has a NUL"));
            }
            if arg.starts_with('-') && !self.allow_options {
                return refused(format!("number {number} begins with `-`, which the command does not allow"));
            }
        }
        Ok(())
    }
}

async fn execute(command: &Command, args: &[String]) -> Result<Finished, TaskError> {
    let failed = |what: &str, error: std::io::Error| {
        TaskError::fail("CommandFailed", format!("{what} {}: {error}", command.program.display()))
    };
    let mut child = tokio::process::Command::new(&command.program)
        .args(&command.args)
        .args(args)
        .env_clear()
        .env("PATH", PATH)
        .envs(&command.env)
        .current_dir(&command.directory)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed("cannot start", error))?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (stdout, stderr, status) = tokio::try_join!(
        capture(stdout, "standard output", command.max_output),
        capture(stderr, "standard error", command.max_output),
        async { child.wait().await.map_err(|error| failed("cannot await", error)) },
    )?;
    if !status.success() {
        return Err(TaskError::fail("CommandFailed", end(status, &stderr)));
    }
    Ok(Finished { exit_code: 0, stdout, stderr })
}

/// All that the stream has.
async fn capture(stream: Option<impl AsyncRead + Unpin>, what: &str, max: usize) -> Result<String, TaskError> {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        // One more byte than is allowed tells that there is more.
        stream.take(max as u64 + 1).read_to_end(&mut bytes).await?;
    }
    if bytes.len() > max {
        return Err(TaskError::fail("OutputTooLarge", format!("more than {max} bytes of {what}")));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// How a failed command ended, and the end of what it said.
fn end(status: ExitStatus, stderr: &str) -> String {
    let how = match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, signal) => format!("killed by signal {}", signal.unwrap_or_default()),
    };
    let said = stderr.trim_end();
    let start = said.char_indices().rev().nth(TAIL - 1).map_or(0, |(index, _)| index);
    if said.is_empty() { how } else { format!("{how}: {}", &said[start..]) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestRun;
    use serde_json::{Value, json};
    use tokio::time::{sleep, timeout};

    fn configured(commands: &Value) -> Result<RunCommand, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), commands.to_string()).unwrap();
        let commands_file = Some(file.path().to_owned());
        RunCommand::new(&TaskSettings { commands_file, ..TaskSettings::default() })
            .map_err(|error| format!("{error:#}"))
    }

    fn shell(script: &str) -> RunCommand {
        configured(&json!({"it": {"program": "/bin/sh", "args": ["-c", script], "max_output": 2000}})).unwrap()
    }

    async fn run(task: &RunCommand, args: &[&str]) -> Result<Finished, (String, String)> {
        let args = Args { name: "it".to_owned(), args: args.iter().map(|arg| (*arg).to_owned()).collect() };
        TestRun::new().run(task, args).await.map_err(|error| match error {
            TaskError::Fail { error } => (error.kind, error.message),
            other => panic!("{other:?}"),
        })
    }

    #[tokio::test]
    async fn arguments_arrive_as_they_are_and_nothing_else_of_the_environment() {
        let task = configured(&json!({
            "it": {"program": "/usr/bin/env", "args": ["printf", "<%s>"], "max_args": 2},
        }));
        let finished = run(&task.unwrap(), &["; rm -rf /", "$(id) *"]).await.unwrap();
        assert_eq!((finished.exit_code, finished.stdout.as_str()), (0, "<; rm -rf /><$(id) *>"));
        let task = configured(&json!({"it": {"program": "/usr/bin/env", "env": {"K": "V"}}}));
        let finished = run(&task.unwrap(), &[]).await.unwrap();
        assert_eq!(finished.stdout, format!("K=V\nPATH={PATH}\n"));
    }

    #[tokio::test]
    async fn what_a_caller_may_not_add_is_refused() {
        let none = configured(&json!({"it": {"program": "/bin/true"}})).unwrap();
        let one = configured(&json!({"it": {"program": "/bin/echo", "max_args": 1}})).unwrap();
        let long = "x".repeat(MAX_ARG + 1);
        for (task, args, why) in [
            (&none, &["a"] as &[&str], "at most 0"),
            (&one, &["a", "b"], "at most 1"),
            (&one, &["a\0b"], "NUL"),
            (&one, &["-e"], "begins with `-`"),
            (&one, &[&long], "longer"),
        ] {
            let (kind, message) = run(task, args).await.unwrap_err();
            assert!(kind == "InvalidArguments" && message.contains(why), "{kind}: {message}");
        }
        let options = json!({"it": {"program": "/bin/echo", "max_args": 1, "allow_options": true}});
        assert_eq!(run(&configured(&options).unwrap(), &["-n"]).await.unwrap().stdout, "");
    }

    #[tokio::test]
    async fn a_failed_command_says_how_it_ended() {
        for (script, message) in [
            ("echo no; echo why >&2; exit 3", "exit code 3: why"),
            ("exit 1", "exit code 1"),
            ("kill -9 $$", "killed by signal 9"),
        ] {
            assert_eq!(run(&shell(script), &[]).await.unwrap_err(), ("CommandFailed".to_owned(), message.to_owned()));
        }
        let (_, message) = run(&shell("printf '%01500d' 7 >&2; exit 1"), &[]).await.unwrap_err();
        assert!(message.len() < 1100 && message.ends_with("07"), "{message}");
    }

    #[tokio::test]
    async fn too_much_output_ends_a_command_that_would_print_for_ever() {
        let (kind, message) = run(&shell("while :; do echo more; done"), &[]).await.unwrap_err();
        assert!(kind == "OutputTooLarge" && message.contains("2000 bytes of standard output"), "{message}");
    }

    #[tokio::test]
    async fn a_cancelled_run_kills_its_program() {
        let dir = tempfile::tempdir().unwrap();
        let pid = dir.path().join("pid");
        let task = shell(&format!("echo $$ >{0}.new; mv {0}.new {0}; exec sleep 1000", pid.display()));
        let run = TestRun::new();
        let cancel = async {
            while !pid.exists() {
                sleep(Duration::from_millis(5)).await;
            }
            run.cancel(Cancelled::Revoked);
        };
        let args = Args { name: "it".to_owned(), args: Vec::new() };
        let (result, ()) = tokio::join!(run.run(&task, args), cancel);
        assert!(matches!(result.unwrap_err(), TaskError::Fail { error } if error.kind == "TaskRevoked"));
        let process = format!("/proc/{}/cmdline", std::fs::read_to_string(&pid).unwrap().trim());
        let gone = async {
            // A zombie, and a process that is gone, reads as nothing.
            while std::fs::read(&process).is_ok_and(|line| !line.is_empty()) {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(10), gone).await.unwrap();
    }

    #[tokio::test]
    async fn names_and_settings_that_are_missing_are_named() {
        let args = || Args { name: "other".to_owned(), args: Vec::new() };
        let error = TestRun::new().run(&shell("true"), args()).await.unwrap_err();
        assert!(matches!(&error, TaskError::Fail { error } if error.kind == "UnknownCommand"), "{error:?}");
        let error = TestRun::new().run(&RunCommand { commands: None }, args()).await.unwrap_err();
        let TaskError::Fail { error } = error else { panic!("{error:?}") };
        assert!(error.kind == "NotConfigured" && error.message.contains("COMMANDS_FILE"), "{error:?}");
    }

    #[test]
    fn a_command_that_cannot_run_is_named_at_start() {
        for (command, why) in [
            (json!({"program": "true"}), "no program at true"),
            (json!({"program": "/nowhere/x"}), "no program at /nowhere/x"),
            (json!({"program": "/bin/true", "directory": "/nowhere"}), "no directory"),
            (json!({"program": "/bin/true", "max_args": 101}), "max_args"),
            (json!({"program": "/bin/true", "max_output": 0}), "max_output"),
            (json!({"program": "/bin/true", "env": {"A=B": "C"}}), "env"),
            (json!({"program": "/bin/true", "shell": true}), "shell"),
        ] {
            let error = configured(&json!({"it": command})).err().unwrap();
            assert!(error.starts_with("COMMANDS_FILE: command `it`") && error.contains(why), "{error}");
        }
    }
}
