//! Owns the questions to a run's logs, each answered with what breaks a rule, in words.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::Hits;
use crate::chaos::fault::{Fault, Reach};
use crate::chaos::logs::{Entry, Event, Logs, Ms, Outcome, Row, Standing, Strike, Submit};
use crate::chaos::workload::Kind;

/// From a task's end, as its worker tells it, to the acknowledgement of its message on a busy machine.
const SETTLING: Ms = 2_000;
/// From the end of a fault to the first start of a task that it may have doubled.
const REACH: Ms = 60_000;
/// How old a look at the producer's counts may be that tells what a fault met.
const FRESH: Ms = 1_000;
/// What a clock's reading may differ by between two processes that round it.
const ROUNDING: Ms = 5;

/// An order and an attempt at it.
type Attempt = (u64, u32);

/// The runs of an attempt.
#[derive(Debug, Default)]
struct Runs {
    /// When each started.
    starts: Vec<Ms>,
    /// When the last of those that ended did.
    end: Option<Ms>,
    /// Whether one did what the task is for.
    effect: bool,
}

/// A run's logs, by order.
pub(super) struct Books<'a> {
    logs: &'a Logs,
    submits: HashMap<u64, &'a Submit>,
    rows: BTreeMap<u64, Vec<&'a Row>>,
    runs: BTreeMap<Attempt, Runs>,
    /// All faults, those that tasks made too.
    strikes: Vec<Strike>,
}

impl<'a> Books<'a> {
    pub(super) fn new(logs: &'a Logs) -> Self {
        let mut rows: BTreeMap<u64, Vec<&Row>> = BTreeMap::new();
        for row in &logs.rows {
            rows.entry(row.n).or_default().push(row);
        }
        let mut runs: BTreeMap<Attempt, Runs> = BTreeMap::new();
        let mut strikes = logs.strikes.clone();
        for &Entry { event, n, attempt, at, .. } in &logs.ledger {
            let run = runs.entry((n, attempt)).or_default();
            match event {
                Event::Start => run.starts.push(at),
                Event::Effect => run.effect = true,
                Event::End => run.end = run.end.max(Some(at)),
                Event::Crash => strikes.push(Strike { fault: Fault::WorkerCrashed, from: at, to: at }),
            }
        }
        let submits = logs.submits.iter().map(|submit| (submit.order.n, submit)).collect();
        Self { logs, submits, rows, runs, strikes }
    }

    fn rows_of(&self, n: u64) -> &[&'a Row] {
        self.rows.get(&n).map_or(&[], Vec::as_slice)
    }

    /// Accepted, and no task at the end; and any task that has not ended, whatever its client was told.
    pub(super) fn lost(&self) -> Vec<String> {
        let accepted = self.logs.submits.iter().filter(|submit| submit.outcome == Outcome::Accepted);
        let gone =
            accepted.filter(|Submit { order, ids, .. }| !self.rows_of(order.n).iter().any(|row| ids.contains(&row.id)));
        let gone = gone.map(|Submit { order, ids, .. }| format!("{order:?} accepted as {ids:?} is no task"));
        let open = self.logs.rows.iter().filter(|row| !row.is_terminal());
        let open = open.map(|row| format!("order {} is still {row}", row.n));
        gone.chain(open).chain(self.logs.undrained.clone()).collect()
    }

    /// Started under an id that no task has.
    pub(super) fn phantoms(&self) -> Vec<String> {
        let ids: HashSet<&str> = self.logs.rows.iter().map(|row| row.id.as_str()).collect();
        let starts = self.logs.ledger.iter().filter(|entry| entry.event == Event::Start);
        let phantoms: BTreeSet<(u64, &str)> =
            starts.map(|entry| (entry.n, entry.id.as_str())).filter(|(_, id)| !ids.contains(id)).collect();
        phantoms.into_iter().map(|(n, id)| format!("order {n} as {id}")).collect()
    }

    /// A client was told what its order gives no reason for.
    pub(super) fn answered_wrongly(&self) -> Vec<String> {
        self.logs.submits.iter().filter_map(|submit| submit.order.judge_answers(submit).err()).collect()
    }

    /// Taken for lost by the reconciler before a fault had taken anything away, and more than retries that found no place
    /// by then.
    pub(super) fn mistaken(&self) -> Option<String> {
        let taken = self.strikes.iter().filter(|strike| strike.fault.takes_tasks()).map(|strike| strike.from).min();
        let early = self.logs.presumed.iter().filter(|presumed| taken.is_none_or(|taken| presumed.at < taken));
        let (mut count, mut last) = (0, 0);
        for presumed in early {
            (count, last) = (count + presumed.count, last.max(presumed.at));
        }
        let withheld = |row: &&Row| {
            let mut strikes = self.strikes.iter().filter(|strike| strike.fault.withholds_retries());
            row.retries > 0 && strikes.any(|strike| strike.from <= last && Self::was_open(row, strike))
        };
        let withheld = self.logs.rows.iter().filter(withheld).count();
        (count > withheld).then(|| format!("{count}, of which {withheld} were retries without a place"))
    }

