//! Holds what was promised against what happened: from the logs of a run to what it shows and which rules it breaks.
//! Pure.

mod books;

use std::collections::BTreeMap;

use self::books::Books;
use super::fault::Fault;
use super::logs::{Logs, Ms, Outcome};

/// Examples that are kept of each broken rule.
const EXAMPLES: usize = 5;

/// What must never be, each with how often it was and some examples.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// What is counted.
    pub name: &'static str,
    /// How often it was.
    pub broken: usize,
    /// Which.
    pub examples: Vec<String>,
}

/// How a kind of fault went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Hits {
    /// How often it was made.
    pub times: usize,
    /// How often while tasks were at the broker or had started.
    pub in_flight: usize,
    /// How many were, at most.
    pub most: usize,
    /// The longest time in milliseconds from its end until a task that was started after it had ended, where no other
    /// fault came before that.
    pub recovery: Option<Ms>,
}

/// What a run shows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Account {
    /// Orders by what their clients were told.
    pub accepted: usize,
    /// Those that were refused.
    pub refused: usize,
    /// Those without an answer.
    pub unknown: usize,
    /// Ended tasks by their state.
    pub ended: BTreeMap<String, usize>,
    /// Looks at tasks.
    pub samples: usize,
    /// Orders that were seen in two states or more.
    pub moved: usize,
    /// Tasks that the producer took for lost.
    pub presumed: usize,
    /// Starts of an attempt beyond its first.
    pub doubled: usize,
    /// Tasks that the faults may have made start again, summed.
    pub bound: usize,
    /// Faults by kind.
    pub faults: BTreeMap<Fault, Hits>,
    /// All rules, broken or not.
    pub rules: Vec<Rule>,
}

impl Account {
    /// The rules that are broken.
    pub fn broken(&self) -> impl Iterator<Item = &Rule> {
        self.rules.iter().filter(|rule| rule.broken > 0)
    }
}

/// Accounts for a run of which at least `fewest` orders had to be accepted.
#[must_use]
pub fn account(logs: &Logs, fewest: usize) -> Account {
    let books = Books::new(logs);
    let (doubled, bound) = (books.doubled(), books.bound());
    let faults = books.faults();
    let told = |outcome| logs.submits.iter().filter(|submit| submit.outcome == outcome).count();
    let accepted = told(Outcome::Accepted);
    let mut ended = BTreeMap::new();
    for row in logs.rows.iter().filter(|row| row.is_terminal()) {
        *ended.entry(row.state.clone()).or_default() += 1;
    }
    let moved = books.moved();
    let beyond = (doubled > bound).then(|| format!("{doubled} are more than {bound}"));
    let left = logs.left.iter().map(|(queue, messages)| format!("{messages} in {queue}"));
    let rules = vec![
        rule("lost", books.lost()),
        rule("ended and never accepted", books.uninvited()),
        rule("refused and started", books.refused_but_started()),
        rule("started and no task", books.phantoms()),
        rule("ended wrongly", books.wrong()),
        rule("answered wrongly", books.answered_wrongly()),
        rule("gone backwards", books.backwards()),
        rule("keys with two tasks", books.two_ids()),
        rule("taken for lost without a fault", books.mistaken().into_iter().collect()),
        rule("started again without a fault", books.unexplained()),
        rule("started again beyond the bound", beyond.into_iter().collect()),
        rule("services that ended by themselves", books.deserted()),
        rule("queues not empty", left.collect()),
        rule("not shown", logs.unshown.clone()),
        rule("nothing proved", vacuous(logs, &faults, (accepted, fewest), moved)),
    ];
    let (refused, unknown, samples) = (told(Outcome::Refused), told(Outcome::Unknown), logs.samples.len());
    let presumed = logs.presumed.iter().map(|presumed| presumed.count).sum();
    Account { accepted, refused, unknown, ended, samples, moved, presumed, doubled, bound, faults, rules }
}

