//! Whether the broker can be worked with just now, for readiness and for whoever waits to publish.

use tokio::sync::watch;

/// The state of one supervised connection.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Link {
    /// Not yet connected since the start.
    #[default]
    Connecting,
    /// Connected and set up.
    Ready,
    /// The broker blocks publishers (a memory or disk alarm): nothing is published meanwhile.
    Blocked,
    /// Not connected, with the reason in words.
    Down(String),
}

impl Link {
    /// Whether work goes through.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        *self == Self::Ready
    }
}

impl std::fmt::Display for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Connecting => f.write_str("connecting to the broker"),
            Self::Ready => f.write_str("connected"),
            Self::Blocked => f.write_str("the broker blocks publishers (memory or disk alarm)"),
            Self::Down(why) => f.write_str(why),
        }
    }
}

/// Sets the state, waking watchers only when it changes.
pub(super) fn set(link: &watch::Sender<Link>, state: Link) {
    link.send_if_modified(|current| {
        let changed = *current != state;
        *current = state;
        changed
    });
}
