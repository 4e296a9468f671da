//! `query_database` against a real Postgres and a real SQLite file.

use std::path::Path;

use anyhow::Result;
use e2e::{Pair, Postgres, broker, guard};
use serde_json::{Value, json};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection, Executor, PgConnection};

use crate::life::SOON;

/// A pair whose consumer knows these queries of this database, each `[sql, params]`.
async fn pair(database: &str, queries: &[(&str, &str, &[&str])]) -> Result<Pair> {
    // Kept: the processes of isolated tasks read the file anew.
    let dir = guard::scratch_dir("queries-")?.keep();
    let entry = |sql: &str, params: &[&str]| json!({"database": database, "sql": sql, "params": params, "max_rows": 3});
    let entries: serde_json::Map<String, Value> =
        queries.iter().map(|(name, sql, params)| ((*name).to_owned(), entry(sql, params))).collect();
    let file = dir.join("queries.json");
    std::fs::write(&file, Value::Object(entries).to_string())?;
    Pair::on(broker::shared().await?).consumer_env("QUERIES_FILE", &file.display().to_string()).start().await
}

fn wish(name: &str, params: &Value) -> Value {
    json!({"task": "query_database", "kwargs": {"name": name, "params": params}, "retry": {"max_retries": 0}})
}

async fn run(pair: &Pair, wish: &Value) -> Result<Value> {
    let id = pair.client().accepted(wish).await?;
    pair.client().await_terminal(&id, SOON).await
}

async fn assert_fails(pair: &Pair, name: &str, params: Value, kind: &str, message: &str) -> Result<()> {
    let mut wish = wish(name, &params);
    wish["time_limit"] = json!(if kind == "QueryTimeout" { 2 } else { 60 });
    let ended = run(pair, &wish).await?;
    assert_eq!((&ended["state"], &ended["error"]["type"]), (&json!("FAILURE"), &json!(kind)), "{name}: {ended:#}");
    assert!(ended["error"]["message"].as_str().unwrap_or_default().contains(message), "{name}: {ended:#}");
    Ok(())
}

const POSTGRES_TYPES: &str = r#"select true as "bool", 7::int2 as "int2", -8::int8 as "int8", 0.1::real as "float4",
    'NaN'::float8 as "nan", 1234567890.12345678901234567890 as "numeric", 'Grüße' as "text", 'ab'::char(4) as "char",
    '\x00ff'::bytea as "bytea", null::int as "null", '2026-11-20 15:04:05.5+01'::timestamptz as "timestamptz",
    '2026-11-20 15:04:05'::timestamp as "timestamp", '2026-11-20'::date as "date", '15:04'::time as "time",
    'infinity'::timestamptz as "never", '0190a000-0000-7000-8000-000000000000'::uuid as "uuid",
    '{"a": [1]}'::jsonb as "jsonb", '[null]'::json as "json", 'sad'::mood as "enum", to_json(array[1, 2]) as "array""#;

const POSTGRES_PARAMS: &str = r#"select $1::int + 1 as "int", $2 || '!' as "text", not $3::bool as "bool",
    $4::float8 / 2 as "float", $5::timestamptz + interval '1 day' as "time", $6::int is null as "null",
    $7::numeric * 2 as "numeric", $8::uuid as "uuid", $9::jsonb -> 'a' as "json", $10::mood as "enum",
    $11::text::inet::text as "cast""#;

async fn postgres_with_a_table() -> Result<Postgres> {
    let postgres = Postgres::start().await?;
    let mut connection = PgConnection::connect(&postgres.url()).await?;
    connection
        .execute(
            "create type mood as enum ('sad', 'happy'); create table orders (id serial primary key, buyer text);
             insert into orders (buyer) values ('ada'), ('bob'), ('bob');
             create function escape() returns int language plpgsql as $$
             begin set transaction read write; delete from orders; return 1; end $$;",
        )
        .await?;
    connection.close().await?;
    Ok(postgres)
}

