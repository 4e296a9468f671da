//! Declares a topology table, on a channel of its own: a mismatch closes the channel it happens on.

use std::time::Duration;

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, ErrorKind};

use super::convert::{field_table, short_string};
use super::fault::{Fault, within};
use crate::topology::{Exchange, ExchangeKind, Object, Queue, Table};

const DEADLINE: Duration = Duration::from_secs(10);

/// Looks for what is expected, then declares exchanges, then queues, then bindings.
pub(super) async fn declare_on(connection: &Connection, table: &Table) -> Result<(), Fault> {
    let channel = within("opening a channel", DEADLINE, connection.create_channel()).await?;
    declare(&channel, table).await?;
    within("closing a channel", DEADLINE, channel.close(200, "declared".into())).await
}

async fn declare(channel: &Channel, table: &Table) -> Result<(), Fault> {
    for object in &table.expected {
        look_for(channel, object).await.map_err(|fault| explain(fault, &object.to_string()))?;
    }
    for exchange in &table.exchanges {
        let declared = declare_exchange(channel, exchange).await;
        declared.map_err(|fault| explain(fault, &format!("exchange {}", exchange.name)))?;
    }
    for queue in &table.queues {
        let declared = declare_queue(channel, queue).await;
        declared.map_err(|fault| explain(fault, &format!("queue {}", queue.name)))?;
    }
    for binding in &table.bindings {
        let bound = channel.queue_bind(
            short_string(&binding.queue)?,
            short_string(&binding.exchange)?,
            short_string(&binding.routing_key)?,
            QueueBindOptions::default(),
            field_table(&binding.arguments),
        );
        let object = || format!("binding {} to {}", binding.exchange, binding.queue);
        within("binding a queue", DEADLINE, bound).await.map_err(|fault| explain(fault, &object()))?;
    }
    Ok(())
}

/// A passive declare: needs no permission and compares no arguments.
async fn look_for(channel: &Channel, object: &Object) -> Result<(), Fault> {
    match object {
        Object::Exchange(name) => {
            let options = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
            let (name, any_kind) = (short_string(name)?, lapin::ExchangeKind::Fanout);
            let found = channel.exchange_declare(name, any_kind, options, FieldTable::default());
            within("looking for an exchange", DEADLINE, found).await
        }
        Object::Queue(name) => {
            let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
            let found = channel.queue_declare(short_string(name)?, options, FieldTable::default());
            within("looking for a queue", DEADLINE, found).await.map(drop)
        }
    }
}

async fn declare_exchange(channel: &Channel, exchange: &Exchange) -> Result<(), Fault> {
    let kind = match exchange.kind {
        ExchangeKind::Topic => lapin::ExchangeKind::Topic,
        ExchangeKind::Headers => lapin::ExchangeKind::Headers,
        ExchangeKind::Fanout => lapin::ExchangeKind::Fanout,
        ExchangeKind::Direct => lapin::ExchangeKind::Direct,
    };
    let options = ExchangeDeclareOptions { durable: exchange.durable, ..ExchangeDeclareOptions::default() };
    let arguments = field_table(&exchange.arguments);
    let declared = channel.exchange_declare(short_string(&exchange.name)?, kind, options, arguments);
    within("declaring an exchange", DEADLINE, declared).await
}

async fn declare_queue(channel: &Channel, queue: &Queue) -> Result<(), Fault> {
    let options = QueueDeclareOptions {
        durable: queue.durable,
        exclusive: queue.exclusive,
        auto_delete: queue.exclusive,
        ..QueueDeclareOptions::default()
    };
    let declared = channel.queue_declare(short_string(&queue.name)?, options, field_table(&queue.arguments));
    within("declaring a queue", DEADLINE, declared).await.map(drop)
}

/// Names the object in the errors that an operator must mend.
fn explain(fault: Fault, object: &str) -> Fault {
    let Fault::Amqp(error) = &fault else { return fault };
    let ErrorKind::ProtocolError(protocol) = error.kind() else { return fault };
    let detail = protocol.get_message().to_string();
    let object = object.to_owned();
    match protocol.kind() {
        AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED) => Fault::Mismatch { object, detail },
        AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND) => Fault::Missing { object, detail },
        AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) => Fault::AccessRefused { object, detail },
        _ => fault,
    }
}
