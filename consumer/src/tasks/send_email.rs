//! `send_email(to, subject, text, html=null)`: one mail over SMTP.
//!
//! It makes the message and decides what a refusal means. Connections are [`server`]'s.

mod server;

use std::time::Duration;

use anyhow::Context as _;
use lettre::Message;
use lettre::message::{Mailbox, MultiPart, SinglePart};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use uuid::Uuid;

use self::server::{Failure, MailServer};
use crate::config::TaskSettings;
use crate::context::{Cancelled, Context};
use crate::handler::{Handler, TaskError};
use crate::options::TaskOptions;

/// How long one attempt may take, from the connection to the server's last word.
const LIMIT: Duration = Duration::from_mins(1);
const MAX_RECIPIENTS: usize = 50;
const MAX_SUBJECT: usize = 500;
/// Mails on their way at once, each over a connection of its own.
const CONNECTIONS: u32 = 8;

pub(crate) struct SendEmail {
    sender: Option<Sender>,
}

struct Sender {
    server: MailServer,
    from: Mailbox,
}

/// Sends one mail through the worker's mail server.
///
/// The mail's `Message-ID` is made of the task's id and is the same over all attempts. When the server accepts a mail
/// and the worker dies, or loses the connection, before it has settled that, the mail is sent once more: a second copy
/// with the same `Message-ID`, by which mail systems can tell it. Nothing else sends a mail twice.
///
/// Fails with `InvalidAddress`, or with `MailRefused` when the server answers with a permanent error (5xx). Retries
/// with `MailDeferred` after a transient one (4xx), and with `MailServerUnavailable` when the server cannot be reached,
/// is not who its certificate should say, refuses the login or is silent.
#[derive(Deserialize, JsonSchema)]
pub(crate) struct Args {
    /// Who gets it: `ada@example.com`, `Ada <ada@example.com>`, or a list of at most 50. The server takes it for all of
    /// them or for none.
    to: Recipients,
    /// One line of at most 500 characters.
    subject: String,
    /// The mail as plain text.
    text: String,
    /// The same as HTML, for mail programs that show it instead.
    #[serde(default)]
    html: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(untagged, expecting = "neither an address nor a list of addresses")]
enum Recipients {
    One(String),
    Many(Vec<String>),
}

/// What became of the mail.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Sent {
    /// The mail's `Message-ID`, with its angle brackets.
    message_id: String,
    /// The server's answer, often the id of the mail in its queue.
    answer: String,
}

impl SendEmail {
    pub(crate) fn new(settings: &TaskSettings) -> anyhow::Result<Self> {
        let Some(url) = settings.smtp_url()? else { return Ok(Self { sender: None }) };
        let server = MailServer::new(&url).context("SMTP_URL")?;
        let from = settings.smtp_from.parse().context("SMTP_FROM")?;
        Ok(Self { sender: Some(Sender { server, from }) })
    }
}

impl Sender {
    fn message(&self, message_id: &str, args: Args) -> Result<Message, TaskError> {
        let invalid = |what: &str| TaskError::fail("InvalidArguments", what);
        if args.subject.chars().count() > MAX_SUBJECT || args.subject.contains(char::is_control) {
            return Err(invalid("argument `subject`: not one line of at most 500 characters"));
        }
        let to = match args.to {
            Recipients::One(to) => vec![to],
            Recipients::Many(to) => to,
        };
        if to.is_empty() || to.len() > MAX_RECIPIENTS {
            return Err(invalid("argument `to`: not 1 to 50 addresses"));
        }
        let mut message =
            Message::builder().message_id(Some(message_id.to_owned())).from(self.from.clone()).subject(args.subject);
        for address in to {
            message = message.to(mailbox(&address)?);
        }
        let message = match args.html {
            Some(html) => message.multipart(MultiPart::alternative_plain_html(args.text, html)),
            None => message.singlepart(SinglePart::plain(args.text)),
        };
        message.map_err(|error| TaskError::fail("MailRefused", error.to_string()))
    }
}

impl Handler for SendEmail {
    const NAME: &'static str = "send_email";
    const OPTIONS: TaskOptions = TaskOptions::new().concurrency_limit(CONNECTIONS);
    type Args = Args;
    type Output = Sent;

    async fn run(&self, args: Args, ctx: Context) -> Result<Sent, TaskError> {
        let Some(sender) = &self.sender else {
            return Err(TaskError::fail("NotConfigured", "the worker has no mail server: SMTP_URL is not set"));
        };
        let message_id = message_id(ctx.task_id(), sender.from.email.domain());
        let message = sender.message(&message_id, args)?;
        let limit = ctx.time_left().map_or(LIMIT, |left| left.min(LIMIT));
        let sent = tokio::select! {
            sent = timeout(limit, sender.server.send(&message)) => sent,
            reason = ctx.cancelled_by(|reason| reason != Cancelled::Shutdown) => return Err(reason.into()),
        };
        match sent {
            Ok(Ok(answer)) => Ok(Sent { message_id, answer }),
            Ok(Err(failure)) => Err(failure.into()),
            Err(_) => Err(TaskError::retry("MailServerUnavailable", format!("no answer within {limit:?}"))),
        }
    }
}

impl From<Failure> for TaskError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Mail(error) if error.is_permanent() || error.is_client() => {
                Self::fail("MailRefused", error.to_string())
            }
            Failure::Mail(error) if error.is_transient() => Self::retry("MailDeferred", error.to_string()),
            Failure::Mail(error) | Failure::Server(error) => Self::retry("MailServerUnavailable", error.to_string()),
        }
    }
}

