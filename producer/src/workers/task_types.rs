//! The task types that workers have announced, by name. They are remembered when their workers are gone: a task that
//! waits for a worker is still shown with its own defaults.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use protocol::heartbeat::{HEARTBEAT_TTL, TaskType};
use protocol::redaction::Redactions;
use protocol::retry::RetryPolicy;
use serde_json::value::RawValue;

use crate::arguments::{Contract, Fault};
use crate::store::KeptType;

/// The most types remembered, whoever speaks on the exchange.
const MAX_TYPES: usize = 1_000;
/// The most bytes of JSON that they may have together.
const MAX_BYTES: usize = 4 * 1024 * 1024;
/// The most announcements of one type: versions of a worker that are alive together.
const MAX_VERSIONS: usize = 4;

/// The types, within bounds. Beyond them the one that was not announced for longest goes: what a living worker knows is
/// announced every five seconds.
#[derive(Default)]
pub(super) struct TaskTypes {
    types: HashMap<String, Versions>,
    bytes: usize,
    /// The names of those that the store does not have as they are here.
    unkept: BTreeSet<String>,
}

/// A type's announcements, the first heard of last at the end.
#[derive(Default)]
struct Versions {
    all: Vec<(Option<Instant>, Arc<Announcement>)>,
    /// The last of those that are alive, or else the one that was heard of last.
    latest: Option<Arc<Announcement>>,
    /// When there was one more than is remembered: till it is gone nothing can be said for all.
    crowded: Option<Instant>,
}

/// A type as announced. Parsed, its schemas would take many times their bytes, so the contract is made on demand.
pub(super) struct Announcement {
    json: Box<str>,
    retry: RetryPolicy,
    contract: OnceLock<Option<Contract>>,
    redacts: bool,
    redactions: OnceLock<Redactions>,
}

impl Announcement {
    /// What is wrong with these arguments.
    pub(super) fn faults(&self, args: &RawValue, kwargs: &RawValue) -> Vec<Fault> {
        let contract = self.contract.get_or_init(|| Contract::new(&serde_json::from_str(&self.json).ok()?));
        contract.as_ref().map_or_else(Vec::new, |contract| contract.faults(args, kwargs))
    }

    /// What a message's headers may show of the arguments.
    pub(super) fn redactions(&self) -> &Redactions {
        self.redactions.get_or_init(|| Redactions::of(serde_json::from_str::<TaskType>(&self.json)))
    }
}

impl Versions {
    /// Says which is the latest; whether that is another than before.
    fn settle(&mut self, now: Instant) -> bool {
        let order = |(place, (at, _)): &(usize, &(Option<Instant>, Arc<Announcement>))| {
            if is_alive(*at, now) { (true, None, *place) } else { (false, *at, *place) }
        };
        let latest = self.all.iter().enumerate().max_by_key(order).map(|(_, (_, latest))| latest.clone());
        let before = std::mem::replace(&mut self.latest, latest);
        before.as_ref().map(Arc::as_ptr) != self.latest.as_ref().map(Arc::as_ptr)
    }
}

fn is_alive(at: Option<Instant>, now: Instant) -> bool {
    at.is_some_and(|at| now.duration_since(at) < HEARTBEAT_TTL)
}

impl TaskTypes {
    /// Takes the latest word on a type.
    pub(super) fn learn(&mut self, task: TaskType, now: Instant) {
        let Ok(json) = serde_json::to_string(&task) else { return };
        let versions = self.types.entry(task.name.clone()).or_default();
        if let Some(known) = versions.all.iter_mut().find(|(_, known)| *known.json == json) {
            known.0 = Some(now);
            if versions.settle(now) {
                self.unkept.insert(task.name);
            }
            return;
        }
        if json.len() > MAX_BYTES {
            versions.crowded = Some(now);
        } else {
            let gone = |(at, _): &(Option<Instant>, Arc<Announcement>)| !is_alive(*at, now);
            self.bytes -=
                versions.all.extract_if(.., |version| gone(version)).map(|gone| gone.1.json.len()).sum::<usize>();
            if versions.all.len() == MAX_VERSIONS {
                self.bytes -= versions.all.remove(0).1.json.len();
                versions.crowded = Some(now);
            }
            self.bytes += json.len();
            let json = json.into();
            let announcement = Announcement {
                json,
                retry: task.retry,
                contract: OnceLock::new(),
                redacts: !task.redacted.is_empty(),
                redactions: OnceLock::new(),
            };
            versions.all.push((Some(now), Arc::new(announcement)));
            versions.settle(now);
            self.unkept.insert(task.name);
        }
        self.bound();
    }

