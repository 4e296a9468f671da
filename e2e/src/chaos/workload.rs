//! Decides what is ordered: the n-th task of a seed, and what may become of it. Pure.

use std::time::Duration;

use fastrand::Rng;
use serde_json::{Value, json};

use super::logs::{Row, Submit};

/// How an order's task behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Ends at once.
    Quick,
    /// Runs for this long, with progress.
    Slow(Duration),
    /// Fails this many attempts.
    Flaky(u32),
    /// Kills its worker in this many runs.
    Crashing(u32),
    /// Is due after so many seconds.
    Scheduled(u64),
    /// Runs for `REVOCABLE` and is revoked this long after it was accepted.
    Revoked(Duration),
    /// Carries a text of this length, and returns twice as much.
    Large(usize),
    /// Fails each attempt, of which it has two.
    Failing,
    /// Must be refused.
    Invalid,
}

/// How long a task runs that is to be revoked.
const REVOCABLE: Duration = Duration::from_secs(3);
/// More than a task can have before it is given up.
const ALWAYS: u32 = 50;
/// One order in so many crashes its worker, and each such death leaves other runs without an end.
const CRASHES: u64 = 1000;

/// What a client orders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order {
    /// Its number, from 0.
    pub n: u64,
    /// How its task behaves.
    pub kind: Kind,
    /// Its client asks again, with the same key, when it has no answer.
    pub persistent: bool,
    /// Its client asks again though it was accepted.
    pub repeated: bool,
}