    /// Processes that ended without being told to, or not as they were told, and that no task killed.
    pub(super) fn deserted(&self) -> Vec<String> {
        let crashed = |pid| self.logs.ledger.iter().any(|entry| entry.event == Event::Crash && entry.pid == pid);
        let deserted = self.logs.deaths.iter().filter(|death| !death.was_told() && !crashed(death.pid));
        deserted.map(ToString::to_string).collect()
    }

    /// Terminal, and its client was told neither that it was accepted nor nothing.
    pub(super) fn uninvited(&self) -> Vec<String> {
        let uninvited = |row: &&Row| {
            row.is_terminal() && self.submits.get(&row.n).is_none_or(|submit| submit.outcome == Outcome::Refused)
        };
        self.logs.rows.iter().filter(uninvited).map(ToString::to_string).collect()
    }

    pub(super) fn refused_but_started(&self) -> Vec<String> {
        let refused = |n| self.submits.get(n).is_none_or(|submit| submit.outcome == Outcome::Refused);
        self.runs.keys().filter(|(n, _)| refused(n)).map(|run| format!("order and attempt {run:?}")).collect()
    }

    /// Ended as its order cannot end, without having run, too early, or having run though it never should.
    pub(super) fn wrong(&self) -> Vec<String> {
        let ended = self.logs.rows.iter().filter(|row| row.is_terminal());
        ended.filter_map(|row| self.judge(row, self.submits.get(&row.n)?).err()).collect()
    }

    fn judge(&self, row: &Row, submit: &Submit) -> Result<(), String> {
        submit.order.judge(row, submit.revocation)?;
        if row.state == "SUCCESS" && !self.runs.get(&(row.n, row.retries)).is_some_and(|runs| runs.effect) {
            return Err(format!("no run did what {row} tells"));
        }
        let attempts = self.runs.range((row.n, 0)..=(row.n, u32::MAX));
        let first = attempts.flat_map(|(_, runs)| &runs.starts).min();
        if submit.revocation == Some(200) && first.is_some() {
            return Err(format!("{row} was started and was never to be"));
        }
        if matches!(submit.order.kind, Kind::Scheduled(_)) && first.is_some_and(|first| first + ROUNDING < row.due) {
            return Err(format!("{row} was started before it was due"));
        }
        Ok(())
    }

    /// What was seen of a task after something later had been seen; the row at the end is the last look.
    pub(super) fn backwards(&self) -> Vec<String> {
        let last = self.logs.rows.iter().map(|row| (row.n, Standing::of(&row.state, row.retries)));
        let looks = self.logs.samples.iter().map(|sample| (sample.n, sample.standing)).chain(last);
        let (mut seen, mut backwards) = (HashMap::new(), Vec::new());
        for (n, standing) in looks {
            match seen.insert(n, standing) {
                Some(earlier) if !standing.may_follow(earlier) => {
                    backwards.push(format!("order {n} was {earlier:?} and then {standing:?}"));
                }
                _ => {}
            }
        }
        backwards
    }

    /// Orders that were seen in two states or more.
    pub(super) fn moved(&self) -> usize {
        let mut seen: HashMap<u64, (Standing, bool)> = HashMap::new();
        for sample in &self.logs.samples {
            let (first, moved) = seen.entry(sample.n).or_insert((sample.standing, false));
            *moved |= *first != sample.standing;
        }
        seen.values().filter(|(_, moved)| *moved).count()
    }

    pub(super) fn two_ids(&self) -> Vec<String> {
        let rows = self.rows.iter().filter(|(_, rows)| rows.len() > 1).map(|(n, _)| format!("order {n} is two tasks"));
        let told = self.logs.submits.iter().filter(|submit| submit.ids.len() > 1);
        rows.chain(told.map(|submit| format!("{:?} was told {:?}", submit.order, submit.ids))).collect()
    }

    /// Starts of an attempt beyond its first, summed.
    pub(super) fn doubled(&self) -> usize {
        self.runs.values().map(|runs| runs.starts.len().saturating_sub(1)).sum()
    }