    /// Takes in what an earlier process knew: nobody alive has announced it yet.
    pub(super) fn remember(&mut self, task: TaskType) {
        let name = task.name.clone();
        self.learn(task, Instant::now());
        let versions = self.types.get_mut(&name).map(|versions| &mut versions.all);
        versions.into_iter().flatten().for_each(|version| version.0 = None);
        self.unkept.remove(&name);
    }

    fn bound(&mut self) {
        while self.types.len() > MAX_TYPES || self.bytes > MAX_BYTES {
            let latest =
                |versions: &Versions| versions.all.iter().filter_map(|(at, _)| *at).chain(versions.crowded).max();
            let oldest = self.types.iter().min_by_key(|(_, versions)| latest(versions));
            let Some(name) = oldest.map(|(name, _)| name.clone()) else { return };
            self.forget(&name);
        }
    }

    fn forget(&mut self, name: &str) {
        let versions = self.types.remove(name).unwrap_or_default();
        self.bytes -= versions.all.iter().map(|(_, known)| known.json.len()).sum::<usize>();
        self.unkept.insert(name.to_owned());
    }

    fn latest(&self, name: &str) -> Option<&Announcement> {
        self.types.get(name)?.latest.as_deref()
    }

    /// How tasks of that name are retried when their caller does not say, if a worker has said.
    pub(super) fn retry(&self, name: &str) -> Option<RetryPolicy> {
        self.latest(name).map(|announced| announced.retry)
    }

    /// The latest announcement of that name by which some argument is shown to nobody.
    pub(super) fn redacting(&self, name: &str) -> Option<Arc<Announcement>> {
        let versions = self.types.get(name)?.all.iter().rev();
        versions.map(|(_, known)| known).find(|known| known.redacts).cloned()
    }

    /// Whether a type of that name was announced.
    pub(super) fn is_known(&self, name: &str) -> bool {
        self.types.contains_key(name)
    }

    /// The announcements of the living, the latest version last; none when not all of them are known.
    pub(super) fn living(&self, name: &str, now: Instant) -> Vec<Arc<Announcement>> {
        let Some(versions) = self.types.get(name) else { return Vec::new() };
        if is_alive(versions.crowded, now) {
            return Vec::new();
        }
        let living = versions.all.iter().filter(|(at, _)| is_alive(*at, now));
        living.map(|(_, announcement)| announcement.clone()).collect()
    }

    /// The JSON of each type as last announced.
    pub(super) fn all(&self) -> impl Iterator<Item = &str> {
        self.types.values().filter_map(|versions| versions.latest.as_ref()).map(|announced| &*announced.json)
    }

    /// What the store does not have yet; from now on it counts as kept.
    pub(super) fn unkept(&mut self) -> Vec<KeptType> {
        let names = std::mem::take(&mut self.unkept);
        let kept = |name: String| KeptType(name.clone(), self.latest(&name).map(|latest| latest.json.to_string()));
        names.into_iter().map(kept).collect()
    }

