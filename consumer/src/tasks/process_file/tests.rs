//! The task as a worker runs it, on files.

use std::path::Path;

use serde_json::{Value, json};

use super::*;
use crate::testing::TestRun;

fn task(dir: &Path) -> ProcessFile {
    let settings = TaskSettings { files_dir: Some(dir.to_owned()), ..TaskSettings::default() };
    ProcessFile::new(&settings, settings.fetcher().unwrap()).unwrap()
}

async fn call(run: &TestRun, dir: &Path, kwargs: Value) -> Result<Value, String> {
    let result = run.call(task(dir), "[]", &kwargs.to_string()).await;
    let told = |error: TaskError| format!("{}: {}", error.error().kind, error.error().message);
    Ok(serde_json::from_str(result.map_err(told)?.get()).unwrap())
}

#[tokio::test]
async fn the_name_says_what_a_file_is_and_the_caller_knows_better() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["a.csv", "a.tsv", "A.CSV", "a.txt", "noextension"] {
        std::fs::write(dir.path().join(name), "x,y\n1,2\n3,x\n").unwrap();
    }
    let csv = json!({"rows": 2, "bytes": 12, "columns": {"x": {"count": 2, "sum": 4}, "y": {"count": 1, "sum": 2}}});
    let text = json!({"lines": 3, "words": 3, "bytes": 12});
    for (kwargs, expected) in [
        (json!({"source": "a.csv"}), &csv),
        (json!({"source": "A.CSV"}), &csv),
        (json!({"source": "a.txt"}), &text),
        (json!({"source": "noextension"}), &text),
        (json!({"source": "a.csv", "kind": "text"}), &text),
        (json!({"source": "a.txt", "kind": "csv"}), &csv),
        (json!({"source": "a.tsv", "delimiter": ","}), &csv),
        (json!({"source": "a.tsv"}), &json!({"rows": 2, "bytes": 12, "columns": {}})),
        (
            json!({"source": "a.csv", "header": false}),
            &json!({"rows": 3, "bytes": 12, "columns": {"1": {"count": 2, "sum": 4}, "2": {"count": 1, "sum": 2}}}),
        ),
    ] {
        assert_eq!(call(&TestRun::new(), dir.path(), kwargs.clone()).await.as_ref(), Ok(expected), "{kwargs}");
    }
}

#[tokio::test]
async fn a_sum_keeps_its_digits_in_the_result() {
    let dir = tempfile::tempdir().unwrap();
    let max = u64::MAX;
    std::fs::write(dir.path().join("a.csv"), format!("n\n{max}\n{max}\n")).unwrap();
    let result = TestRun::new().call(task(dir.path()), r#"["a.csv"]"#, "{}").await.unwrap();
    assert!(result.get().contains(r#""sum":36893488147419103230"#), "{result}");
}

#[tokio::test]
async fn progress_goes_from_zero_to_the_size() {
    let dir = tempfile::tempdir().unwrap();
    let size = 3 * PIECE + 1;
    std::fs::write(dir.path().join("a.txt"), vec![b'x'; size]).unwrap();
    let run = TestRun::new();
    call(&run, dir.path(), json!({"source": "a.txt"})).await.unwrap();
    let progress = run.progress();
    assert!(progress.iter().all(|progress| progress.total == Some(size as u64)));
    let current: Vec<u64> = progress.iter().map(|progress| progress.current).collect();
    assert!(current.is_sorted() && current.len() >= 5, "{current:?}");
    assert_eq!((current[0], current.last()), (0, Some(&(size as u64))));
}

#[tokio::test]
async fn a_revoked_run_ends_and_a_shutdown_lets_it_go_on() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.txt"), "x").unwrap();
    for (reason, kind) in [(Cancelled::Revoked, "TaskRevoked"), (Cancelled::SoftTimeLimit, "SoftTimeLimitExceeded")] {
        let run = TestRun::new();
        run.cancel(reason);
        let error = call(&run, dir.path(), json!({"source": "a.txt"})).await.unwrap_err();
        assert!(error.starts_with(kind), "{error}");
    }
    let run = TestRun::new();
    run.cancel(Cancelled::Shutdown);
    assert!(call(&run, dir.path(), json!({"source": "a.txt"})).await.is_ok());
}

#[tokio::test]
async fn a_file_over_the_cap_is_refused_unread() {
    let dir = tempfile::tempdir().unwrap();
    let sparse = std::fs::File::create(dir.path().join("a.txt")).unwrap();
    sparse.set_len(MAX_BYTES + 1).unwrap();
    let run = TestRun::new();
    let error = call(&run, dir.path(), json!({"source": "a.txt"})).await.unwrap_err();
    assert!(error.starts_with("FileTooLarge") && run.progress().is_empty(), "{error}");
}

#[tokio::test]
async fn what_cannot_be_meant_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for (kwargs, kind) in [
        (json!({"source": "a.csv", "delimiter": "ab"}), "InvalidArguments: argument `delimiter`"),
        (json!({"source": "a.csv", "delimiter": "\""}), "InvalidArguments: argument `delimiter`"),
        (json!({"source": "a.csv", "delimiter": "é"}), "InvalidArguments: argument `delimiter`"),
        (json!({"source": "a.csv", "kind": "xml"}), "InvalidArguments: argument `kind`"),
        (json!({"source": "a.csv"}), "FileNotFound"),
        (json!({"source": "../a.csv"}), "PathRefused"),
        (json!({"source": "file:///etc/passwd"}), "AddressRefused"),
        (json!({"source": "http://127.0.0.1:1/a.csv"}), "AddressRefused"),
    ] {
        let error = call(&TestRun::new(), dir.path(), kwargs.clone()).await.unwrap_err();
        assert!(error.starts_with(kind), "{kwargs}: {error}");
    }
}

#[test]
fn an_extension_is_a_names_last() {
    for (source, expected) in [
        ("a.csv", "csv"),
        ("a.b/c", ""),
        ("a.tar.gz", "gz"),
        ("http://host.csv/a", ""),
        ("http://host/a.csv?b=c.txt#d.e", "csv"),
        ("http://host.csv", "csv"),
    ] {
        assert_eq!(extension(source), expected, "{source}");
    }
}
