//! `producer definitions`: what an operator loads into RabbitMQ so that each service's user may do the least. From the
//! same tables as the services declare from; it connects to nothing.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use clap::Args;
use protocol::settings::{BadSetting, secret_file};
use protocol::topology::{Access, ExchangeKind, Role, Table, Topology};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// The flags that name files of passwords; the error names the file.
const FILES: &str = "--…-password-file";

/// What stands in the definitions besides the services' own settings.
#[derive(Args)]
pub struct Definitions {
    /// The virtual host
    #[arg(long, default_value = "/")]
    vhost: String,

    /// A file that holds the password of the user errand-producer
    #[arg(long)]
    producer_password_file: PathBuf,

    /// A file that holds the password of the user errand-consumer
    #[arg(long)]
    consumer_password_file: PathBuf,

    /// A file that holds the password of the user errand-admin, who may do everything, in the management UI too
    #[arg(long)]
    admin_password_file: PathBuf,
}

impl Definitions {
    /// The definitions as RabbitMQ takes them, for a producer and workers of these queues. Passwords are salted hashes.
    ///
    /// # Errors
    /// A password's file cannot be read, or is empty.
    pub fn of(&self, topology: &Topology, queues: &[String]) -> Result<Value, BadSetting> {
        let everything = || Access { configure: ".*".to_owned(), write: ".*".to_owned(), read: ".*".to_owned() };
        let users = [
            ("errand-producer", &self.producer_password_file, &[][..], topology.access(Role::Producer, queues)),
            ("errand-consumer", &self.consumer_password_file, &[], topology.access(Role::Consumer, queues)),
            ("errand-admin", &self.admin_password_file, &["administrator"], everything()),
        ];
        let (mut all, mut permissions) = (Vec::new(), Vec::new());
        for (name, password, tags, Access { configure, write, read }) in users {
            let hash = password_hash(&password_of(password)?);
            let hashing = "rabbit_password_hashing_sha256";
            all.push(json!({"name": name, "password_hash": hash, "hashing_algorithm": hashing, "tags": tags}));
            let vhost = &self.vhost;
            permissions
                .push(json!({"user": name, "vhost": vhost, "configure": configure, "write": write, "read": read}));
        }
        let mut definitions = objects(&topology.definitions(queues).and(Topology::celery_definitions()), &self.vhost);
        definitions["vhosts"] = json!([{"name": self.vhost}]);
        definitions["users"] = all.into();
        definitions["permissions"] = permissions.into();
        Ok(definitions)
    }
}

fn objects(table: &Table, vhost: &str) -> Value {
    let exchanges = table.exchanges.iter().map(|exchange| {
        let kind = match exchange.kind {
            ExchangeKind::Topic => "topic",
            ExchangeKind::Headers => "headers",
            ExchangeKind::Fanout => "fanout",
            ExchangeKind::Direct => "direct",
        };
        json!({
            "name": exchange.name, "vhost": vhost, "type": kind, "durable": exchange.durable,
            "auto_delete": false, "internal": false, "arguments": exchange.arguments,
        })
    });
    let queues = table.queues.iter().map(|queue| {
        let (name, durable) = (&queue.name, queue.durable);
        json!({"name": name, "vhost": vhost, "durable": durable, "auto_delete": false, "arguments": queue.arguments})
    });
    let bindings = table.bindings.iter().map(|binding| {
        json!({
            "source": binding.exchange, "vhost": vhost, "destination": binding.queue, "destination_type": "queue",
            "routing_key": binding.routing_key, "arguments": binding.arguments,
        })
    });
    json!({
        "exchanges": exchanges.collect::<Vec<_>>(),
        "queues": queues.collect::<Vec<_>>(),
        "bindings": bindings.collect::<Vec<_>>(),
    })
}

/// An empty one would let anybody in, or nobody, depending on the version.
fn password_of(file: &Path) -> Result<String, BadSetting> {
    let password = secret_file(FILES, file)?;
    if password.is_empty() {
        let source = std::io::Error::new(std::io::ErrorKind::InvalidData, "it is empty");
        return Err(BadSetting::File { name: FILES, path: file.to_owned(), source });
    }
    Ok(password)
}

/// RabbitMQ's: the salt and the SHA-256 of salt and password, in base64. A salt is no secret: it makes equal passwords
/// look different.
fn password_hash(password: &str) -> String {
    salted(fastrand::u32(..).to_be_bytes(), password)
}

fn salted(salt: [u8; 4], password: &str) -> String {
    let digest = Sha256::new().chain_update(salt).chain_update(password).finalize();
    BASE64_STANDARD.encode([&salt[..], &digest[..]].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_that_of_rabbitmq() {
        // The example of RabbitMQ's documentation on passwords.
        assert_eq!(salted([0x90, 0x8D, 0xC6, 0x0A], "test12"), "kI3GCqW5JLMJa4iX1lo7X4D6XbYqlLgxIs30+P6tENUV2POR");
    }
}
