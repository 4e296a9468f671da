//! What the documents name exists.

use std::path::{Path, PathBuf};

use anyhow::Result;

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
fn tests_that_the_architecture_names_exist() -> Result<()> {
    let mut code = String::new();
    source(&root(), &mut code)?;
    let text = std::fs::read_to_string(root().join("ARCHITECTURE.md"))?;
    let named = text.split('`').skip(1).step_by(2);
    let tests: Vec<&str> = named.filter(|word| word.matches('_').count() >= 3 && !word.contains(' ')).collect();
    assert!(tests.len() >= 8, "too few to be all: {tests:?}");
    for test in tests {
        assert!(code.contains(&format!("fn {test}(")), "no test is named {test}");
    }
    Ok(())
}

#[test]
fn files_that_the_documents_name_exist() -> Result<()> {
    for document in ["README.md", "ARCHITECTURE.md"] {
        let text = std::fs::read_to_string(root().join(document))?;
        let named = text.split('`').skip(1).step_by(2).filter(|word| word.contains('/') && !word.contains(' '));
        let rooted = ["protocol/", "producer/", "consumer/", "e2e/", "deploy/"];
        for path in named.filter(|word| rooted.iter().any(|room| word.starts_with(room))) {
            assert!(root().join(path).exists() || root().join(format!("{path}.rs")).exists(), "{document}: {path}");
        }
    }
    Ok(())
}
