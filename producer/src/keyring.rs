//! Who may call: the keys of the store as they are known in memory, and who a request comes from.
//!
//! Keys are made and revoked by another process, so the store is looked at a few times a second. A request costs no look.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::key::{Scope, Token};
use crate::rate::{Bucket, Left};
use crate::store::{ApiKey, KeyLimits, Store, StoreError, Whose};

/// A revoked key must be refused within a second.
const LOOK: Duration = Duration::from_millis(250);

/// The keys that are not revoked, and whether one is needed.
pub struct Keyring {
    store: Store,
    known: RwLock<Known>,
}

#[derive(Default)]
struct Known {
    living: HashMap<String, Arc<Held>>,
    is_required: bool,
}

/// A key that is not revoked.
struct Held {
    key: ApiKey,
    requests: Option<Bucket>,
    /// Cancelled when it is revoked.
    revoked: CancellationToken,
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It has no key, and one is needed.
    NoKey,
    /// Its key is none, unknown, or revoked.
    BadKey,
}

/// Who a request comes from.
#[derive(Clone)]
pub struct Caller(Option<Arc<Held>>);

impl Keyring {
    /// Reads the keys.
    ///
    /// # Errors
    /// The database failed.
    pub async fn open(store: Store) -> Result<Self, StoreError> {
        let keyring = Self { store, known: RwLock::default() };
        keyring.look().await?;
        Ok(keyring)
    }

    /// Whether a key is needed: from the first one on, also when all are revoked.
    #[must_use]
    pub fn is_required(&self) -> bool {
        self.known.read().unwrap_or_else(PoisonError::into_inner).is_required
    }

    /// Looks for new and revoked keys until told to stop.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        while stop.run_until_cancelled(sleep(LOOK)).await.is_some() {
            // What is known stays known: a store that cannot be read takes no tasks either.
            if let Err(error) = self.look().await {
                tracing::error!(%error, "cannot look for revoked keys");
            }
        }
    }

    async fn look(&self) -> Result<(), StoreError> {
        let keys = self.store.api_keys().await?;
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        known.is_required |= !keys.is_empty();
        let by_id = |key: ApiKey| (key.id.clone(), key);
        let good: HashMap<String, ApiKey> =
            keys.into_iter().filter(|key| key.revoked_at.is_none()).map(by_id).collect();
        known.living.retain(|id, held| {
            let stays = good.contains_key(id);
            if !stays {
                tracing::info!(key = id, "a key is revoked");
                held.revoked.cancel();
            }
            stays
        });
        for (id, key) in good {
            known.living.entry(id).or_insert_with(|| Held::new(key));
        }
        Ok(())
    }

    /// Who has this `Authorization`.
    ///
    /// # Errors
    /// Nobody, where it has to be somebody.
    pub fn caller(&self, authorization: Option<&[u8]>) -> Result<Caller, Refusal> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        if !known.is_required {
            return Ok(Caller(None));
        }
        let given = authorization.ok_or(Refusal::NoKey)?;
        let token = bearer(given).and_then(Token::parse).ok_or(Refusal::BadKey)?;
        let held = known.living.get(&token.id).ok_or(Refusal::BadKey)?;
        if held.key.hash.is_of(&token.secret) { Ok(Caller(Some(held.clone()))) } else { Err(Refusal::BadKey) }
    }
}

impl Held {
    fn new(key: ApiKey) -> Arc<Self> {
        let requests = key.limits.requests.map(|rate| Bucket::new(rate, Instant::now()));
        Arc::new(Self { key, requests, revoked: CancellationToken::new() })
    }
}

impl Caller {
    /// Whoever calls where no key is needed.
    #[must_use]
    pub const fn anonymous() -> Self {
        Self(None)
    }

    /// The key that owns what this caller submits, `None` where there are no keys.
    #[must_use]
    pub fn owner(&self) -> Option<&str> {
        self.0.as_ref().map(|held| held.key.id.as_str())
    }

    /// Whether the key allows it; without keys everything is allowed.
    #[must_use]
    pub fn may(&self, scope: Scope) -> bool {
        let allows = |held: &Arc<Held>| held.key.scopes.iter().any(|own| [scope, Scope::Admin].contains(own));
        self.0.as_ref().is_none_or(allows)
    }

    /// Whose tasks the caller sees.
    #[must_use]
    pub fn whose(&self) -> Whose {
        match self.owner() {
            Some(owner) if !self.may(Scope::Admin) => Whose::Of(owner.into()),
            _ => Whose::Anybody,
        }
    }

    /// What the key may do at most.
    #[must_use]
    pub fn limits(&self) -> KeyLimits {
        self.0.as_ref().map_or_else(KeyLimits::default, |held| held.key.limits)
    }

    /// Counts the request; `None` where requests are not limited.
    #[must_use]
    pub fn take(&self) -> Option<Left> {
        Some(self.0.as_ref()?.requests.as_ref()?.take(Instant::now()))
    }

    /// Counts what the request holds besides itself.
    pub fn owe(&self, more: usize) {
        if let Some(requests) = self.0.as_ref().and_then(|held| held.requests.as_ref()) {
            requests.owe(more.try_into().unwrap_or(u32::MAX), Instant::now());
        }
    }

    /// Does what takes long for as long as the key is not revoked; `None` once it is. Pinned where it stands: passed by
    /// value it would be in memory three times over.
    pub async fn while_good<T>(&self, work: Pin<&mut impl Future<Output = T>>) -> Option<T> {
        match &self.0 {
            Some(held) => held.revoked.run_until_cancelled(work).await,
            None => Some(work.await),
        }
    }
}

/// The credentials of the scheme `Bearer`, whose name may be written in any case (RFC 9110).
fn bearer(authorization: &[u8]) -> Option<&str> {
    let (scheme, credentials) = std::str::from_utf8(authorization).ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| credentials.trim())
}
