//! What `deploy/up` runs once everything is built: see [`e2e::up`].

use e2e::config::Config;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    e2e::up::run(&Config::from_env()).await
}
