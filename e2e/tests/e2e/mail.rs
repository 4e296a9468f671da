//! `send_email` against a real SMTP server: what arrives, what is refused, and what comes twice.

use std::time::Duration;

use anyhow::Result;
use e2e::{MailServer, Pair, broker};
use serde_json::{Value, json};

use crate::life::SOON;

async fn pair(server: &MailServer) -> Result<Pair> {
    let url = format!("smtp://127.0.0.1:{}", server.port());
    let builder = Pair::on(broker::shared().await?).consumer_env("SMTP_URL", &url);
    builder.consumer_env("SMTP_FROM", "Errand <errand@example.com>").start().await
}

fn mail(to: &Value) -> Value {
    let kwargs = json!({"to": to, "subject": "Grüße aus Łódź", "text": "hé", "html": "<p>hé</p>"});
    json!({"task": "send_email", "kwargs": kwargs, "retry": {"backoff": 0.1, "jitter": false}})
}

async fn ends(pair: &Pair, wish: &Value) -> Result<Value> {
    let id = pair.client().accepted(wish).await?;
    pair.client().await_terminal(&id, SOON).await
}

#[tokio::test]
async fn a_mail_arrives_with_its_tasks_id_and_the_next_uses_the_same_connection() -> Result<()> {
    let mut server = MailServer::new()?;
    server.start().await?;
    let pair = pair(&server).await?;
    let to = json!(["Żółw <ada@example.com>", "bob@example.com"]);
    let ended = ends(&pair, &mail(&to)).await?;
    assert_eq!(ended["state"], "SUCCESS", "{ended:#}");
    let message_id = format!("<{}@example.com>", ended["task_id"].as_str().unwrap_or_default());
    assert_eq!(ended["result"], json!({"message_id": message_id, "answer": "OK, mail 1"}));
    let plain = json!({"task": "send_email", "args": ["ada@example.com", "plain", "text"]});
    assert_eq!(ends(&pair, &plain).await?["state"], "SUCCESS");

    let mails = server.mails()?;
    let [first, second] = mails.as_slice() else { panic!("{mails:#?}") };
    assert_eq!((&first["message_id"], &first["subject"]), (&json!(message_id), &json!("Grüße aus Łódź")));
    assert_eq!(first["from"], "Errand <errand@example.com>");
    assert_eq!(first["recipients"], json!(["ada@example.com", "bob@example.com"]));
    assert!(first["to"].as_str().unwrap_or_default().contains("Żółw"), "{first:#}");
    assert_eq!(first["type"], "multipart/alternative");
    let types: Vec<&Value> = [0, 1].iter().map(|part| &first["parts"][part]["type"]).collect();
    assert_eq!(types, ["text/plain", "text/html"]);
    assert_eq!(first["parts"][0]["text"].as_str().map(str::trim_end), Some("hé"));
    assert_eq!((&second["type"], &second["peer"]), (&json!("text/plain"), &first["peer"]));
    pair.stop().await
}

#[tokio::test]
async fn a_refused_recipient_fails_and_a_deferred_one_is_tried_again() -> Result<()> {
    let mut server = MailServer::new()?;
    server.start().await?;
    let pair = pair(&server).await?;
    let failure = |ended: &Value, kind: &str, named: &str| {
        assert_eq!((&ended["state"], &ended["retries"]), (&json!("FAILURE"), &json!(0)), "{ended:#}");
        assert_eq!(ended["error"]["type"], kind);
        assert!(ended["error"]["message"].as_str().unwrap_or_default().contains(named), "{ended:#}");
    };
    let refused = ends(&pair, &mail(&json!(["ada@example.com", "refused@example.com"]))).await?;
    failure(&refused, "MailRefused", "no such mailbox");
    failure(&ends(&pair, &mail(&json!("ada"))).await?, "InvalidAddress", "ada");
    assert!(server.mails()?.is_empty(), "one refused recipient is a mail for none");

    let mut wish = mail(&json!("deferred@example.com"));
    wish["retry"]["backoff"] = json!(1.2);
    let id = pair.client().accepted(&wish).await?;
    let retrying = pair.client().await_state(&id, |task| task["state"] == "RETRY", SOON).await?;
    assert_eq!(retrying["error"]["type"], "MailDeferred");
    let ended = pair.client().await_terminal(&id, SOON).await?;
    assert_eq!((&ended["state"], &ended["retries"]), (&json!("SUCCESS"), &json!(1)));
    assert_eq!(server.mails()?.len(), 1);
    pair.stop().await
}