impl Order {
    /// The n-th order of a seed.
    #[must_use]
    pub fn draw(seed: u64, n: u64) -> Self {
        let mut rng = Rng::with_seed(seed ^ n.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let kind = if n % CRASHES == CRASHES / 4 {
            Kind::Crashing(if rng.bool() { 1 } else { ALWAYS })
        } else {
            Self::kind(&mut rng)
        };
        Self { n, kind, persistent: rng.u32(..16) > 0, repeated: rng.u32(..32) == 0 }
    }

    fn kind(rng: &mut Rng) -> Kind {
        match rng.u32(..1000) {
            0..20 => Kind::Invalid,
            20..40 => Kind::Failing,
            40..100 => Kind::Flaky(rng.u32(1..=3)),
            100..130 => Kind::Revoked(Duration::from_millis(rng.u64(..400))),
            130..180 => Kind::Scheduled(rng.u64(1..=8)),
            180..185 => Kind::Large(rng.usize(1_000..100_000)),
            185..285 => Kind::Slow(Duration::from_millis(rng.u64(200..=5_000))),
            _ => Kind::Quick,
        }
    }

    /// The key that a repeated submit has too.
    #[must_use]
    pub fn key(&self) -> String {
        format!("order-{}", self.n)
    }

    /// The submit's body.
    #[must_use]
    pub fn body(&self) -> Value {
        let n = self.n;
        match self.kind {
            Kind::Quick => json!({"task": "quick", "args": [n]}),
            Kind::Slow(time) => json!({"task": "slow", "args": [n, millis(time)]}),
            Kind::Flaky(failures) => {
                let retry = json!({"max_retries": 5, "backoff": 1, "jitter": false});
                json!({"task": "flaky", "args": [n, failures], "retry": retry})
            }
            Kind::Crashing(deaths) => json!({"task": "crashing", "args": [n, deaths]}),
            Kind::Scheduled(seconds) => json!({"task": "quick", "args": [n], "countdown": seconds}),
            Kind::Revoked(_) => json!({"task": "slow", "args": [n, millis(REVOCABLE)]}),
            Kind::Large(bytes) => json!({"task": "large", "args": [n, text(n, bytes)]}),
            Kind::Failing => json!({"task": "failing", "args": [n], "retry": {"max_retries": 1, "backoff": 1}}),
            Kind::Invalid => json!({"task": "quick", "args": [n], "priority": 99}),
        }
    }

    /// Whether its client may have been answered so; what is wrong with it otherwise.
    ///
    /// # Errors
    /// What is wrong.
    pub fn judge_answers(&self, Submit { refusal, repeat, revocation, .. }: &Submit) -> Result<(), String> {
        let invalid = self.kind == Kind::Invalid;
        let refused = |status| matches!(status, 429 | 503) || (invalid && matches!(status, 400..=499));
        let repeated = |status| matches!(status, 200..=299 | 503);
        let revoked = |status| matches!(status, 200 | 202 | 409 | 503);
        let fits = refusal.is_none_or(refused) && repeat.is_none_or(repeated) && revocation.is_none_or(revoked);
        let told = || format!("{self:?}: refused {refusal:?}, repeated {repeat:?}, revoked {revocation:?}");
        if fits { Ok(()) } else { Err(told()) }
    }

    /// Whether a task that has ended may have ended so; what is wrong with it otherwise. `revocation` is the status that
    /// the revocation was answered with, if it was.
    ///
    /// # Errors
    /// What is wrong.
    pub fn judge(&self, row: &Row, revocation: Option<u16>) -> Result<(), String> {
        let square = json!(self.n * self.n);
        let success =
            |result: &Value, retries| row.state == "SUCCESS" && row.result == *result && row.retries == retries;
        let failure = |kind: &str, retries| row.state == "FAILURE" && row.error == kind && row.retries == retries;
        let fits = match self.kind {
            Kind::Quick | Kind::Slow(_) | Kind::Scheduled(_) => success(&square, 0),
            Kind::Flaky(failures) => success(&square, failures),
            Kind::Crashing(deaths) => failure("WorkerLost", 0) || (deaths < ALWAYS && success(&square, 0)),
            Kind::Revoked(_) => match revocation {
                Some(200) => row.state == "REVOKED" && !row.started,
                Some(409) => success(&square, 0),
                _ => row.state == "REVOKED" || success(&square, 0),
            },
            Kind::Large(bytes) => success(&json!(text(self.n, bytes).repeat(2)), 0),
            Kind::Failing => failure("Hopeless", 1),
            Kind::Invalid => false,
        };
        if fits { Ok(()) } else { Err(format!("{:?} ended as {row}; revocation {revocation:?}", self.kind)) }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn text(n: u64, bytes: usize) -> String {
    format!("{n:08}").repeat(bytes.div_ceil(8))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::mem::discriminant;

    use super::*;
    use crate::chaos::logs::Outcome;

    #[test]
    fn a_seed_has_its_orders_and_every_kind_among_them() {
        let draw = |seed| (0..CRASHES).map(|n| Order::draw(seed, n)).collect::<Vec<_>>();
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        let kinds: HashSet<_> = draw(7).iter().map(|order| discriminant(&order.kind)).collect();
        assert_eq!(kinds.len(), 9);
        assert!(draw(7).iter().any(|order| order.repeated) && draw(7).iter().any(|order| !order.persistent));
    }

    #[test]
    fn a_client_is_answered_as_its_order_says_and_not_otherwise() {
        let answers = |kind, refusal, repeat, revocation| {
            let order = Order { n: 3, kind, persistent: true, repeated: true };
            let (outcome, ids) = (Outcome::Refused, Vec::new());
            order.judge_answers(&Submit { order, outcome, ids, refusal, repeat, revocation }).is_ok()
        };
        assert!(answers(Kind::Quick, None, None, None) && answers(Kind::Quick, Some(503), Some(202), None));
        assert!(answers(Kind::Quick, Some(429), None, None) && answers(Kind::Invalid, Some(422), None, None));
        assert!([200, 202, 409, 503].iter().all(|status| answers(Kind::Quick, None, None, Some(*status))));
        assert!([400, 409, 422, 500].iter().all(|status| !answers(Kind::Quick, Some(*status), None, None)));
        assert!(!answers(Kind::Invalid, Some(500), None, None));
        assert!([409, 422, 429, 500].iter().all(|status| !answers(Kind::Quick, None, Some(*status), None)));
        assert!([404, 422, 500].iter().all(|status| !answers(Kind::Quick, None, None, Some(*status))));
    }

    #[test]
    fn a_task_may_end_as_its_kind_says_and_not_otherwise() {
        let order = |kind| Order { n: 3, kind, persistent: true, repeated: false };
        let row = |state: &str, result: Value, error: &str, retries| Row {
            id: "id".to_owned(),
            n: 3,
            state: state.to_owned(),
            retries,
            result,
            error: error.to_owned(),
            started: true,
            due: 0,
            finished: Some(1),
        };
        let squared = |retries| row("SUCCESS", json!(9), "", retries);
        let lost = row("FAILURE", Value::Null, "WorkerLost", 0);
        for (kind, row, revocation, fits) in [
            (Kind::Quick, squared(0), None, true),
            (Kind::Quick, squared(1), None, false),
            (Kind::Quick, lost.clone(), None, false),
            (Kind::Flaky(2), squared(2), None, true),
            (Kind::Flaky(2), squared(1), None, false),
            (Kind::Crashing(1), lost.clone(), None, true),
            (Kind::Crashing(1), squared(0), None, true),
            (Kind::Crashing(ALWAYS), squared(0), None, false),
            (Kind::Revoked(Duration::ZERO), squared(0), Some(202), true),
            (Kind::Revoked(Duration::ZERO), squared(0), Some(200), false),
            (Kind::Revoked(Duration::ZERO), row("REVOKED", Value::Null, "", 0), Some(409), false),
            (Kind::Large(9), row("SUCCESS", json!("00000003".repeat(4)), "", 0), None, true),
            (Kind::Failing, row("FAILURE", Value::Null, "Hopeless", 1), None, true),
            (Kind::Failing, row("FAILURE", Value::Null, "Hopeless", 0), None, false),
            (Kind::Invalid, squared(0), None, false),
        ] {
            assert_eq!(order(kind).judge(&row, revocation).is_ok(), fits, "{kind:?}: {row}");
        }
    }
}