#[tokio::test]
async fn postgres_values_and_parameters_keep_their_types() -> Result<()> {
    let postgres = postgres_with_a_table().await?;
    let names = ["i", "t", "b", "f", "at", "n", "d", "u", "j", "e", "c"];
    let buyers = "select id, buyer from orders where buyer = $1 and id > $2 order by id";
    let pair = pair(
        &postgres.url(),
        &[
            ("types", POSTGRES_TYPES, &[]),
            ("params", POSTGRES_PARAMS, &names),
            ("buyers", buyers, &["buyer", "after"]),
            ("all", "select * from orders order by id limit 1", &[]),
        ],
    )
    .await?;
    let types = run(&pair, &wish("types", &json!({}))).await?;
    let expected = json!([{
        "bool": true, "int2": 7, "int8": -8, "float4": 0.1, "nan": "NaN", "numeric": "1234567890.12345678901234567890",
        "text": "Grüße", "char": "ab  ", "bytea": "AP8=", "null": null, "timestamptz": "2026-11-20T14:04:05.5Z",
        "timestamp": "2026-11-20T15:04:05", "date": "2026-11-20", "time": "15:04:00", "never": "infinity",
        "uuid": "0190a000-0000-7000-8000-000000000000", "jsonb": {"a": [1]}, "json": [null], "enum": "sad",
        "array": [1, 2],
    }]);
    assert_eq!(types["result"], expected, "{types:#}");

    let uuid = "0190a000-0000-7000-8000-000000000000";
    let given = json!({
        "i": 41, "t": "é'; --", "b": false, "f": 1, "at": "2026-11-20T15:04:05+01:00", "n": null, "d": "0.000000001",
        "u": uuid, "j": {"a": {"b": 1}}, "e": "happy", "c": "10.0.0.1/8",
    });
    let params = run(&pair, &wish("params", &given)).await?;
    let expected = json!([{
        "int": 42, "text": "é'; --!", "bool": true, "float": 0.5, "time": "2026-11-21T14:04:05Z", "null": true,
        "numeric": "0.000000002", "uuid": uuid, "json": {"b": 1}, "enum": "happy", "cast": "10.0.0.1/8",
    }]);
    assert_eq!(params["result"], expected, "{params:#}");

    let bobs = run(&pair, &wish("buyers", &json!({"buyer": "bob", "after": 2}))).await?;
    assert_eq!(bobs["result"], json!([{"id": 3, "buyer": "bob"}]));
    let none = run(&pair, &wish("buyers", &json!({"buyer": "bob' or true --", "after": 0}))).await?;
    assert_eq!(none["result"], json!([]));

    let before = run(&pair, &wish("all", &json!({}))).await?;
    let mut connection = PgConnection::connect(&postgres.url()).await?;
    connection.execute("alter table orders add paid bool").await?;
    connection.close().await?;
    let after = run(&pair, &wish("all", &json!({}))).await?;
    let shown = [&before["result"], &after["result"]];
    assert_eq!(shown, [&json!([{"id": 1, "buyer": "ada"}]), &json!([{"id": 1, "buyer": "ada", "paid": null}])]);
    pair.stop().await
}