#[tokio::test]
async fn a_mail_waits_for_its_server() -> Result<()> {
    let mut server = MailServer::new()?;
    let pair = pair(&server).await?;
    let mut wish = mail(&json!("ada@example.com"));
    wish["retry"] = json!({"max_retries": 20, "backoff": 1, "backoff_max": 1, "jitter": false});
    let id = pair.client().accepted(&wish).await?;
    let retrying = pair.client().await_state(&id, |task| task["state"] == "RETRY", SOON).await?;
    assert_eq!(retrying["error"]["type"], "MailServerUnavailable");
    server.start().await?;
    assert_eq!(pair.client().await_terminal(&id, SOON).await?["state"], "SUCCESS");
    assert_eq!(server.mails()?.len(), 1);
    pair.stop().await
}

#[tokio::test]
async fn a_second_copy_after_a_workers_death_has_the_same_message_id() -> Result<()> {
    let mut server = MailServer::new()?;
    server.start().await?;
    let mut pair = pair(&server).await?;
    let id = pair.client().accepted(&mail(&json!("unanswered@example.com"))).await?;
    server.await_mails(1, SOON).await?;
    pair.consumers[0].kill()?;
    pair.start_consumer(&[]).await?;
    assert_eq!(pair.client().await_terminal(&id, SOON).await?["state"], "SUCCESS");
    let mails = server.mails()?;
    assert_eq!(mails.len(), 2);
    assert_eq!(mails[0]["message_id"], mails[1]["message_id"]);
    Ok(())
}

#[tokio::test]
async fn a_password_goes_to_a_server_with_a_good_certificate_only_and_is_shown_nowhere() -> Result<()> {
    const PASSWORD: &str = "s3cret+of/mail";
    let mut server = MailServer::with_login("errand", PASSWORD)?;
    server.start().await?;
    let url = |password: &str| format!("smtps://errand:{password}@localhost:{}", server.port());
    let (good, bad) = (url("s3cret+of%2Fmail"), url("s3cret-and-wrong"));
    let mut pair = Pair::on(broker::shared().await?).consumers(0).start().await?;
    let certificate = server.certificate().display().to_string();
    let mut wish = mail(&json!("ada@example.com"));
    wish["retry"] = json!({"max_retries": 0});
    for (env, outcome) in [
        (vec![("SMTP_URL", good.as_str())], "FAILURE"),
        (vec![("SMTP_URL", bad.as_str()), ("SSL_CERT_FILE", certificate.as_str())], "FAILURE"),
        (vec![("SMTP_URL", good.as_str()), ("SSL_CERT_FILE", certificate.as_str())], "SUCCESS"),
    ] {
        let consumer = pair.start_consumer(&env).await?;
        let log = consumer.log().to_owned();
        let ended = ends(&pair, &wish).await?;
        assert_eq!(ended["state"], outcome, "{ended:#}");
        if outcome == "FAILURE" {
            assert_eq!(ended["error"]["type"], "MailServerUnavailable", "{ended:#}");
        }
        if let Some(mut consumer) = pair.consumers.pop() {
            consumer.terminate(Duration::from_secs(40)).await?;
        }
        assert!(!ended.to_string().contains("s3cret") && !std::fs::read_to_string(log)?.contains("s3cret"));
    }
    assert_eq!(server.mails()?.len(), 1);
    pair.stop().await
}