    /// Whether a fault may have met a task that was open: accepted and due before its end, and not acknowledged before
    /// its beginning.
    fn was_open(row: &Row, strike: &Strike) -> bool {
        row.due <= strike.to && row.finished.is_none_or(|finished| finished + SETTLING >= strike.from)
    }

    /// How many attempts had been started and had not ended for longer than `settling` when a fault came.
    fn running(&self, strike: &Strike, settling: Ms) -> usize {
        let ran = |((n, attempt), runs): &(&Attempt, &Runs)| {
            let row = self.rows_of(*n).iter().find(|row| row.retries == *attempt);
            let end = runs.end.max(row.and_then(|row| row.finished));
            runs.starts.iter().min().is_some_and(|start| *start <= strike.to)
                && end.is_none_or(|end| end + settling >= strike.from)
        };
        self.runs.iter().filter(ran).count()
    }

    /// How many tasks a fault met: as many as had started, or as the producer knew at the broker.
    fn met(&self, strike: &Strike) -> usize {
        let pulses = self
            .logs
            .pulses
            .iter()
            .filter(|pulse| (strike.from - FRESH.min(strike.from)..=strike.to).contains(&pulse.at));
        let at_broker = pulses.map(|pulse| usize::try_from(pulse.at_broker).unwrap_or(usize::MAX)).max();
        self.running(strike, 0).max(at_broker.unwrap_or(0))
    }

    /// How many tasks a fault may have made run twice. One that meets workers meets what had started and has not ended
    /// or waits to be started again, at most what they have places for, and the death of one no more than its own; any
    /// other may also keep the relay from hearing that it published a task.
    fn doubled_by(&self, strike: &Strike) -> usize {
        let Logs { places, workers, rows, .. } = self.logs;
        match (strike.fault, strike.fault.reach()) {
            (_, Reach::Nothing) => 0,
            (_, Reach::All) => rows.iter().filter(|row| Self::was_open(row, strike)).count(),
            (Fault::WorkerKilled | Fault::WorkerCrashed, _) => self.running(strike, SETTLING).min(*places),
            (_, Reach::Workers) => self.running(strike, SETTLING).min(places * workers),
        }
    }

    /// The faults after which a task may run again.
    fn doubling(&self) -> impl Iterator<Item = &Strike> {
        self.strikes.iter().filter(|strike| strike.fault.reach() != Reach::Nothing)
    }

    /// Tasks that the faults may have made run twice, summed.
    pub(super) fn bound(&self) -> usize {
        self.strikes.iter().map(|strike| self.doubled_by(strike)).sum()
    }

    /// Started again, and no fault met it before that and shortly before its first start or since.
    pub(super) fn unexplained(&self) -> Vec<String> {
        let mut unexplained = Vec::new();
        for ((n, attempt), Runs { starts, .. }) in self.runs.iter().filter(|(_, runs)| runs.starts.len() > 1) {
            let first = starts.iter().min().copied().unwrap_or_default();
            let again = starts.iter().max().copied().unwrap_or_default();
            let near = |strike: &&Strike| strike.from <= again && strike.to + REACH >= first;
            let met = |row: &&Row| self.doubling().filter(near).any(|strike| Self::was_open(row, strike));
            if !self.rows_of(*n).iter().any(met) {
                unexplained.push(format!("order {n}, attempt {attempt}, at {starts:?}"));
            }
        }
        unexplained
    }

    pub(super) fn faults(&self) -> BTreeMap<Fault, Hits> {
        let mut faults: BTreeMap<Fault, Hits> = BTreeMap::new();
        for strike in &self.strikes {
            let (in_flight, hits) = (self.met(strike), faults.entry(strike.fault).or_default());
            hits.times += 1;
            hits.in_flight += usize::from(in_flight > 0);
            hits.most = hits.most.max(in_flight);
            hits.recovery = hits.recovery.max(self.recovery(strike));
        }
        faults
    }

    /// From a fault's end until a task that was started after it has ended, and the producer has heard of an end. `None`
    /// when another fault came before that: then it is the other one's.
    fn recovery(&self, Strike { to: from, .. }: &Strike) -> Option<Ms> {
        let after = &self.logs.pulses[self.logs.pulses.partition_point(|pulse| pulse.at < *from)..];
        let heard = after.iter().find(|pulse| pulse.ended > after[0].ended)?;
        let anew = self.runs.values().filter(|runs| runs.starts.iter().any(|start| start >= from));
        let ended = anew.filter_map(|runs| runs.end).filter(|end| end >= from).min()?;
        let recovered = heard.at.max(ended);
        let disturbed = self.strikes.iter().any(|other| other.to > *from && other.from <= recovered);
        (!disturbed).then(|| recovered - from)
    }
}
