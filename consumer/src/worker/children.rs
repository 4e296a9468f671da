//! Publishes the children that running handlers submit.
//!
//! A child of a task that came from a producer of ours goes to that producer's reply queue and becomes a row there, like
//! one that came over HTTP. A child of a Celery client's task has no producer: it goes straight to its queue.

use std::time::Duration;

use protocol::amqp::{Publish, PublishError};
use protocol::backoff::Backoff;
use protocol::faults::{Point, point};
use protocol::message::Message;
use protocol::task::TaskMessage;
use protocol::task::forward::forward_of;
use time::OffsetDateTime;
use tokio::time::{Instant, sleep, timeout_at};

use super::settle::{Origin, Settle};
use crate::signature::{Signature, SubmitError};

/// How long a handler waits for the broker to take a child.
const PATIENCE: Duration = Duration::from_secs(30);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

impl Settle {
    /// Publishes a child and waits for the confirm.
    pub(super) async fn submit(
        &self,
        parent: &Origin<'_>,
        task_id: &str,
        signature: &Signature,
    ) -> Result<(), SubmitError> {
        let publish = self.child(parent, task_id, signature, self.now(parent.task));
        let deadline = Instant::now() + PATIENCE;
        let mut backoff = Backoff::default();
        let mut last = "it is not connected".to_owned();
        loop {
            let attempt = async {
                self.publisher.ready().await;
                self.publisher.publish(publish.clone()).await
            };
            match timeout_at(deadline, attempt).await {
                Ok(Ok(())) => {
                    point(Point::ChildConfirmed).await;
                    return Ok(());
                }
                Ok(Err(PublishError::Malformed(why))) => return Err(SubmitError::Invalid(why)),
                Ok(Err(error)) => last = error.to_string(),
                Err(_) => return Err(SubmitError::Unavailable(last)),
            }
            sleep(backoff.next_delay(LONGEST_PAUSE)).await;
        }
    }

    fn child(&self, parent: &Origin<'_>, task_id: &str, signature: &Signature, now: OffsetDateTime) -> Publish {
        let queue = signature.queue.as_deref().unwrap_or(parent.queue);
        let (args, kwargs) = (signature.args_json(), signature.kwargs_json());
        let producer = parent.task.submit_to();
        let after = |wait: Option<Duration>| wait.and_then(|wait| now.checked_add(wait.try_into().ok()?));
        let mut message = TaskMessage {
            priority: signature.priority,
            eta: after(signature.countdown).filter(|_| producer.is_some()),
            expires: after(signature.expires),
            time_limit: signature.time_limit,
            soft_time_limit: signature.soft_time_limit,
            retry: signature.retry,
            origin: &self.worker,
            ..TaskMessage::child_of(parent.task, queue, task_id, &signature.task, &args, &kwargs)
        }
        .message();
        self.redactions.apply(&mut message.properties.headers, &signature.task, &args, &kwargs);
        match producer {
            Some(reply_to) => Publish::to_queue(reply_to.to_owned(), message).packable(parent.task.packed_replies),
            None => self.task_publish(waiting(message, signature.countdown), queue),
        }
    }
}

fn waiting(message: Message, countdown: Option<Duration>) -> Message {
    match countdown {
        Some(wait) => forward_of(&message, wait),
        None => message,
    }
}
