//! The HTTP server: how many connections there may be, how long a client may take over each part of an exchange, and
//! what answers may hold in memory while they are being read. It knows no endpoint.
//!
//! actix bounds what a head may hold. Time and memory are bounded by [`Connection`] and [`serving`], which every
//! connection and every request goes through.

mod connection;
mod serving;

use std::convert::Infallible;
use std::future::ready;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use actix_http::{HttpService, KeepAlive};
use actix_service::{IntoServiceFactory, ServiceFactoryExt, map_config};
use actix_web::dev::{AppConfig, Server, fn_service};
use actix_web::middleware::from_fn;
use actix_web::rt::net::TcpStream;
use actix_web::{App, web};
use rustix::process::{Resource, getrlimit, setrlimit};

use self::connection::Connection;
pub use self::serving::{PIECE, Shared, body_ended, place};
use super::{Api, access, openapi, routes};
use crate::keyring::Keyring;

const WORKERS: usize = 2;
/// Connections of a worker, where that many files may be open. The next one waits to be accepted.
const MAX_CONNECTIONS: usize = 5_000;
/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;
/// Files that are no connections of clients: the store, the broker, the log.
const OTHER_FILES: usize = 100;
/// How long a connection without a request is kept.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// How long a connection is read from after its last answer, so that a client that still sends gets to read that.
const LINGER: Duration = Duration::from_secs(1);

/// An HTTP server on that address; it runs when spawned.
///
/// # Errors
/// The address cannot be listened on.
pub fn server(api: Arc<Api>, keyring: Arc<Keyring>, listen: SocketAddr) -> std::io::Result<Server> {
    let (api, keyring) = (web::Data::from(api), web::Data::from(keyring));
    let document = web::Data::new(openapi::Rendered::new()?);
    let builder = Server::build();
    let stopping = builder.graceful_shutdown_signal();
    let service = move || {
        let app = App::new().app_data(api.clone()).app_data(keyring.clone()).app_data(document.clone());
        // The last one wrapped comes first.
        let app = app.wrap(from_fn(access::check)).wrap(from_fn(serving::serve)).configure(routes);
        let stopping = stopping.clone();
        let http = HttpService::build()
            .graceful_shutdown_signal(move || {
                let stopping = stopping.clone();
                async move { stopping.notified().await }
            })
            // Both are the connection's part: actix times the first head only, and nothing that follows half a request.
            .keep_alive(KeepAlive::Os)
            .client_request_timeout(Duration::ZERO)
            .client_disconnect_timeout(LINGER)
            // A client that closes its side is gone: what it waits for, or listens to, ends at once.
            .h1_allow_half_closed(false)
            .on_connect_ext(Connection::share)
            .h1(map_config(app.into_factory(), |()| AppConfig::default()));
        fn_service(|stream: TcpStream| {
            let peer = stream.peer_addr().ok();
            ready(Ok::<_, Infallible>((Connection::new(stream), peer)))
        })
        .map_err(|never| match never {})
        .and_then(http)
    };
    let builder = builder.workers(WORKERS).max_concurrent_connections(connections()).backlog(BACKLOG);
    Ok(builder.shutdown_timeout(2).disable_signals().bind("http", listen, service)?.run())
}

/// How many connections a worker may have: as many as there may be open files, the usual limit of which is far below
/// what the system would let a process have.
fn connections() -> usize {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, limit);
    let files = getrlimit(Resource::Nofile).current.map_or(usize::MAX, |files| files.try_into().unwrap_or(usize::MAX));
    let fit = (files.saturating_sub(OTHER_FILES) / WORKERS).clamp(1, MAX_CONNECTIONS);
    if fit < MAX_CONNECTIONS {
        tracing::info!(connections = fit * WORKERS, "fewer connections than usual, by the limit of open files");
    }
    fit
}