    /// The store did not take these.
    pub(super) fn keep_later(&mut self, names: Vec<String>) {
        // What is dropped here is put right at the next start, when too many are read.
        self.unkept.extend(names.into_iter().take(2 * MAX_TYPES));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workers::tests::task_type;
    use serde_json::{Value, json};
    use std::time::Duration;

    fn of(name: &str, max_retries: u32) -> TaskType {
        TaskType { retry: RetryPolicy { max_retries, ..RetryPolicy::default() }, ..task_type(name) }
    }

    #[test]
    fn the_latest_word_on_a_type_counts() {
        let mut types = TaskTypes::default();
        let now = Instant::now();
        assert_eq!(types.retry("add"), None);
        types.learn(of("add", 1), now);
        types.learn(of("add", 2), now);
        assert_eq!(types.retry("add").map(|retry| retry.max_retries), Some(2));
        assert_eq!(types.types.len(), 1);
        types.forget("add");
        assert_eq!(types.bytes, 0);
    }

    #[test]
    fn a_version_that_was_rolled_back_is_the_latest_no_more() {
        let mut types = TaskTypes::default();
        let start = Instant::now();
        types.learn(of("add", 1), start);
        types.learn(of("add", 2), start);
        types.unkept();
        types.learn(of("add", 1), start + HEARTBEAT_TTL / 2);
        assert_eq!(types.retry("add").map(|retry| retry.max_retries), Some(2), "it is alive");
        assert!(types.unkept().is_empty());
        types.learn(of("add", 1), start + HEARTBEAT_TTL);
        assert_eq!(types.retry("add").map(|retry| retry.max_retries), Some(1));
        assert_eq!(types.unkept().len(), 1);
    }

    #[test]
    fn a_flood_of_types_and_bytes_is_bounded_and_leaves_the_latest() {
        let mut types = TaskTypes::default();
        let start = Instant::now();
        let at = |number: usize| start + Duration::from_millis(number as u64);
        for number in 0..3_000 {
            types.learn(of(&format!("t{number}"), 0), at(number));
        }
        assert_eq!((types.types.len(), types.retry("t0").is_some()), (MAX_TYPES, false));
        let large = |name: String| TaskType { arguments: Value::from("x".repeat(1024 * 1024)), ..of(&name, 1) };
        for number in 3_000..3_010 {
            types.learn(large(format!("t{number}")), at(number));
        }
        assert!(types.bytes <= MAX_BYTES && types.retry("t3009").is_some());
        let whole = TaskType { arguments: Value::from("x".repeat(MAX_BYTES)), ..of("t3009", 9) };
        types.learn(whole, at(3_010));
        assert_eq!(types.retry("t3009").map(|retry| retry.max_retries), Some(1), "it alone is too large");
        assert!(types.living("t3009", at(3_011)).is_empty(), "and what it takes is not known");
    }

    fn takes(kind: &str) -> TaskType {
        let arguments = json!({"type": "object", "properties": {"x": {"type": kind}}, "required": ["x"]});
        TaskType { arguments, positional: Some(vec!["x".to_owned()]), ..task_type("t") }
    }

    fn refuses(types: &TaskTypes, args: &str, now: Instant) -> bool {
        let raw = |json: &str| RawValue::from_string(json.to_owned()).unwrap();
        let living = types.living("t", now);
        !living.is_empty() && living.iter().all(|known| !known.faults(&raw(args), &raw("{}")).is_empty())
    }

    #[test]
    fn two_versions_alive_together_refuse_what_both_refuse() {
        let mut types = TaskTypes::default();
        let start = Instant::now();
        types.learn(takes("string"), start);
        assert!(refuses(&types, "[1]", start) && !refuses(&types, "[\"a\"]", start));
        types.learn(takes("integer"), start);
        assert!(
            !refuses(&types, "[1]", start) && !refuses(&types, "[\"a\"]", start) && refuses(&types, "[true]", start)
        );
        let later = start + HEARTBEAT_TTL;
        types.learn(takes("integer"), later);
        assert!(refuses(&types, "[\"a\"]", later), "the first is gone");
        let gone = later + HEARTBEAT_TTL;
        assert!(!refuses(&types, "[true]", gone) && types.is_known("t"), "nobody is alive");
    }

    #[test]
    fn more_versions_than_are_remembered_refuse_nothing() {
        let mut types = TaskTypes::default();
        let now = Instant::now();
        for retries in 0..=MAX_VERSIONS {
            let retry = RetryPolicy { max_retries: u32::try_from(retries).unwrap(), ..RetryPolicy::default() };
            types.learn(TaskType { retry, ..takes("string") }, now);
        }
        assert!(!refuses(&types, "[1]", now));
    }

    #[test]
    fn only_what_changed_is_kept_and_what_was_kept_is_nobodys() {
        let mut types = TaskTypes::default();
        let now = Instant::now();
        types.learn(takes("string"), now);
        let kept = types.unkept();
        assert_eq!((kept.len(), kept[0].0.as_str()), (1, "t"));
        types.learn(takes("string"), now);
        assert!(types.unkept().is_empty());
        types.keep_later(vec!["t".to_owned()]);
        assert_eq!(types.unkept(), kept);
        let mut again = TaskTypes::default();
        again.remember(serde_json::from_str(kept[0].1.as_deref().unwrap()).unwrap());
        assert!(again.is_known("t") && again.unkept().is_empty() && !refuses(&again, "[1]", now));
        again.learn(takes("string"), now);
        assert!(refuses(&again, "[1]", now) && again.unkept().is_empty());
    }
}
