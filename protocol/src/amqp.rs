//! The AMQP connection that both services use. lapin is named below this module and nowhere else.
//!
//! What is here holds what measuring showed: a confirm channel has one owner, a publish counts once it was confirmed
//! and not returned, publishing and consuming use different connections, every await has a deadline, and a supervisor
//! rebuilds connection, channel, topology, qos and consumer after any fault. lapin's own recovery stays off.

mod acks;
mod broker;
mod connector;
mod consumers;
mod convert;
mod declare;
mod fault;
mod link;
mod mailbox;
mod parcels;
mod publish;
mod publisher;
mod subscription;
mod supervise;
mod tls;
mod url;
mod window;

pub use broker::Broker;
pub use fault::Fault;
pub use link::Link;
pub use mailbox::{Mailbox, MailboxTask, Outgoing};
pub use publish::{Publish, PublishError};
pub use publisher::{Publisher, PublisherTask};
pub use subscription::{Delivery, QueueSpec, Steering, Subscribe, SubscriptionTask, Wanted};
pub use tls::{BadTls, Identity, Tls};
pub use url::{Address, AmqpUrl, BadUrl};

/// Makes ring the process's TLS provider. Call once, first thing in `main`.
pub fn install_crypto_provider() {
    // An error means that a provider was installed already, which serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
