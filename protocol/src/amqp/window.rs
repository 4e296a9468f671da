//! One window of confirmed publishes on a channel that has no other user.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use lapin::options::BasicPublishOptions;
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel, Confirmation, Connection};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, interval};

use super::convert::{basic_properties, short_string};
use super::fault::Fault;
use super::link::{self, Link};
use super::parcels::{Parcel, parcels};
use super::publish::{Publish, PublishError};
use crate::faults::{Bug, Point, bug, point};

/// How long the broker may say nothing to a window while it does not block publishers.
const CONFIRM_DEADLINE: Duration = Duration::from_secs(30);
/// How often a window that is under way looks whether the broker blocks publishers.
const CHECK: Duration = Duration::from_millis(500);

/// A publish and whoever waits for its confirm; nobody for one that may be lost.
pub(super) struct Pending {
    pub(super) publish: Arc<Publish>,
    pub(super) done: Option<Done>,
}

/// Publishes the window and answers every one of its callers.
///
/// What may share a message does ([`super::parcels`]), and its outcome is that of all its callers. All messages are polled
/// together, which costs a half to a third of awaiting them in turn. lapin attaches a return to whichever confirm comes
/// next, so each return is matched by its message id, which is the place in the window, once the window is done.
///
/// # Errors
/// The channel cannot be used any more, or the topology is to be declared again. Callers whose confirm had not come by
/// then are told that the outcome is unknown.
pub(super) async fn publish_window(
    connection: &Connection,
    channel: &Channel,
    link: &watch::Sender<Link>,
    window: Vec<Pending>,
) -> Result<(), Fault> {
    let (waiting, prepared) = prepare(parcels(window));
    let mut outcomes: Outcomes = prepared.iter().map(|_| None).collect();
    let sends = prepared.into_iter().enumerate();
    let sends = sends.map(|(place, ready)| async move { (place, send(channel, ready).await) });
    let collected = collect(connection, link, sends.collect(), &mut outcomes).await;
    let settled = settle(waiting, outcomes);
    collected.and(settled)
}

/// A publish in lapin's types.
struct Prepared {
    publish: Arc<Publish>,
    /// Whether it comes back when it reaches no queue.
    mandatory: bool,
    exchange: ShortString,
    routing_key: ShortString,
    properties: BasicProperties,
}

pub(super) type Done = oneshot::Sender<Result<(), PublishError>>;

/// Answers what cannot be put on the wire at all, keeps the rest.
fn prepare(parcels: Vec<Parcel>) -> (Vec<Parcel>, Vec<Prepared>) {
    let mut waiting = Vec::with_capacity(parcels.len());
    let mut prepared = Vec::with_capacity(parcels.len());
    for parcel in parcels {
        match prepare_one(parcel.publish.clone(), !parcel.waiting.is_empty(), prepared.len()) {
            Ok(ready) => {
                prepared.push(ready);
                waiting.push(parcel);
            }
            Err(fault) => answer(parcel.waiting, &Err(PublishError::Malformed(fault.to_string()))),
        }
    }
    (waiting, prepared)
}

fn prepare_one(publish: Arc<Publish>, mandatory: bool, place: usize) -> Result<Prepared, Fault> {
    Ok(Prepared {
        exchange: short_string(&publish.exchange)?,
        routing_key: short_string(&publish.routing_key)?,
        properties: basic_properties(&publish.message.properties)?.with_message_id(place.to_string().into()),
        mandatory,
        publish,
    })
}

#[expect(clippy::disallowed_methods, reason = "this is the publisher")]
async fn send(channel: &Channel, ready: Prepared) -> Result<Confirmation, lapin::Error> {
    let Prepared { publish, mandatory, exchange, routing_key, properties } = ready;
    let options = BasicPublishOptions { mandatory: mandatory && !bug(Bug::NoMandatory), immediate: false };
    let confirm = channel.basic_publish(exchange, routing_key, options, &publish.message.body, properties).await?;
    point(Point::PublishSent).await;
    if bug(Bug::NoConfirm) {
        return Ok(Confirmation::Ack(None));
    }
    confirm.await
}

/// What the broker said, by place; `None` while it has said nothing.
type Outcomes = Vec<Option<Result<Confirmation, lapin::Error>>>;

/// Awaits the confirms and keeps each as it comes.
///
/// The deadline counts from the latest confirm, and stands still while the broker blocks publishers: what was sent is
/// delivered once it unblocks, and a second copy would run the tasks twice. The heartbeat still ends a dead connection.
async fn collect<S>(
    connection: &Connection,
    link: &watch::Sender<Link>,
    mut sends: FuturesUnordered<S>,
    outcomes: &mut Outcomes,
) -> Result<(), Fault>
where
    S: Future<Output = (usize, Result<Confirmation, lapin::Error>)>,
{
    let mut check = interval(CHECK);
    let mut latest = Instant::now();
    loop {
        tokio::select! {
            biased;
            sent = sends.next() => {
                let Some((place, outcome)) = sent else { return Ok(()) };
                outcomes[place] = Some(outcome);
                latest = Instant::now();
            }
            _ = check.tick() => {
                let blocked = connection.status().blocked();
                link::set(link, if blocked { Link::Blocked } else { Link::Ready });
                if blocked {
                    latest = Instant::now();
                } else if latest.elapsed() > CONFIRM_DEADLINE {
                    return Err(Fault::Deadline { what: "a window of publishes", deadline: CONFIRM_DEADLINE });
                }
            }
        }
    }
}

fn settle(mut waiting: Vec<Parcel>, outcomes: Outcomes) -> Result<(), Fault> {
    if bug(Bug::SharedChannel) && !waiting.is_empty() {
        waiting.rotate_right(1);
    }
    let mut fault = Ok(());
    let mut returned = HashMap::new();
    let mut verdicts = Vec::with_capacity(outcomes.len());
    for outcome in outcomes {
        let (verdict, message) = match outcome {
            Some(Ok(Confirmation::Ack(message))) => (Ok(()), message),
            Some(Ok(Confirmation::Nack(message))) => (Err(PublishError::Nacked), message),
            Some(Ok(Confirmation::NotRequested)) => {
                fault = Err(Fault::NotConfirming);
                (Err(PublishError::Unknown(Fault::NotConfirming.to_string())), None)
            }
            Some(Err(error)) => {
                let unknown = PublishError::Unknown(error.to_string());
                fault = Err(error.into());
                (Err(unknown), None)
            }
            None => (Err(PublishError::Unknown("no confirm came in time".to_owned())), None),
        };
        returned.extend(message.as_ref().and_then(place_of));
        verdicts.push(verdict);
    }
    for (place, (Parcel { publish, waiting }, verdict)) in waiting.into_iter().zip(verdicts).enumerate() {
        let Some(reason) = returned.remove(&place) else {
            answer(waiting, &verdict);
            continue;
        };
        if !publish.exchange.is_empty() {
            fault = Err(Fault::NoQueue { exchange: publish.exchange.clone() });
        }
        answer(waiting, &Err(PublishError::Returned(reason)));
    }
    fault
}

/// Which publish of the window came back, and why.
fn place_of(message: &lapin::message::BasicReturnMessage) -> Option<(usize, String)> {
    let place = message.delivery.properties.message_id().as_ref()?.as_str().parse().ok()?;
    Some((place, message.reply_text.to_string()))
}

/// Tells all that wait for it.
pub(super) fn answer(waiting: impl IntoIterator<Item = Done>, verdict: &Result<(), PublishError>) {
    for done in waiting {
        // The caller may have given up waiting; then nobody wants the verdict.
        let _ = done.send(verdict.clone());
    }
}
