//! The loop that posts the ends of tasks to those who asked for it, as signed messages of Standard Webhooks. It takes
//! them from the store's outbox, each as often as it takes, and never touches a task.
//!
//! What is posted and not marked, because the process died between the two, is posted again under the same id.

pub mod command;
mod message;
mod post;
pub mod receivers;
mod schedule;
mod signature;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use protocol::faults::{Point, point};
use protocol::timestamp::now_ms;
use tokio::task::{Id, JoinSet};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use self::post::Post;
use self::receivers::Receivers;
use crate::store::{CallbackStanding, DueCallback, Store, StoreError};
use crate::workers::Workers;

/// Posts at once, to all receivers, to those that fail, and to one: who is slow or away takes no more of the room.
const ROOM: usize = 128;
const FAILING: usize = 64;
const EACH: u32 = 4;
/// The longest sleep, so that a wall clock that was set does not hold callbacks up.
const LONGEST: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(500);
/// What posts under way have at the end of the process; the others are posted again by the next.
const DRAIN: Duration = Duration::from_secs(2);

/// The loop.
pub struct Callbacks {
    store: Store,
    post: Arc<Post>,
}

impl Callbacks {
    /// Posts to these receivers, of which it asks these name servers, or the system's.
    ///
    /// # Errors
    /// A name server that cannot be one.
    pub fn new(
        store: Store,
        workers: Workers,
        receivers: Receivers,
        nameservers: &[std::net::SocketAddr],
    ) -> Result<Self, fetch::BadNameserver> {
        let post = Post::new(store.clone(), workers, receivers, nameservers)?;
        Ok(Self { store, post: Arc::new(post) })
    }

    /// Runs until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut posts = Posts::default();
        while !stop.is_cancelled() {
            let next = match self.look(&mut posts).await {
                Ok(next) => next,
                Err(error) => {
                    tracing::error!(%error, "callbacks cannot be read");
                    Instant::now() + PAUSE
                }
            };
            tokio::select! {
                () = stop.cancelled() => {}
                () = sleep_until(next) => {}
                () = self.store.wake().callbacks.notified() => {}
                () = posts.ended(), if !posts.in_hand.is_empty() => {}
            }
        }
        let _ = timeout(DRAIN, posts.all_ended()).await;
    }

    /// Starts what is due and says when to look again.
    async fn look(&self, posts: &mut Posts) -> Result<Instant, StoreError> {
        let now = now_ms();
        let in_hand: Vec<&str> = posts.in_hand.values().map(|(id, _)| id.as_str()).collect();
        let room = u32::try_from(ROOM - in_hand.len()).unwrap_or(0);
        if room > 0 {
            for (id, is_failing) in self.store.due_callbacks(now, &in_hand, EACH, room).await? {
                if !is_failing || posts.failing() < FAILING {
                    posts.start(id.clone(), is_failing, attempt(self.store.clone(), self.post.clone(), id));
                }
            }
        }
        let next = self.store.next_callback(now).await?;
        let wait = next.map_or(LONGEST, |at| Duration::from_millis(u64::try_from(at - now).unwrap_or(0)));
        Ok(Instant::now() + wait.min(LONGEST))
    }
}

/// The posts under way: the callback's id, and whether its receiver fails.
#[derive(Default)]
struct Posts {
    running: JoinSet<()>,
    in_hand: HashMap<Id, (String, bool)>,
}

impl Posts {
    fn start(&mut self, id: String, is_failing: bool, attempt: impl Future<Output = ()> + Send + 'static) {
        let task = self.running.spawn(attempt).id();
        self.in_hand.insert(task, (id, is_failing));
    }

    fn failing(&self) -> usize {
        self.in_hand.values().filter(|(_, is_failing)| *is_failing).count()
    }

    /// One has ended, and perhaps others.
    async fn ended(&mut self) {
        let mut ended = self.running.join_next_with_id().await;
        while let Some(one) = ended {
            let task = one.map_or_else(|error| error.id(), |(task, ())| task);
            self.in_hand.remove(&task);
            ended = self.running.try_join_next_with_id();
        }
    }

    async fn all_ended(&mut self) {
        while !self.in_hand.is_empty() {
            self.ended().await;
        }
    }
}

/// Posts once and keeps what came of it, however long the store takes for that: until then it is in hand.
async fn attempt(store: Store, post: Arc<Post>, id: String) {
    match store.callback(&id).await {
        Ok(Some(due)) => {
            point(Point::CallbackDue).await;
            let outcome = post.send(&due).await;
            point(Point::CallbackPosted).await;
            let standing = schedule::after(outcome, due.attempts, now_ms());
            tell(&due, &standing);
            while let Err(error) = store.mark_callback(&id, standing.clone()).await {
                tracing::error!(%error, webhook_id = id, "what came of a callback cannot be kept");
                sleep(PAUSE).await;
            }
        }
        Ok(None) => {}
        Err(error) => {
            tracing::error!(%error, webhook_id = id, "a callback cannot be read");
            sleep(PAUSE).await;
        }
    }
}

fn tell(due: &DueCallback, standing: &CallbackStanding) {
    let CallbackStanding { attempts, error, next_at } = standing;
    let outcome = match (error, next_at) {
        (None, _) => "delivered",
        (Some(_), Some(_)) => "retried",
        (Some(error), None) => {
            let task_id = &due.row.accepted.id;
            tracing::warn!(task_id, webhook_id = due.id, attempts, %error, "a callback is given up");
            "given_up"
        }
    };
    metrics::counter!("errand_callbacks_total", "outcome" => outcome).increment(1);
}