#[tokio::test]
async fn postgres_refuses_to_write_and_a_bad_call_says_what_is_wrong() -> Result<()> {
    let postgres = postgres_with_a_table().await?;
    let queries: [(&str, &str, &[&str]); 13] = [
        ("insert", "insert into orders (buyer) values ($1) returning id", &["buyer"]),
        ("sequence", "select nextval('orders_id_seq')", &[]),
        ("escape", "select escape()", &[]),
        ("setting", "select set_config('transaction_read_only', 'off', true)", &[]),
        ("statement", "set transaction read write", &[]),
        ("two", "rollback; delete from orders", &[]),
        ("block", "do 'begin set transaction read write; delete from orders; end'", &[]),
        ("many", "select generate_series(1, 4) as n", &[]),
        ("huge", "select repeat('x', 5000000) as x", &[]),
        ("slow", "select pg_sleep(60)", &[]),
        ("twice", "select 1 as a, 2 as a", &[]),
        ("interval", "select interval '1 day' as i", &[]),
        ("params", "select $1::int as n", &["n"]),
    ];
    let pair = pair(&postgres.url(), &queries).await?;
    let none = || json!({});
    for (name, params, kind, message) in [
        ("insert", json!({"buyer": "eve"}), "WriteRefused", "cannot execute INSERT in a read-only transaction"),
        ("sequence", none(), "WriteRefused", "cannot execute nextval() in a read-only transaction"),
        ("escape", none(), "QueryFailed", "read-write mode must be set before any query"),
        ("setting", none(), "QueryFailed", "read-write mode must be set before any query"),
        ("statement", none(), "QueryFailed", "read-write mode must be set before any query"),
        ("two", none(), "QueryFailed", "cannot insert multiple commands into a prepared statement"),
        ("block", none(), "QueryFailed", "read-write mode must be set before any query"),
        ("many", none(), "TooManyRows", "more than 3 rows"),
        ("huge", none(), "TooManyRows", "bytes of JSON"),
        ("slow", none(), "QueryTimeout", ""),
        ("twice", none(), "QueryFailed", "two columns have the name `a`"),
        ("interval", none(), "QueryFailed", "column `i` is of type interval"),
        ("params", none(), "InvalidArguments", "missing `n`"),
        ("params", json!({"n": 1, "m": 2}), "InvalidArguments", "unexpected `m`"),
        ("params", json!({"n": "1"}), "InvalidArguments", "`n` is not an integer of 32 bits"),
        ("other", none(), "UnknownQuery", "other"),
    ] {
        assert_fails(&pair, name, params, kind, message).await?;
    }
    let mut connection = PgConnection::connect(&postgres.url()).await?;
    let left: (i64, i64) =
        sqlx::query_as("select count(*), max(id)::int8 from orders").fetch_one(&mut connection).await?;
    assert_eq!(left, (3, 3));
    connection.close().await?;
    pair.stop().await
}

#[tokio::test]
async fn a_query_waits_for_its_postgres_and_its_password_is_shown_nowhere() -> Result<()> {
    let mut postgres = Postgres::start().await?;
    let wrong = postgres.url().replace("s3cret-of-postgres", "s3cret-and-wrong");
    let pair = pair(&wrong, &[("one", "select 1 as one", &[])]).await?;
    assert_fails(&pair, "one", json!({}), "DatabaseUnavailable", "password authentication failed").await?;
    let logs = std::fs::read_to_string(pair.consumers[0].log())?;
    assert!(!logs.contains("s3cret"), "{logs}");
    pair.stop().await?;

    let pair = self::pair(&postgres.url(), &[("one", "select 1 as one", &[])]).await?;
    assert_eq!(run(&pair, &wish("one", &json!({}))).await?["result"], json!([{"one": 1}]));
    postgres.stop().await?;
    let mut wish = wish("one", &json!({}));
    wish["retry"] = json!({"max_retries": 10, "backoff": 1, "backoff_max": 1});
    let id = pair.client().accepted(&wish).await?;
    let retrying = pair.client().await_state(&id, |task| task["state"] == "RETRY", SOON).await?;
    assert_eq!(retrying["error"]["type"], "DatabaseUnavailable", "{retrying:#}");
    assert!(!retrying.to_string().contains("s3cret"));
    postgres.start_again().await?;
    assert_eq!(pair.client().await_terminal(&id, SOON).await?["result"], json!([{"one": 1}]));
    pair.stop().await
}