fn mailbox(address: &str) -> Result<Mailbox, TaskError> {
    let invalid = |why: String| TaskError::fail("InvalidAddress", format!("{address:?} is no mail address: {why}"));
    // The parser folds a line break in a name away; whoever sends one means something else.
    if address.contains(char::is_control) {
        return Err(invalid("it has a control character".to_owned()));
    }
    address.parse().map_err(|error: lettre::address::AddressError| invalid(error.to_string()))
}

/// `<task id@sender's domain>`. An id that may not stand there (RFC 5322, 3.6.4: a dot-atom) is replaced by a hash.
fn message_id(task_id: &str, domain: &str) -> String {
    let is_atext = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-/=?^_`{|}~".contains(&byte);
    let is_atom = |part: &str| !part.is_empty() && part.bytes().all(is_atext);
    let left = if task_id.len() <= 200 && task_id.split('.').all(is_atom) {
        task_id.to_owned()
    } else {
        Uuid::new_v5(&Uuid::NAMESPACE_OID, task_id.as_bytes()).to_string()
    };
    let domain = if domain.is_ascii() { domain } else { "localhost" };
    format!("<{left}@{domain}>")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestRun;
    use serde_json::json;

    fn configured(url: Option<&str>, from: &str) -> anyhow::Result<SendEmail> {
        let (smtp_url, smtp_from) = (url.map(str::to_owned), from.to_owned());
        SendEmail::new(&TaskSettings { smtp_url, smtp_from, ..TaskSettings::default() })
    }

    fn formatted(args: serde_json::Value) -> Result<String, TaskError> {
        let sender = configured(Some("smtp://localhost"), "Errand <errand@example.com>").unwrap().sender.unwrap();
        let message = sender.message("<7@example.com>", serde_json::from_value(args).unwrap())?;
        Ok(String::from_utf8(message.formatted()).unwrap())
    }

    fn kind(result: Result<String, TaskError>) -> String {
        match result.unwrap_err() {
            TaskError::Fail { error } => error.kind,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn text_and_html_are_alternatives_in_seven_bits() {
        let to = json!(["Ada <ada@example.com>", "Żółw <bob@example.com>"]);
        let mail = formatted(json!({"to": to, "subject": "Grüße", "text": "hé", "html": "<p>hé"})).unwrap();
        assert!(mail.is_ascii(), "{mail}");
        for part in ["Message-ID: <7@example.com>\r\n", "multipart/alternative", "text/plain", "text/html", "Date: "] {
            assert!(mail.contains(part), "{part}: {mail}");
        }
    }

    #[test]
    fn no_argument_can_add_a_header() {
        let good = json!({"to": "ada@example.com", "subject": "s", "text": "t"});
        let header = "\r\nBcc: eve@example.com";
        for (field, value, refused) in [
            ("subject", format!("s{header}"), "InvalidArguments"),
            ("subject", "s\rBcc: x".to_owned(), "InvalidArguments"),
            ("to", format!("ada@example.com{header}"), "InvalidAddress"),
            ("to", format!("Ada{header} <ada@example.com>"), "InvalidAddress"),
            ("to", "ada@example.com, eve@example.com".to_owned(), "InvalidAddress"),
            ("to", "ada".to_owned(), "InvalidAddress"),
        ] {
            let mut args = good.clone();
            args[field] = json!(value);
            assert_eq!(kind(formatted(args)), refused, "{value:?}");
        }
        let mut args = good;
        args["text"] = json!(format!("t{header}"));
        let mail = formatted(args).unwrap();
        let (headers, _) = mail.split_once("\r\n\r\n").unwrap();
        assert!(!headers.contains("Bcc"), "{headers}");
    }

    #[test]
    fn recipients_and_subject_are_bounded() {
        for args in [
            json!({"to": [], "subject": "s", "text": "t"}),
            json!({"to": vec!["a@example.com"; 51], "subject": "s", "text": "t"}),
            json!({"to": "a@example.com", "subject": "s".repeat(501), "text": "t"}),
        ] {
            assert_eq!(kind(formatted(args)), "InvalidArguments");
        }
    }

    #[test]
    fn the_message_id_is_made_of_the_task_id() {
        assert_eq!(message_id("0190a000-0000.x", "example.com"), "<0190a000-0000.x@example.com>");
        for id in ["", "a b", "a>\r\nBcc: x", "..", "é"] {
            let made = message_id(id, "example.com");
            assert!(made.len() == 50 && made.is_ascii() && made == message_id(id, "example.com"), "{made}");
        }
    }

    #[test]
    fn a_setting_that_cannot_be_used_is_named() {
        for (url, from, named) in
            [("smtp://localhost", "nobody", "SMTP_FROM: "), ("http://localhost", "a@example.com", "SMTP_URL: ")]
        {
            let error = format!("{:#}", configured(Some(url), from).err().unwrap());
            assert!(error.starts_with(named), "{error}");
        }
    }

    #[tokio::test]
    async fn without_a_server_it_says_which_setting_is_missing() {
        let args = r#"["ada@example.com", "s", "t"]"#;
        let error = TestRun::new().call(configured(None, "").unwrap(), args, "{}").await.unwrap_err();
        let TaskError::Fail { error } = error else { panic!("{error:?}") };
        assert!(error.kind == "NotConfigured" && error.message.contains("SMTP_URL"), "{error:?}");
    }
}
