//! Takes in what running tasks submit.

use std::collections::HashMap;

use protocol::reply::{Reply, Report};
use sqlx::SqliteConnection;

use super::column::json;
use super::write::Changes;
use super::{Child, NewTask, Parent, Recorded, insert, reports};

/// What became of children.
#[derive(Default)]
pub(super) struct TakenIn {
    /// How many became rows.
    pub(super) stored: u64,
    /// The places of those whose parent is no row here.
    pub(super) orphans: Vec<usize>,
}

const ROOTS: &str = "SELECT id, coalesce(root_id, id) FROM tasks WHERE id IN (SELECT value FROM json_each(?))";

/// Makes rows of the children whose parents are rows. One whose id is taken was taken in before, since its parent ran
/// twice, and changes nothing. One that cannot be accepted is a row too, and FAILURE at once.
pub(super) async fn take_in(
    connection: &mut SqliteConnection,
    children: &[Child],
    changes: &mut Changes,
) -> Result<TakenIn, sqlx::Error> {
    if children.is_empty() {
        return Ok(TakenIn::default());
    }
    let ids: Vec<&str> = children.iter().flat_map(|child| [child.parent_id.as_str(), &child.task.id]).collect();
    let known: Vec<(String, String)> = sqlx::query_as(ROOTS).bind(json(&ids)?).fetch_all(&mut *connection).await?;
    let roots: HashMap<String, String> = known.into_iter().collect();
    let mut taken = TakenIn::default();
    let mut fresh = Vec::new();
    for (place, child) in children.iter().enumerate() {
        match roots.get(&child.parent_id) {
            _ if roots.contains_key(&child.task.id) => {}
            Some(root) => fresh.push((child, task_of(child, root))),
            None => taken.orphans.push(place),
        }
    }
    let (fresh, tasks): (Vec<&Child>, Vec<NewTask>) = fresh.into_iter().unzip();
    let stored = insert::insert(connection, &tasks, changes).await?;
    let new: Vec<&Child> =
        fresh.into_iter().zip(stored).filter_map(|(child, stored)| stored.then_some(child)).collect();
    let failed: Vec<Recorded> = new.iter().filter_map(|child| failure_of(child)).collect();
    reports::record(connection, &failed, changes).await?;
    taken.stored = new.len() as u64;
    Ok(taken)
}

/// The root is that of the parent's row, whatever the message says.
fn task_of(child: &Child, root: &str) -> NewTask {
    let parent = Parent { id: child.parent_id.clone(), root_id: root.to_owned() };
    NewTask { parent: Some(parent), ..child.task.clone() }
}

fn failure_of(child: &Child) -> Option<Recorded> {
    let report = Report::Failure(child.fault.clone()?);
    Some(Recorded { reply: Reply::of(&child.task.id, report), at: child.task.created_at })
}
