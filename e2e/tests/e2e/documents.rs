//! What the documents name exists.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use e2e::{NameServer, Pair, broker, service};
use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// All Rust source of the workspace in one text.
fn source(dir: &Path, text: &mut String) -> Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() && !path.ends_with("target") && !path.ends_with(".git") {
            source(&path, text)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&std::fs::read_to_string(path)?);
        }
    }
    Ok(())
}

#[test]
fn tests_that_the_documents_name_exist() -> Result<()> {
    let mut code = String::new();
    source(&root(), &mut code)?;
    for (document, fewest) in [("ARCHITECTURE.md", 8), ("docs/security.md", 25), ("docs/reliability.md", 40)] {
        let text = std::fs::read_to_string(root().join(document))?;
        let named = text.split('`').skip(1).step_by(2);
        let tests: Vec<&str> = named.filter(|word| word.matches('_').count() >= 3 && !word.contains(' ')).collect();
        assert!(tests.len() >= fewest, "too few to be all: {tests:?}");
        for test in tests {
            assert!(code.contains(&format!("fn {test}(")), "{document}: no test is named {test}");
        }
    }
    Ok(())
}

#[test]
fn files_that_the_documents_name_exist() -> Result<()> {
    for document in [
        "README.md",
        "ARCHITECTURE.md",
        "SECURITY.md",
        "docs/tasks.md",
        "docs/http.md",
        "docs/security.md",
        "docs/reliability.md",
        "docs/control.md",
        "docs/workers.md",
    ] {
        let text = std::fs::read_to_string(root().join(document))?;
        let named = text.split('`').skip(1).step_by(2).filter(|word| word.contains('/') && !word.contains(' '));
        let rooted = ["protocol/", "producer/", "consumer/", "e2e/", "deploy/", "docs/", "examples/"];
        for path in named.filter(|word| rooted.iter().any(|room| word.starts_with(room))) {
            assert!(root().join(path).exists() || root().join(format!("{path}.rs")).exists(), "{document}: {path}");
        }
    }
    Ok(())
}

/// The words in backquotes of the last table of docs/tasks.md: tasks in the first column, settings in the last.
fn catalogue(text: &str) -> Vec<(Vec<&str>, Vec<&str>)> {
    fn words(cell: &str) -> Vec<&str> {
        cell.split('`').skip(1).step_by(2).collect()
    }
    let table = text.rsplit("| --- | --- | --- |").next().unwrap_or_default();
    let rows = table.lines().filter(|line| line.starts_with('|'));
    rows.map(|row| {
        let cells: Vec<&str> = row.split('|').collect();
        (words(cells[1]), words(cells[3]))
    })
    .collect()
}

#[test]
fn the_tasks_and_settings_of_the_manual_are_those_of_the_worker() -> Result<()> {
    let consumer = service::built("consumer")?;
    let said = |argument: &str| -> Result<String> {
        let output = std::process::Command::new(&consumer).arg(argument).env_clear().output()?;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    };
    let types: Vec<Value> = serde_json::from_str(&said("tasks")?)?;
    let mut known: Vec<&str> = types.iter().filter_map(|task| task["name"].as_str()).collect();
    let text = std::fs::read_to_string(root().join("docs/tasks.md"))?;
    let rows = catalogue(&text);
    let mut named: Vec<&str> = rows.iter().flat_map(|(tasks, _)| tasks).copied().collect();
    known.sort_unstable();
    named.sort_unstable();
    assert_eq!(named, known);
    for task in &types {
        assert!(task["arguments"].is_object() && task["result"] != Value::Null, "{task:#}");
        assert!(task["arguments"]["description"].is_string() || task["arguments"]["type"] == "null", "{task:#}");
    }
    let help = said("--help")?;
    for setting in rows.iter().flat_map(|(_, settings)| settings) {
        assert!(help.contains(&format!("[env: {setting}")), "{setting} is no setting");
    }
    Ok(())
}

#[tokio::test]
async fn the_requests_of_the_manual_are_accepted() -> Result<()> {
    let pair = Pair::on(broker::shared().await?).consumers(0).start().await?;
    let text = std::fs::read_to_string(root().join("docs/tasks.md"))?;
    let blocks: Vec<&str> = text.split("```json\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(!blocks.is_empty());
    for block in blocks {
        let request: Value = serde_json::from_str(block).context(block.to_owned())?;
        let answer = pair.client().submit(&request).await?;
        assert_eq!(answer.status, 202, "{block}\n{}", answer.text);
    }
    Ok(())
}

/// The blocks of shell in a document that ask a producer with curl.
fn requests(text: &str) -> impl Iterator<Item = &str> {
    let blocks = text.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next());
    blocks.filter(|block| block.contains("curl "))
}

#[tokio::test]
async fn the_curl_commands_of_the_manual_are_answered_as_it_says() -> Result<()> {
    // Which knows no name, so that no callback leaves the machine.
    let names = NameServer::start().await?;
    let pair = Pair::on(broker::shared().await?).producer_env("CALLBACK_NAMESERVERS", &names.address().to_string());
    let pair = pair.start().await?;
    let mut said = Vec::new();
    for document in ["README.md", "docs/http.md", "docs/tasks.md"] {
        let text = std::fs::read_to_string(root().join(document))?;
        for block in requests(&text) {
            let command = block.replace("127.0.0.1:8080", &pair.client().address().to_string());
            assert_ne!(command, block, "{document}: not for the usual address: {block}");
            let run = tokio::process::Command::new("sh").args(["-ec", &command]).kill_on_drop(true).output().await?;
            assert!(run.status.success(), "{block}{}", String::from_utf8_lossy(&run.stderr));
            said.push(String::from_utf8(run.stdout)?);
        }
    }
    let statuses: Vec<&str> = said.iter().filter_map(|answer| answer.split(' ').nth(1)).collect();
    // Submitted, waited for, and then it is too late to revoke it; nothing to replay; another one submitted.
    assert_eq!(statuses, ["202", "200", "409", "200", "202"], "{said:#?}");
    assert!(said[0].to_lowercase().contains("location: /v1/tasks/order-17"), "{}", said[0]);
    assert!(said[1].contains(r#""state":"SUCCESS""#) && said[1].contains(r#""result":42"#), "{}", said[1]);
    pair.stop().await
}
