//! Hears commands and answers them, and publishes events: those of tasks gathered, those of the worker at once.

use std::sync::Arc;
use std::time::Duration;

use protocol::amqp::{Mailbox, Outgoing, Publish};
use protocol::heartbeat::HEARTBEAT_INTERVAL;
use protocol::message::{CONTENT_ENCODING, CONTENT_TYPE, Message, Properties};
use protocol::topology::{EVENTS, PIDBOX_REPLIES};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use super::answers::{Then, answer};
use super::events::{Event, Told, epoch};
use super::requests::{ReplyTo, Request, is_over};
use crate::worker::Worker;

/// The most events in a message.
const TOGETHER: usize = 200;
/// How long events of tasks gather.
const GATHER: Duration = Duration::from_millis(100);
/// Where several events of tasks go together, as a list.
const GATHERED: &str = "task.multi";
/// A ticket comes from a stranger and goes back in a header.
const MAX_TICKET: usize = 255;

/// Talks until `close` or the end of the mailbox, and says last that the worker is gone.
pub(super) async fn run(worker: Arc<Worker>, mailbox: Mailbox, mut told: Told, close: CancellationToken) {
    let Mailbox { received, outgoing, connected } = mailbox;
    let talk = Talk { worker: &worker, outgoing };
    tokio::select! {
        () = close.cancelled() => {}
        () = talk.hear(received) => {}
        () = talk.gather(&mut told) => {}
        () = talk.live(connected) => {}
    }
    worker.celery.events.switch(false);
    while let Some(events) = rest(&mut told) {
        talk.publish_together(events);
    }
    talk.say("worker-offline");
}

struct Talk<'a> {
    worker: &'a Worker,
    outgoing: Outgoing,
}

impl Talk<'_> {
    async fn hear(&self, mut received: mpsc::Receiver<Message>) {
        while let Some(message) = received.recv().await {
            match Request::decode(&message) {
                Ok(request) => self.obey(&message, &request),
                Err(error) => tracing::debug!(%error, "a message of Celery's remote control is passed over"),
            }
        }
    }

    fn obey(&self, message: &Message, request: &Request) {
        let celery = &self.worker.celery;
        if let Some(time) = message.properties.headers.get("clock").and_then(Value::as_u64) {
            celery.events.see(time);
        }
        let over = is_over(message, epoch(OffsetDateTime::now_utc()));
        let Some(present) = &celery.present else { return };
        if over || !request.is_for(&self.worker.config.worker_name) {
            return;
        }
        let (answer, then) = answer(self.worker, present, request);
        if let Some(to) = &request.reply_to {
            self.reply(to, request.ticket.as_deref(), answer);
        }
        if let Then::Say(kind) = then {
            self.say(kind);
        }
    }

    /// To Celery's exchange of replies only: another one that is not there would cost the connection.
    fn reply(&self, to: &ReplyTo, ticket: Option<&str>, answer: Value) {
        let ticket = ticket.filter(|ticket| ticket.len() <= MAX_TICKET);
        if to.exchange != PIDBOX_REPLIES || to.routing_key.len() > 255 {
            return tracing::debug!("an answer is wanted where none is sent");
        }
        let headers = json!({"ticket": ticket, "clock": self.worker.celery.events.tick()});
        let mut body = Map::new();
        body.insert(self.worker.config.worker_name.clone(), answer);
        self.publish(PIDBOX_REPLIES, &to.routing_key, headers, &Value::Object(body));
    }

    async fn gather(&self, told: &mut Told) {
        let mut events = Vec::new();
        while told.recv_many(&mut events, TOGETHER).await > 0 {
            if events.len() < TOGETHER {
                sleep(GATHER).await;
                events.extend(rest_of(told, TOGETHER - events.len()));
            }
            self.publish_together(std::mem::take(&mut events));
        }
    }

    fn publish_together(&self, events: Vec<Event>) {
        let events = events.into_iter().map(Value::Object).collect();
        self.publish_event(GATHERED, &Value::Array(events));
    }

    /// Says that the worker is there, at once on every new connection.
    async fn live(&self, mut connected: watch::Receiver<bool>) {
        let mut beats = interval(HEARTBEAT_INTERVAL);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                changed = connected.changed() => match changed {
                    Ok(()) if *connected.borrow_and_update() => self.say("worker-online"),
                    Ok(()) => {}
                    Err(_) => return,
                },
                _ = beats.tick() => if *connected.borrow() {
                    self.say("worker-heartbeat");
                },
            }
        }
    }

    fn say(&self, kind: &str) {
        let celery = &self.worker.celery;
        let (active, processed) = celery.present.as_ref().map(super::Present::counts).unwrap_or_default();
        let fields = json!({
            "freq": HEARTBEAT_INTERVAL.as_secs_f64(),
            "active": active,
            "processed": processed,
            "loadavg": load(),
            "sw_ident": "errand",
            "sw_ver": env!("CARGO_PKG_VERSION"),
            "sw_sys": "Linux",
        });
        self.publish_event(&kind.replacen('-', ".", 1), &Value::Object(celery.events.event(kind, fields)));
    }

    fn publish_event(&self, routing_key: &str, event: &Value) {
        let headers = json!({"hostname": self.worker.config.worker_name});
        self.publish(EVENTS, routing_key, headers, event);
    }

    fn publish(&self, exchange: &str, routing_key: &str, headers: Value, body: &Value) {
        let properties = Properties {
            content_type: Some(CONTENT_TYPE.to_owned()),
            content_encoding: Some(CONTENT_ENCODING.to_owned()),
            headers: if let Value::Object(headers) = headers { headers } else { Map::new() },
            priority: Some(0),
            ..Properties::default()
        };
        let message = Message { properties, body: body.to_string().into_bytes() };
        let (exchange, routing_key) = (exchange.to_owned(), routing_key.to_owned());
        self.outgoing.post(Publish::to(exchange, routing_key, message));
    }
}

fn rest_of(told: &mut Told, max: usize) -> impl Iterator<Item = Event> {
    std::iter::from_fn(|| told.try_recv().ok()).take(max)
}

/// What was told and not published yet, as much as goes together.
fn rest(told: &mut Told) -> Option<Vec<Event>> {
    let events: Vec<Event> = rest_of(told, TOGETHER).collect();
    (!events.is_empty()).then_some(events)
}

/// The machine's load, as Celery's workers say it.
fn load() -> Vec<f64> {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).filter_map(|figure| figure.parse().ok()).collect()
}