/// Why a run shows nothing: too few of what it must have seen.
fn vacuous(
    logs: &Logs,
    faults: &BTreeMap<Fault, Hits>,
    (accepted, fewest): (usize, usize),
    moved: usize,
) -> Vec<String> {
    let few = (accepted < fewest).then(|| format!("{accepted} accepted are fewer than {fewest}"));
    let still = (moved == 0).then(|| "no order was seen in two states".to_owned());
    let unmade = logs.asked.iter().filter(|fault| !faults.contains_key(fault));
    let unmade = unmade.map(|fault| format!("{} was asked for and never made", fault.name()));
    let missed = faults.iter().filter(|(_, hits)| hits.in_flight == 0);
    let missed = missed.map(|(fault, _)| format!("{} met no task in flight", fault.name()));
    few.into_iter().chain(still).chain(unmade).chain(missed).collect()
}

fn rule(name: &'static str, mut examples: Vec<String>) -> Rule {
    let broken = examples.len();
    examples.truncate(EXAMPLES);
    Rule { name, broken, examples }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    use nix::sys::signal::Signal;
    use serde_json::json;

    use super::*;
    use crate::chaos::logs::{Death, Entry, Presumed, Pulse, Row, Sample, Standing, Strike, Submit};
    use crate::chaos::workload::{Kind, Order};

    fn submit(n: u64, kind: Kind, outcome: Outcome) -> Submit {
        let ids = if outcome == Outcome::Accepted { vec![format!("id-{n}")] } else { Vec::new() };
        let order = Order { n, kind, persistent: true, repeated: false };
        Submit { order, outcome, ids, refusal: None, repeat: None, revocation: None }
    }

    fn row(n: u64) -> Row {
        Row {
            id: format!("id-{n}"),
            n,
            state: "SUCCESS".to_owned(),
            retries: 0,
            result: json!(n * n),
            error: String::new(),
            started: true,
            due: 1_000,
            finished: Some(3_000),
        }
    }

    fn ledger(lines: &str) -> Vec<Entry> {
        lines.lines().map(|line| Entry::parse(line).unwrap()).collect()
    }

    fn death(pid: u32, told: Option<Signal>, status: i32) -> Death {
        Death { service: "worker".to_owned(), pid, told, status: ExitStatus::from_raw(status) }
    }

    fn sample(n: u64, state: &str, retries: u32) -> Sample {
        Sample { n, standing: Standing::of(state, retries) }
    }

    /// A worker was killed under the second of two tasks, which ran again; a third order was refused.
    fn good() -> Logs {
        Logs {
            submits: vec![
                submit(1, Kind::Quick, Outcome::Accepted),
                submit(2, Kind::Quick, Outcome::Accepted),
                submit(3, Kind::Invalid, Outcome::Refused),
            ],
            ledger: ledger(
                "start 1 id-1 0 7 1100\neffect 1 id-1 0 7 1101\nend 1 id-1 0 7 1102\n\
                 start 2 id-2 0 7 1200\nstart 2 id-2 0 8 2000\neffect 2 id-2 0 8 2001\nend 2 id-2 0 8 2002",
            ),
            samples: vec![sample(2, "PENDING", 0), sample(2, "STARTED", 0)],
            pulses: [(1_000, 0), (1_550, 1), (2_100, 1), (3_000, 2)]
                .map(|(at, ended)| Pulse { at, ended, at_broker: 2 - ended })
                .to_vec(),
            rows: vec![row(1), row(2)],
            strikes: vec![Strike { fault: Fault::WorkerKilled, from: 1_500, to: 1_500 }],
            asked: vec![Fault::WorkerKilled],
            deaths: vec![death(7, Some(Signal::SIGKILL), 9), death(8, Some(Signal::SIGTERM), 0)],
            workers: 2,
            places: 10,
            ..Logs::default()
        }
    }

    fn broken(change: impl FnOnce(&mut Logs)) -> Vec<&'static str> {
        let mut logs = good();
        change(&mut logs);
        account(&logs, 1).broken().map(|rule| rule.name).collect()
    }

    #[test]
    fn a_good_run_breaks_no_rule_and_is_counted() {
        let account = account(&good(), 2);
        assert_eq!(account.broken().collect::<Vec<_>>(), Vec::<&Rule>::new());
        assert_eq!((account.accepted, account.refused, account.unknown), (2, 1, 0));
        assert_eq!((account.ended["SUCCESS"], account.doubled, account.bound), (2, 1, 2));
        let hits = Hits { times: 1, in_flight: 1, most: 2, recovery: Some(1_500) };
        assert_eq!(account.faults, [(Fault::WorkerKilled, hits)].into());
        let mut logs = good();
        logs.strikes.push(Strike { fault: Fault::LinkCut, from: 1_600, to: 1_600 });
        let faults = super::account(&logs, 2).faults;
        assert_eq!(faults[&Fault::WorkerKilled].recovery, None, "the cut came before it");
        assert_eq!(faults[&Fault::LinkCut].recovery, Some(1_400));
    }

    #[test]
    fn each_broken_promise_is_seen() {
        assert_eq!(
            broken(|logs| drop(logs.rows.pop())),
            ["lost", "started and no task", "started again without a fault"]
        );
        assert_eq!(broken(|logs| logs.rows[0].state = "STARTED".to_owned()), ["lost"]);
        let unknown = |logs: &mut Logs| {
            logs.submits[0].outcome = Outcome::Unknown;
            logs.rows[0].state = "STARTED".to_owned();
        };
        assert_eq!(broken(unknown), ["lost"], "whatever its client was told");
        assert_eq!(broken(|logs| logs.undrained = Some("1 were open".to_owned())), ["lost"]);
        assert_eq!(broken(|logs| logs.rows.push(row(9))), ["ended and never accepted"]);
        assert_eq!(broken(|logs| logs.rows.push(row(3))), ["ended and never accepted", "ended wrongly"]);
        let started = |logs: &mut Logs| logs.ledger.extend(ledger("start 3 id-3 0 7 1300"));
        assert_eq!(broken(started), ["refused and started", "started and no task"]);
        let phantom = |logs: &mut Logs| logs.ledger[0].id = "id-7".to_owned();
        assert_eq!(broken(phantom), ["started and no task"]);
        assert_eq!(broken(|logs| logs.submits[0].repeat = Some(422)), ["answered wrongly"]);
        assert_eq!(broken(|logs| logs.unshown.push("/v1/stats was answered 500".to_owned())), ["not shown"]);
        assert_eq!(broken(|logs| logs.rows[0].result = json!(2)), ["ended wrongly"]);
        assert_eq!(
            broken(|logs| logs.ledger.retain(|entry| entry.at != 1_101)),
            ["ended wrongly"],
            "without an effect"
        );
        assert_eq!(broken(|logs| logs.samples.push(sample(2, "PENDING", 0))), ["gone backwards"]);
        assert_eq!(broken(|logs| logs.samples.push(sample(1, "REVOKED", 0))), ["gone backwards"]);
        assert_eq!(broken(|logs| logs.submits[0].ids.push("id-9".to_owned())), ["keys with two tasks"]);
        let twice = |logs: &mut Logs| logs.rows.push(Row { id: "id-9".to_owned(), ..row(1) });
        assert_eq!(broken(twice), ["keys with two tasks"]);
        assert_eq!(broken(|logs| logs.left.push(("errand.default".to_owned(), 1))), ["queues not empty"]);
    }

    #[test]
    fn a_second_start_has_a_fault_before_it_that_met_the_task() {
        let later = |logs: &mut Logs| logs.strikes[0] = Strike { from: 2_500, to: 2_500, ..logs.strikes[0] };
        assert_eq!(broken(later), ["started again without a fault"]);
        let harmless = |logs: &mut Logs| {
            logs.strikes[0].fault = Fault::WorkerTerminated;
            logs.asked.clear();
        };
        assert_eq!(broken(harmless), ["started again without a fault", "started again beyond the bound"]);
        assert_eq!(broken(|logs| logs.places = 0), ["started again beyond the bound"]);
        let long_ago = |logs: &mut Logs| {
            logs.rows[1].due = 0;
            logs.strikes[0] = Strike { from: 10, to: 10, ..logs.strikes[0] };
            for entry in &mut logs.ledger {
                entry.at += 60_000;
            }
        };
        assert_eq!(broken(long_ago)[..1], ["started again without a fault"]);
        let crashed = |logs: &mut Logs| {
            logs.strikes.clear();
            logs.asked.clear();
            logs.ledger.extend(ledger("crash 1 id-1 0 7 1500"));
        };
        assert_eq!(broken(crashed), Vec::<&str>::new());
        let often = |logs: &mut Logs| {
            let start = "start 2 id-2 0 8 2000\n";
            logs.ledger.extend(ledger(&start.repeat(2)));
        };
        assert_eq!(broken(often), ["started again beyond the bound"]);
    }

    #[test]
    fn one_worker_has_no_more_to_start_again_than_it_has_places() {
        let bound = |fault, places| {
            let mut logs = good();
            (logs.strikes[0].fault, logs.places) = (fault, places);
            account(&logs, 1).bound
        };
        assert_eq!([bound(Fault::WorkerKilled, 10), bound(Fault::WorkerKilled, 1)], [2, 1]);
        assert_eq!([bound(Fault::WorkerCrashed, 1), bound(Fault::LinkCut, 1)], [1, 2]);
    }

    #[test]
    fn what_is_taken_for_lost_was_taken_away() {
        let presumed = |at, strike: Option<Fault>| {
            broken(|logs| {
                logs.presumed.push(Presumed { at, count: 1 });
                logs.strikes.extend(strike.map(|fault| Strike { fault, from: 1_500, to: 1_600 }));
            })
        };
        assert_eq!(presumed(2_900, None), ["taken for lost without a fault"]);
        assert_eq!(presumed(2_900, Some(Fault::QueuePurged)), Vec::<&str>::new());
        assert_eq!(presumed(1_400, Some(Fault::QueuePurged)), ["taken for lost without a fault"]);
        assert_eq!(presumed(2_900, Some(Fault::BrokerKilled)), ["taken for lost without a fault"]);
        let retried = |at, count| {
            broken(|logs| {
                logs.presumed.push(Presumed { at, count });
                logs.strikes.push(Strike { fault: Fault::QueueFull, from: 1_500, to: 1_600 });
                (logs.submits[0].order.kind, logs.rows[0].retries) = (Kind::Flaky(1), 1);
                logs.ledger.extend(ledger("start 1 id-1 1 7 1700\neffect 1 id-1 1 7 1701\nend 1 id-1 1 7 1702"));
            })
        };
        assert_eq!(retried(2_900, 1), Vec::<&str>::new(), "it found no place");
        assert_eq!(retried(2_900, 2), ["taken for lost without a fault"]);
        assert_eq!(retried(1_400, 1), ["taken for lost without a fault"]);
    }

    #[test]
    fn a_service_ends_when_it_is_told_to_or_a_task_kills_it() {
        for (told, status) in [(None, 0), (None, 9), (None, 6), (Some(Signal::SIGTERM), 1 << 8)] {
            assert_eq!(broken(|logs| logs.deaths.push(death(9, told, status))), ["services that ended by themselves"]);
        }
        let crashed = |logs: &mut Logs| {
            logs.deaths.push(death(9, None, 6));
            logs.ledger.extend(ledger("crash 1 id-1 0 9 1500"));
        };
        assert_eq!(broken(crashed), Vec::<&str>::new());
    }

    #[test]
    fn a_run_that_met_nothing_proves_nothing() {
        assert_eq!(account(&good(), 3).broken().map(|rule| rule.name).collect::<Vec<_>>(), ["nothing proved"]);
        let idle = Strike { fault: Fault::BrokerKilled, from: 10_000, to: 11_000 };
        assert_eq!(broken(|logs| logs.strikes.push(idle)), ["nothing proved"]);
        assert_eq!(broken(|logs| logs.asked.push(Fault::DataWiped)), ["nothing proved"], "never made");
        assert_eq!(broken(|logs| logs.samples.truncate(1)), ["nothing proved"], "seen in one state");
        let unpublished = |logs: &mut Logs| {
            logs.strikes.push(Strike { fault: Fault::BrokerKilled, from: 1_050, to: 1_060 });
            logs.pulses.iter_mut().for_each(|pulse| pulse.at_broker = 0);
        };
        assert_eq!(broken(unpublished), ["nothing proved"], "open and neither at the broker nor started");
    }

    #[test]
    fn what_is_revoked_or_due_later_does_not_start_before() {
        let revoked = |logs: &mut Logs| {
            logs.submits[0].order.kind = Kind::Revoked(std::time::Duration::ZERO);
            logs.submits[0].revocation = Some(200);
            logs.rows[0] = Row { state: "REVOKED".to_owned(), started: false, ..row(1) };
        };
        assert_eq!(broken(revoked), ["ended wrongly"]);
        let early = |logs: &mut Logs| {
            logs.submits[0].order.kind = Kind::Scheduled(1);
            logs.rows[0].due = 2_000;
        };
        assert_eq!(broken(early), ["ended wrongly"]);
    }
}
