//! Takes in what running tasks submit.

use std::collections::HashMap;

use protocol::reply::{Reply, Report};
use sqlx::SqliteConnection;

use super::column::json;
use super::write::Changes;
use super::{Child, NewTask, Parent, Placed, Recorded, insert, reports};

/// What became of children.
#[derive(Default)]
pub(super) struct TakenIn {
    /// How many became rows.
    pub(super) stored: u64,
    /// The places of those whose parent is no row here.
    pub(super) orphans: Vec<usize>,
}

/// A row's id, the first task of its family, and its owner.
type Family = (String, String, Option<String>);

const FAMILIES: &str =
    "SELECT id, coalesce(root_id, id), owner FROM tasks WHERE id IN (SELECT value FROM json_each(?))";

/// What was never accepted cannot be replayed: parts of it may not even be kept.
const NO_LETTERS: &str = "UPDATE tasks SET dismissed_at = finished_at WHERE id IN (SELECT value FROM json_each(?))";

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
    let known: Vec<Family> = sqlx::query_as(FAMILIES).bind(json(&ids)?).fetch_all(&mut *connection).await?;
    let families: HashMap<&str, &Family> = known.iter().map(|family| (family.0.as_str(), family)).collect();
    let mut taken = TakenIn::default();
    let mut fresh = Vec::new();
    for (place, child) in children.iter().enumerate() {
        match families.get(child.parent_id.as_str()) {
            _ if families.contains_key(child.task.id.as_str()) => {}
            Some(family) => fresh.push((child, task_of(child, family))),
            None => taken.orphans.push(place),
        }
    }
    let (fresh, tasks): (Vec<&Child>, Vec<NewTask>) = fresh.into_iter().unzip();
    let placed = insert::insert(connection, &tasks, changes).await?;
    let new: Vec<&Child> = fresh
        .into_iter()
        .zip(placed)
        .filter_map(|(child, placed)| (placed == Placed::Stored).then_some(child))
        .collect();
    let failed: Vec<Recorded> = new.iter().filter_map(|child| failure_of(child)).collect();
    reports::record(connection, &failed, changes).await?;
    let never: Vec<&str> = failed.iter().map(|failed| failed.reply.task_id.as_str()).collect();
    sqlx::query(NO_LETTERS).bind(json(&never)?).execute(connection).await?;
    taken.stored = new.len() as u64;
    Ok(taken)
}

/// Root and owner are those of the parent's row, whatever the message says.
fn task_of(child: &Child, (_, root, owner): &Family) -> NewTask {
    let parent = Parent { id: child.parent_id.clone(), root_id: root.clone() };
    NewTask { parent: Some(parent), owner: owner.clone(), ..child.task.clone() }
}

fn failure_of(child: &Child) -> Option<Recorded> {
    let report = Report::Failure(child.fault.clone()?);
    Some(Recorded::now(Reply::of(&child.task.id, report), child.task.created_at))
}
