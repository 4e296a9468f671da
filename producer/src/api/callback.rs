//! What a task shows of its callback.

use protocol::state::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::openapi::schemas::StateName;
use super::view::time;
use crate::store::{Callback, CallbackStanding, TaskRow};

/// Where the task's end is posted, and what became of that.
#[derive(Debug, Serialize, ToSchema)]
pub struct CallbackView {
    /// Without its query, which may hold a secret.
    url: String,
    #[schema(value_type = Vec<StateName>)]
    events: Vec<State>,
    state: CallbackState,
    /// Attempts so far.
    attempts: u32,
    /// Why the last attempt failed.
    last_error: Option<String>,
    /// When the next attempt is due.
    #[schema(format = DateTime)]
    next_at: Option<String>,
}

/// Where a callback is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum CallbackState {
    /// The task has not ended.
    Waiting,
    /// It ended in a way that is none of `events`.
    Unwanted,
    /// It is posted, perhaps again.
    Pending,
    /// The receiver has it.
    Delivered,
    /// It was given up.
    Failed,
}

impl CallbackView {
    /// `None` for a task without one.
    pub fn of(row: &TaskRow) -> Option<Self> {
        let Callback { url, events, .. } = row.accepted.callback.as_ref()?;
        let shown = url.split_once('?').map_or(url.as_str(), |(shown, _)| shown);
        let standing = row.callback.as_ref().filter(|_| row.state.is_terminal());
        Some(Self {
            url: shown.to_owned(),
            events: events.clone(),
            state: state(row, events, standing),
            attempts: standing.map_or(0, |standing| standing.attempts),
            last_error: standing.and_then(|standing| standing.error.clone()),
            next_at: time(standing.and_then(|standing| standing.next_at)),
        })
    }
}

fn state(row: &TaskRow, events: &[State], standing: Option<&CallbackStanding>) -> CallbackState {
    match standing {
        _ if !row.state.is_terminal() => CallbackState::Waiting,
        _ if !events.contains(&row.state) => CallbackState::Unwanted,
        Some(CallbackStanding { error: None, .. }) => CallbackState::Delivered,
        Some(CallbackStanding { next_at: None, .. }) => CallbackState::Failed,
        _ => CallbackState::Pending,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::new_task;

    #[test]
    fn a_callback_is_shown_as_it_stands_and_without_its_query() {
        let mut row = TaskRow::from(new_task("a"));
        assert!(CallbackView::of(&row).is_none());
        let url = "https://example.com/hook?token=secret".to_owned();
        let receiver = "https://example.com".to_owned();
        row.accepted.callback = Some(Callback { url, events: vec![State::Success], receiver });
        let standing = |error: Option<&str>, next_at| {
            Some(CallbackStanding { attempts: 2, error: error.map(str::to_owned), next_at })
        };
        for (state, callback, shown) in [
            (State::Pending, None, "waiting"),
            // It runs again after it was posted.
            (State::Started, standing(None, None), "waiting"),
            (State::Failure, None, "unwanted"),
            (State::Success, None, "pending"),
            (State::Success, standing(Some("x"), Some(1)), "pending"),
            (State::Success, standing(None, None), "delivered"),
            (State::Success, standing(Some("x"), None), "failed"),
        ] {
            let row = TaskRow { state, callback, ..row.clone() };
            let view = serde_json::to_value(CallbackView::of(&row)).unwrap();
            assert_eq!((&view["state"], &view["url"]), (&shown.into(), &"https://example.com/hook".into()), "{state}");
        }
    }
}
