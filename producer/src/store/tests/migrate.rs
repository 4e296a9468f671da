//! A store of every earlier schema, full, as this version opens it.

use sqlx::migrate::Migrator;
use sqlx::{ConnectOptions, SqliteConnection};

use super::*;

/// Every stage with a state that it goes with, and how a row of them is counted.
const ROWS: [(&str, &str, &str); 10] = [
    ("scheduled", "PENDING", "scheduled"),
    ("scheduled", "RETRY", "scheduled"),
    ("waiting", "PENDING", "waiting"),
    ("waiting", "STARTED", "waiting"),
    ("queued", "PENDING", "queued"),
    ("queued", "STARTED", "running"),
    ("retrying", "RETRY", "retrying"),
    ("done", "SUCCESS", "SUCCESS"),
    ("done", "FAILURE", "FAILURE"),
    ("done", "REVOKED", "REVOKED"),
];

/// A database of that schema with three rows of each kind, by columns that every schema has.
async fn fill(dir: &TempDir, version: i64) -> SqliteConnection {
    let mut migrations = sqlx::migrate!("migrations/sqlite").migrations.into_owned();
    migrations.retain(|migration| migration.version <= version);
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(dir.path().join("errand.db"));
    let mut connection = options.create_if_missing(true).connect().await.unwrap();
    Migrator::with_migrations(migrations).run(&mut connection).await.unwrap();
    sqlx::query("INSERT INTO store VALUES ('the-store')").execute(&mut connection).await.unwrap();
    for (number, (stage, state, _)) in (0..30).zip(ROWS.iter().cycle()) {
        let insert = "INSERT INTO tasks (id, task, queue, priority, args, kwargs, retry, created_at, stage, due_at,
            state, retries, worker, result, started_at, finished_at)
            VALUES (?1, 'add', iif(?2 % 2, 'mail', 'default'), 5, '[1, 2]', '{}', '{\"max_retries\":3}', ?3, ?4, ?5,
            ?6, ?7, 'w@h', iif(?6 = 'SUCCESS', '3', NULL), ?3, iif(?4 = 'done', ?3 + 1, NULL))";
        let insert = sqlx::query(insert).bind(format!("t{number}")).bind(number).bind(NOW + number).bind(*stage);
        let insert = insert.bind(NOW + 600_000).bind(*state).bind(i64::from(*state == "RETRY"));
        insert.execute(&mut connection).await.unwrap();
    }
    connection
}

fn counted(place: &str) -> u64 {
    3 * ROWS.iter().filter(|row| row.2 == place).count() as u64
}

#[tokio::test]
async fn a_full_store_of_every_schema_is_brought_up_to_date() {
    let latest = sqlx::migrate!("migrations/sqlite").iter().map(|migration| migration.version).max().unwrap();
    for version in 1..latest {
        let dir = TempDir::new().unwrap();
        drop(fill(&dir, version).await);
        let store = open(&dir).await;
        assert_eq!(store.id(), "the-store");
        let counts = store.counts().await.unwrap();
        let expected = Counts {
            accepted: 30,
            scheduled: counted("scheduled"),
            waiting: counted("waiting"),
            queued: counted("queued"),
            running: counted("running"),
            retrying: counted("retrying"),
            success: counted("SUCCESS"),
            failure: counted("FAILURE"),
            revoked: counted("REVOKED"),
            forgotten: 0,
        };
        assert_eq!(counts, expected, "from schema {version}");
        let page = store.list(&Filter::default(), None, 100).await.unwrap();
        assert_eq!(page.rows.len(), 30);
        let filter = Filter { states: vec![State::Retry], queue: Some("mail".to_owned()), ..Filter::default() };
        let retried: Vec<String> =
            store.list(&filter, None, 100).await.unwrap().rows.into_iter().map(|row| row.accepted.id).collect();
        assert_eq!(retried, ["t21", "t11", "t1"], "from schema {version}");
        let ended = row(&store, "t7").await;
        assert_eq!((ended.result.unwrap().get(), ended.accepted.retry.max_retries), ("3", Some(3)));
        let attempts = store.attempts("t7", &Whose::Anybody).await.unwrap().unwrap();
        assert_eq!((attempts.len(), attempts[0].state), (1, Some(State::Success)));
        assert_eq!(store.outstanding(), 15, "what is due and has not ended");
        go_on(&store).await;
    }
}

/// What was taken over lives on as if it had been accepted now.
async fn go_on(store: &Store) {
    let before = store.counts().await.unwrap();
    record(store, [reply("t5", success("3"), Some(0), Some(9))].into()).await.unwrap();
    record(store, [reply("t6", Report::Started, Some(2), Some(0))].into()).await.unwrap();
    assert!(matches!(store.forget("t7", &Whose::Anybody).await.unwrap(), Forgotten::Done));
    assert_eq!(store.attempts("t6", &Whose::Anybody).await.unwrap().unwrap().len(), 1);
    let after = store.counts().await.unwrap();
    let expected = Counts {
        success: before.success + 1,
        running: before.running,
        retrying: before.retrying - 1,
        forgotten: 1,
        ..before
    };
    assert_eq!(after, expected);
}