async fn sqlite_with_a_table(file: &Path) -> Result<()> {
    let mut connection = SqliteConnectOptions::new().filename(file).create_if_missing(true).connect().await?;
    connection
        .execute("create table orders (id integer primary key, buyer text, price real, paid boolean, raw blob);")
        .await?;
    connection.execute("insert into orders values (1, 'Grüße', 0.5, true, x'00ff'), (2, null, 7, 0, 'text')").await?;
    Ok(connection.close().await?)
}

#[tokio::test]
async fn sqlite_answers_by_what_is_stored_and_refuses_to_write() -> Result<()> {
    let dir = guard::scratch_dir("sqlite-")?;
    let file = dir.path().join("orders.db");
    sqlite_with_a_table(&file).await?;
    let forever = "with recursive n(i) as (select 1 union all select i + 1 from n) select count(*) as n from n";
    let new = dir.path().join("new.db");
    let attach = format!("attach '{}' as o", new.display());
    let attach_writable = format!("attach 'file:{}?mode=rwc' as o", file.display());
    let queries: [(&str, &str, &[&str]); 10] = [
        ("all", "select * from orders order by id", &[]),
        (
            "params",
            "select $1 + 1 as i, $2 as s, $3 as b, $4 as f, $5 as n, typeof($1) as t",
            &["i", "s", "b", "f", "n"],
        ),
        ("insert", "insert into orders (buyer) values ($1)", &["buyer"]),
        ("pragma", "pragma query_only = off; delete from orders", &[]),
        ("attach", &attach, &[]),
        ("attach_writable", &attach_writable, &[]),
        ("many", "values (1), (2), (3), (4)", &[]),
        ("slow", forever, &[]),
        ("missing", "select * from nowhere", &[]),
        ("names", "select $1 as a, $2 as b", &["a"]),
    ];
    let pair = pair(&format!("sqlite:{}", file.display()), &queries).await?;
    let all = run(&pair, &wish("all", &json!({}))).await?;
    let expected = json!([
        {"id": 1, "buyer": "Grüße", "price": 0.5, "paid": 1, "raw": "AP8="},
        {"id": 2, "buyer": null, "price": 7.0, "paid": 0, "raw": "text"},
    ]);
    assert_eq!(all["result"], expected, "{all:#}");
    let given = json!({"i": 41, "s": "'; --", "b": true, "f": 0.5, "n": null});
    let params = run(&pair, &wish("params", &given)).await?;
    let expected = json!([{"i": 42, "s": "'; --", "b": 1, "f": 0.5, "n": null, "t": "integer"}]);
    assert_eq!(params["result"], expected, "{params:#}");
    let none = || json!({});
    for (name, params, kind, message) in [
        ("insert", json!({"buyer": "eve"}), "WriteRefused", "readonly"),
        ("pragma", none(), "WriteRefused", "readonly"),
        ("attach", none(), "DatabaseUnavailable", "unable to open"),
        ("attach_writable", none(), "QueryFailed", "access mode not allowed"),
        ("many", none(), "TooManyRows", "more than 3 rows"),
        ("slow", none(), "QueryTimeout", ""),
        ("missing", none(), "QueryFailed", "no such table"),
        ("names", json!({"a": 1}), "QueryFailed", "2 parameters"),
        ("params", json!({"i": [1], "s": 1, "b": 1, "f": 1, "n": 1}), "InvalidArguments", "`i`"),
    ] {
        assert_fails(&pair, name, params, kind, message).await?;
    }
    assert_eq!(run(&pair, &wish("all", &none())).await?["result"].as_array().map(Vec::len), Some(2));
    assert!(!new.exists());
    pair.stop().await?;

    let nowhere = format!("sqlite:{}", dir.path().join("nowhere.db").display());
    let pair = self::pair(&nowhere, &[("one", "select 1 as one", &[])]).await?;
    assert_fails(&pair, "one", none(), "DatabaseUnavailable", "unable to open").await?;
    assert!(!dir.path().join("nowhere.db").exists());
    pair.stop().await
}
