//! Owns what the pair puts on the wire for one task: its message, its result's and the answer to its client. The floor
//! sends the same through the same exchange and queues, with other ids.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use e2e::broker::Endpoint;
use e2e::{Broker, Pair, Service};
use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicGetOptions, QueuePurgeOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::link::Link;

/// The queue that tasks go to when nothing else is said.
pub(super) const QUEUE: &str = "errand.default";
/// For each step of the recording.
const DEADLINE: Duration = Duration::from_secs(30);

/// Where a message was published.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Address {
    pub(super) exchange: String,
    pub(super) routing_key: String,
}

/// A message as it lay in its queue.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Recorded {
    pub(super) to: Address,
    /// All but the headers.
    properties: BasicProperties,
    headers: Option<FieldTable>,
    body: Vec<u8>,
    /// The id of the task.
    id: String,
    /// Where in the body the id is, if it is there.
    place: Option<usize>,
}

/// The answer to a submit.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Answer {
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: String,
}

/// One task on its way, and the virtual host with its exchange and queues, which nobody else uses any more.
#[derive(Debug, Clone)]
pub struct Sample {
    pub(super) vhost: String,
    /// Bytes of its argument.
    pub(super) payload: usize,
    pub(super) answer: Answer,
    pub(super) task: Recorded,
    pub(super) reply: Recorded,
}

impl Sample {
    /// Sends a task of so many bytes through a pair of its own and writes down what it becomes.
    ///
    /// # Errors
    /// The pair does not start, or not all of it came within half a minute.
    pub async fn record(broker: &Broker, payload: usize) -> Result<Self> {
        let mut pair = Pair::on(broker).consumers(0).start().await?;
        let (endpoint, vhost) = (broker.endpoint(), pair.vhost().to_owned());
        let link = Link::open(&broker.amqp_url(&vhost)).await?;
        let submission = json!({"task": "echo", "args": ["x".repeat(payload)]});
        let accepted = pair.client().submit(&submission).await?;
        ensure!(accepted.status == 202, "the submit is answered {}: {}", accepted.status, accepted.text);
        let id = accepted.body["task_id"].as_str().context("accepted without an id")?.to_owned();
        let task = take(&link, endpoint, &vhost, QUEUE, &id).await?;
        let results = task.reply_to()?.to_owned();
        // A worker is ready once a producer has answered it; afterwards that one would take the result.
        pair.start_consumer(&[]).await?;
        pair.producer.kill()?;
        link.publish(&task.to, task.with_headers(task.headers.clone()), &task.body).await?;
        let reply = take(&link, endpoint, &vhost, &results, &id).await?;
        for service in &mut pair.consumers {
            service.terminate(DEADLINE).await?;
        }
        pair.consumers.iter_mut().chain([&mut pair.producer]).for_each(Service::silence);
        for queue in [QUEUE, &results] {
            link.consumer().queue_purge(queue.into(), QueuePurgeOptions::default()).await?;
        }
        link.close().await?;
        let headers = accepted.headers.iter().filter(|(name, _)| *name != "content-length" && *name != "date");
        let headers = headers.map(|(name, value)| Ok((name.to_string(), value.to_str()?.to_owned())));
        let answer = Answer { headers: headers.collect::<Result<_>>()?, body: accepted.text };
        Ok(Self { vhost, payload, answer, task, reply })
    }

    /// The queue that results wait in.
    pub(super) fn results(&self) -> &str {
        &self.reply.to.routing_key
    }
}

/// The message of that task, off its queue. What else lies before it is dropped: a worker says more than results.
async fn take(link: &Link, endpoint: &Endpoint, vhost: &str, queue: &str, id: &str) -> Result<Recorded> {
    loop {
        endpoint.await_depth(vhost, queue, |depth| depth.ready > 0, DEADLINE).await?;
        let got = link.consumer().basic_get(queue.into(), BasicGetOptions::default()).await?;
        let delivery = got.context("somebody else took it")?.delivery;
        delivery.acker.ack(BasicAckOptions::default()).await?;
        let recorded = Recorded::of(delivery, id);
        if recorded.place.is_some() || recorded.has_its_id() {
            return Ok(recorded);
        }
    }
}

impl Recorded {
    fn of(delivery: Delivery, id: &str) -> Self {
        let Delivery { exchange, routing_key, properties, data: body, .. } = delivery;
        let to = Address { exchange: exchange.to_string(), routing_key: routing_key.to_string() };
        let headers = properties.headers().clone();
        let properties = if headers.is_some() { properties.with_headers(FieldTable::default()) } else { properties };
        let place = body.windows(id.len()).position(|window| window == id.as_bytes());
        Self { to, properties, headers, body, id: id.to_owned(), place }
    }

