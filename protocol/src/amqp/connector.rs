//! How the pool makes a connection: deadpool-lapin's own way, or over TLS with this client's authorities, which that
//! cannot be told.

use deadpool::managed::{self, Metrics, RecycleResult};
use lapin::tcp::AMQPUriTcpExt;
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{Connection, ConnectionProperties};

use super::fault::Fault;
use super::url::Address;

pub(super) struct Connector {
    address: Address,
    name: String,
    plain: deadpool_lapin::Manager,
}

impl Connector {
    pub(super) fn new(address: Address, name: &str) -> Result<Self, Fault> {
        let runtime = lapin::runtime::default_runtime().map_err(|error| Fault::Pool(error.to_string()))?;
        let named = name.to_owned();
        let plain = deadpool_lapin::Manager::new(address.url.expose(), move || properties(&named), runtime);
        Ok(Self { address, name: name.to_owned(), plain })
    }
}

impl managed::Manager for Connector {
    type Type = Connection;
    type Error = lapin::Error;

    async fn create(&self) -> Result<Connection, lapin::Error> {
        let Some(tls) = &self.address.tls else { return self.plain.create().await };
        let uri: AMQPUri = self.address.url.expose().parse().map_err(std::io::Error::other)?;
        let connector = tls.connector().clone();
        let connect = async move |mut uri: AMQPUri, runtime| {
            // As it is the scheme would have it do TLS by itself, with other authorities.
            uri.scheme = AMQPScheme::AMQP;
            let stream = uri.connect_async(&runtime).await?;
            Ok(stream.into_rustls(&connector, &uri.authority.host).await?)
        };
        let runtime = lapin::runtime::default_runtime()?;
        Box::pin(Connection::connector(uri, runtime, connect, properties(&self.name))).await
    }

    async fn recycle(&self, connection: &mut Connection, metrics: &Metrics) -> RecycleResult<lapin::Error> {
        self.plain.recycle(connection, metrics).await
    }
}

fn properties(name: &str) -> ConnectionProperties {
    ConnectionProperties::default().with_connection_name(name.into())
}
