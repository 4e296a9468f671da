//! Owns the connections of a process of the floor: one publishes, one consumes, as the pair's do, for an alarm that
//! blocks publishers must not stop acks.

use std::time::Duration;

use anyhow::{Result, ensure};
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, Consumer};
use tokio::time::timeout;

use super::sample::Address;

const CLOSE: Duration = Duration::from_secs(3);

pub(super) struct Link {
    publishing: Connection,
    consuming: Connection,
    publisher: Channel,
    consumer: Channel,
}

impl Link {
    pub(super) async fn open(url: &str) -> Result<Self> {
        let publishing = Connection::connect(url, ConnectionProperties::default()).await?;
        let consuming = Connection::connect(url, ConnectionProperties::default()).await?;
        let (publisher, consumer) = (publishing.create_channel().await?, consuming.create_channel().await?);
        publisher.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(Self { publishing, consuming, publisher, consumer })
    }

    /// Consumes a queue with so many deliveries unsettled.
    pub(super) async fn consume(&self, queue: &str, prefetch: u16) -> Result<Consumer> {
        self.consumer.basic_qos(prefetch, BasicQosOptions::default()).await?;
        let options = BasicConsumeOptions::default();
        Ok(self.consumer.basic_consume(queue.into(), "floor".into(), options, FieldTable::default()).await?)
    }

    /// Publishes and awaits the confirm.
    #[expect(clippy::disallowed_methods, reason = "the floor is what lapin does by itself; one task owns the channel")]
    pub(super) async fn publish(&self, to: &Address, properties: BasicProperties, body: &[u8]) -> Result<()> {
        let options = BasicPublishOptions { mandatory: true, immediate: false };
        let (exchange, key) = (to.exchange.as_str().into(), to.routing_key.as_str().into());
        let confirm = self.publisher.basic_publish(exchange, key, options, body, properties).await?;
        let confirmed = confirm.await?;
        ensure!(matches!(confirmed, Confirmation::Ack(None)), "not confirmed: {confirmed:?}");
        Ok(())
    }

    /// The channel that deliveries come over.
    pub(super) fn consumer(&self) -> &Channel {
        &self.consumer
    }

    /// Closes both connections, so that the broker has all acks.
    pub(super) async fn close(&self) -> Result<()> {
        timeout(CLOSE, self.consuming.close(200, "bye".into())).await??;
        Ok(timeout(CLOSE, self.publishing.close(200, "bye".into())).await??)
    }
}

/// Acks a delivery and all before it on its channel.
pub(super) async fn ack_through(delivery: &Delivery) -> Result<()> {
    ensure!(delivery.acker.ack(BasicAckOptions { multiple: true }).await?, "the channel is gone");
    Ok(())
}
