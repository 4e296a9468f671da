//! One window of confirmed publishes on a channel that has no other user.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::future::join_all;
use lapin::options::BasicPublishOptions;
use lapin::{BasicProperties, Channel, Confirmation, Connection};
use tokio::sync::oneshot;

use super::convert::{basic_properties, short_string};
use super::fault::Fault;
use super::publish::{Publish, PublishError};

/// How long the broker may take for a window while it does not block publishers.
const CONFIRM_DEADLINE: Duration = Duration::from_secs(30);

/// A publish and whoever waits for its confirm.
pub(super) struct Pending {
    pub(super) publish: Publish,
    pub(super) done: oneshot::Sender<Result<(), PublishError>>,
}

/// Publishes the window and answers every one of its callers.
///
/// All publishes are polled together, which costs a half to a third of awaiting them in turn. lapin attaches a return to
/// whichever confirm comes next, so the whole window is awaited and each return is then matched by its message id, which
/// is the place in the window.
///
/// # Errors
/// The channel cannot be used any more. Callers whose confirm had not come by then are told that the outcome is unknown.
pub(super) async fn publish_window(
    connection: &Connection,
    channel: &Channel,
    window: Vec<Pending>,
) -> Result<(), Fault> {
    let (window, prepared) = prepare(window);
    let sends = join_all(prepared.iter().map(|ready| send(channel, ready)));
    let outcomes = match await_window(connection, sends).await {
        Ok(outcomes) => outcomes,
        Err(fault) => {
            for pending in window {
                answer(pending.done, Err(PublishError::Unknown(fault.to_string())));
            }
            return Err(fault);
        }
    };
    settle(window, outcomes)
}

struct Prepared {
    publish: Publish,
    exchange: lapin::types::ShortString,
    routing_key: lapin::types::ShortString,
    properties: BasicProperties,
}

struct Waiting {
    done: oneshot::Sender<Result<(), PublishError>>,
}

/// Answers what cannot be put on the wire at all, keeps the rest.
fn prepare(window: Vec<Pending>) -> (Vec<Waiting>, Vec<Prepared>) {
    let mut waiting = Vec::with_capacity(window.len());
    let mut prepared = Vec::with_capacity(window.len());
    for Pending { publish, done } in window {
        match prepare_one(publish, prepared.len()) {
            Ok(ready) => {
                prepared.push(ready);
                waiting.push(Waiting { done });
            }
            Err(fault) => answer(done, Err(PublishError::Malformed(fault.to_string()))),
        }
    }
    (waiting, prepared)
}

fn prepare_one(publish: Publish, place: usize) -> Result<Prepared, Fault> {
    Ok(Prepared {
        exchange: short_string(&publish.exchange)?,
        routing_key: short_string(&publish.routing_key)?,
        properties: basic_properties(&publish.message.properties)?.with_message_id(place.to_string().into()),
        publish,
    })
}

#[expect(clippy::disallowed_methods, reason = "this is the publisher")]
async fn send(channel: &Channel, ready: &Prepared) -> Result<Confirmation, lapin::Error> {
    let options = BasicPublishOptions { mandatory: true, immediate: false };
    let (exchange, routing_key) = (ready.exchange.clone(), ready.routing_key.clone());
    let body = &ready.publish.message.body;
    channel.basic_publish(exchange, routing_key, options, body, ready.properties.clone()).await?.await
}

type Outcomes = Vec<Result<Confirmation, lapin::Error>>;

/// The deadline does not run while the broker blocks publishers: what was sent is delivered once it unblocks, and a
/// second copy would run the tasks twice. The heartbeat still ends a dead connection.
async fn await_window(connection: &Connection, sends: impl Future<Output = Outcomes>) -> Result<Outcomes, Fault> {
    let mut sends = std::pin::pin!(sends);
    loop {
        match tokio::time::timeout(CONFIRM_DEADLINE, &mut sends).await {
            Ok(outcomes) => return Ok(outcomes),
            Err(_) if connection.status().blocked() => {}
            Err(_) => return Err(Fault::Deadline { what: "a window of publishes", deadline: CONFIRM_DEADLINE }),
        }
    }
}

fn settle(window: Vec<Waiting>, outcomes: Outcomes) -> Result<(), Fault> {
    let mut fault = Ok(());
    let mut returned = HashMap::new();
    let mut verdicts = Vec::with_capacity(outcomes.len());
    for outcome in outcomes {
        let verdict = match outcome {
            Ok(Confirmation::Ack(message)) => {
                returned.extend(message.as_ref().and_then(place_of));
                Ok(())
            }
            Ok(Confirmation::Nack(message)) => {
                returned.extend(message.as_ref().and_then(place_of));
                Err(PublishError::Nacked)
            }
            Ok(Confirmation::NotRequested) => {
                fault = Err(Fault::NotConfirming);
                Err(PublishError::Unknown(Fault::NotConfirming.to_string()))
            }
            Err(error) => {
                let unknown = PublishError::Unknown(error.to_string());
                fault = Err(error.into());
                Err(unknown)
            }
        };
        verdicts.push(verdict);
    }
    for (place, (waiting, verdict)) in window.into_iter().zip(verdicts).enumerate() {
        let verdict = match returned.remove(&place) {
            Some(reason) => Err(PublishError::Returned(reason)),
            None => verdict,
        };
        answer(waiting.done, verdict);
    }
    fault
}

/// Which publish of the window came back, and why.
fn place_of(message: &lapin::message::BasicReturnMessage) -> Option<(usize, String)> {
    let place = message.delivery.properties.message_id().as_ref()?.as_str().parse().ok()?;
    Some((place, message.reply_text.to_string()))
}

fn answer(done: oneshot::Sender<Result<(), PublishError>>, verdict: Result<(), PublishError>) {
    // The caller may have given up waiting; then nobody wants the verdict.
    let _ = done.send(verdict);
}
