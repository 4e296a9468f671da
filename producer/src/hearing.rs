//! When the silence of stock Celery workers counts: only while this producer has been listening for a while. Replies that
//! came when it was down, or the broker, are read first.

use std::time::Duration;

use protocol::amqp::Link;
use protocol::timestamp::now_ms;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::store::Silence;

/// In which replies that have piled up are recorded.
const CATCH_UP: Duration = Duration::from_mins(1);

/// What the reply queue's connection says of it.
pub struct Hearing {
    link: watch::Receiver<Link>,
    longest: Duration,
    /// When the connection as it stands was made.
    since: Option<Instant>,
}

impl Hearing {
    /// By the connection that replies come over. Celery's workers may be silent for `longest`.
    #[must_use]
    pub fn new(mut link: watch::Receiver<Link>, longest: Duration) -> Self {
        link.mark_changed();
        Self { link, longest, since: None }
    }

    /// How often to ask.
    #[must_use]
    pub fn every(&self) -> Duration {
        (self.longest / 10).clamp(Duration::from_millis(500), Duration::from_mins(1))
    }

    /// The silence that has been too long by now; `None` while it may be this producer that did not hear.
    pub fn too_long(&mut self, at: Instant) -> Option<Silence> {
        if self.link.has_changed().unwrap_or(false) {
            self.since = self.link.borrow_and_update().is_ready().then_some(at);
        }
        let caught_up = self.since.is_some_and(|since| at.duration_since(since) >= CATCH_UP.min(self.longest));
        caught_up.then(|| Silence { longest: self.longest, now: now_ms() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_counts_once_the_producer_has_listened_for_a_while() {
        let (set, link) = watch::channel(Link::Connecting);
        let mut hearing = Hearing::new(link, Duration::from_hours(1));
        let start = Instant::now();
        let mut is_heard = |seconds| hearing.too_long(start + Duration::from_secs(seconds)).is_some();
        assert!(!is_heard(3600));
        set.send_replace(Link::Ready);
        assert_eq!([3600, 3659, 3660].map(&mut is_heard), [false, false, true]);
        // Gone and back between two looks.
        set.send_replace(Link::Down("cut".to_owned()));
        set.send_replace(Link::Ready);
        assert_eq!([4000, 4059, 4060].map(&mut is_heard), [false, false, true]);
        set.send_replace(Link::Down("cut".to_owned()));
        assert!(!is_heard(9000));
    }
}