    fn has_its_id(&self) -> bool {
        self.properties.correlation_id().as_ref().is_some_and(|correlation_id| correlation_id.as_str() == self.id)
    }

    fn with_headers(&self, headers: Option<FieldTable>) -> BasicProperties {
        let properties = self.properties.clone();
        match headers {
            Some(headers) => properties.with_headers(headers),
            None => properties,
        }
    }

    /// The same message of the task of that number: its properties.
    pub(super) fn properties(&self, number: u64) -> BasicProperties {
        let id = self.id_of(number);
        let mut headers = self.headers.clone();
        if let Some(headers) = &mut headers {
            for name in ["id", "root_id"] {
                if headers.contains_key(name) {
                    headers.insert(name.into(), AMQPValue::LongString(id.as_str().into()));
                }
            }
        }
        self.with_headers(headers).with_correlation_id(id.into())
    }

    /// Its body, which knows no id.
    pub(super) fn body(&self) -> &[u8] {
        &self.body
    }

    /// The queue that its result is to go to.
    fn reply_to(&self) -> Result<&str> {
        self.properties.reply_to().as_ref().map(ShortString::as_str).context("a task without a reply queue")
    }

    /// As many bytes as the recorded one.
    fn id_of(&self, number: u64) -> String {
        format!("{number:0width$}", width = self.id.len())
    }

    /// The number of the task that a message of the floor's is about.
    pub(super) fn number(properties: &BasicProperties) -> Result<u64> {
        let id = properties.correlation_id().as_ref().context("a message without a correlation id")?;
        Ok(id.as_str().parse()?)
    }

    /// The bodies of these tasks as one: alone as recorded, several as an array.
    pub(super) fn pack(&self, numbers: impl ExactSizeIterator<Item = u64>) -> Result<Vec<u8>> {
        let place = self.place.context("a result that does not name its task")?;
        let packed = numbers.len() > 1;
        let mut body = Vec::with_capacity((self.body.len() + 1) * numbers.len() + 1);
        for (index, number) in numbers.enumerate() {
            if packed {
                body.push(if index == 0 { b'[' } else { b',' });
            }
            let start = body.len() + place;
            body.extend_from_slice(&self.body);
            body[start..start + self.id.len()].copy_from_slice(self.id_of(number).as_bytes());
        }
        if packed {
            body.push(b']');
        }
        Ok(body)
    }

    /// The numbers of the tasks in a body that [`Recorded::pack`] made.
    pub(super) fn unpack(&self, body: &[u8]) -> Result<Vec<u64>> {
        let place = self.place.context("a result that does not name its task")?;
        let several = body.len() != self.body.len();
        let records = if several { body.get(1..).unwrap_or_default() } else { body };
        let records = records.chunks(self.body.len() + usize::from(several));
        records.map(|record| self.number_in(record.get(place..place + self.id.len()))).collect()
    }

    fn number_in(&self, id: Option<&[u8]>) -> Result<u64> {
        let Some(id) = id else { bail!("a result that is no copy of {}", String::from_utf8_lossy(&self.body)) };
        Ok(std::str::from_utf8(id)?.parse()?)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn recorded() -> Recorded {
        let body = br#"{"task_id":"ab-cd","result":1}"#.to_vec();
        let mut delivery = Delivery::mock(1, "".into(), "results".into(), false, body);
        let headers = [("id".into(), AMQPValue::LongString("ab-cd".into())), ("lang".into(), AMQPValue::Void)];
        let headers = FieldTable::from(BTreeMap::from(headers));
        delivery.properties = BasicProperties::default().with_correlation_id("ab-cd".into()).with_headers(headers);
        Recorded::of(delivery, "ab-cd")
    }

    #[test]
    fn what_is_packed_is_json_and_unpacks_to_the_same_numbers() {
        let recorded = recorded();
        for numbers in [vec![7], vec![0, 99_999], (0..300).collect()] {
            let body = recorded.pack(numbers.iter().copied()).unwrap();
            let parsed: serde_json::Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(parsed.as_array().map_or(1, Vec::len), numbers.len());
            assert_eq!(recorded.unpack(&body).unwrap(), numbers);
        }
        assert!(recorded.unpack(b"{}").is_err());
    }

    #[test]
    fn a_message_of_another_number_has_the_recorded_size() {
        let properties = recorded().properties(42);
        assert_eq!(Recorded::number(&properties).unwrap(), 42);
        assert_eq!(properties.correlation_id().as_ref().unwrap().as_str(), "00042");
        let headers = properties.headers().clone().unwrap();
        assert_eq!(headers.inner()["id"], AMQPValue::LongString("00042".into()));
        assert_eq!((headers.inner().len(), &headers.inner()["lang"]), (2, &AMQPValue::Void));
    }
}
