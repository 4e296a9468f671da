//! Decides what breaks when: the kinds of faults and the order in which a seed has them. Pure.

use std::time::Duration;

use fastrand::Rng;

/// From then on a run has time for what takes half a minute or more.
const LONG_RUN: Duration = Duration::from_mins(5);

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "they are named as their `name` says")]
pub enum Fault {
    ProducerKilled,
    ProducerTerminated,
    WorkerKilled,
    WorkerTerminated,
    WorkerStopped,
    WorkerFrozen,
    WorkerCrashed,
    BrokerKilled,
    BrokerRestarted,
    BrokerStopped,
    ConnectionsClosed,
    LinkCut,
    LinkRefused,
    LinkSilent,
    LinkSlow,
    MemoryAlarm,
    DiskAlarm,
    DeadLettersDeleted,
    BindingDeleted,
    DelayBindingDeleted,
    ExchangeDeleted,
    PermissionsCleared,
    QueueFull,
    ResultsMissing,
    ResultsDeleted,
    DelayDeleted,
    QueuePurged,
    QueueDeleted,
    DataWiped,
}

/// What a kind of fault may make run twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Nothing.
    Nothing,
    /// What workers have started and the broker has not heard of.
    Workers,
    /// That, and what the relay has published and not heard of.
    All,
}

impl Fault {
    /// Those after which everything goes on within seconds.
    pub const USUAL: &[Self] = &[
        Self::ProducerKilled,
        Self::WorkerKilled,
        Self::BrokerKilled,
        Self::LinkCut,
        Self::ProducerTerminated,
        Self::WorkerTerminated,
        Self::WorkerStopped,
        Self::BrokerRestarted,
        Self::BrokerStopped,
        Self::ConnectionsClosed,
        Self::LinkRefused,
        Self::LinkSilent,
        Self::LinkSlow,
        Self::MemoryAlarm,
        Self::DiskAlarm,
        Self::DeadLettersDeleted,
        Self::BindingDeleted,
        Self::DelayBindingDeleted,
        Self::ExchangeDeleted,
        Self::PermissionsCleared,
        Self::QueueFull,
        Self::ResultsMissing,
    ];

    /// Those that take half a minute: a peer is given up by its heartbeat.
    pub const LONG: &[Self] = &[Self::WorkerFrozen];

    /// Those that take messages from the broker: what they held is found and published again after half a minute.
    pub const LOSSES: &[Self] =
        &[Self::ResultsDeleted, Self::DelayDeleted, Self::QueuePurged, Self::QueueDeleted, Self::DataWiped];

    /// The kinds for a run of that time.
    #[must_use]
    pub fn fitting(time: Duration) -> Vec<Self> {
        if time < LONG_RUN { Self::USUAL.to_vec() } else { Self::all().collect() }
    }

    /// Every kind that can be made.
    pub fn all() -> impl Iterator<Item = Self> {
        [Self::USUAL, Self::LONG, Self::LOSSES].into_iter().flatten().copied()
    }

    /// The kind that the table calls so.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::all().find(|fault| fault.name() == name)
    }

    /// Whether it meets something at the broker that must be there.
    #[must_use]
    pub fn needs_objects(self) -> bool {
        matches!(
            self,
            Self::DeadLettersDeleted
                | Self::BindingDeleted
                | Self::DelayBindingDeleted
                | Self::ExchangeDeleted
                | Self::QueueFull
                | Self::ResultsMissing
                | Self::ResultsDeleted
                | Self::DelayDeleted
                | Self::QueuePurged
                | Self::QueueDeleted
        )
    }

    /// Whether it takes tasks or their results from the broker.
    #[must_use]
    pub fn takes_tasks(self) -> bool {
        Self::LOSSES.contains(&self)
    }

    /// Whether a retry may meet no place when its wait is over: the broker offers it again after three minutes, and before
    /// that it looks lost.
    #[must_use]
    pub fn withholds_retries(self) -> bool {
        matches!(self, Self::QueueFull | Self::ExchangeDeleted)
    }

    /// What it may make run twice.
    #[must_use]
    pub fn reach(self) -> Reach {
        match self {
            Self::ProducerTerminated | Self::WorkerTerminated | Self::DeadLettersDeleted => Reach::Nothing,
            Self::WorkerKilled
            | Self::WorkerStopped
            | Self::WorkerFrozen
            | Self::WorkerCrashed
            | Self::LinkCut
            | Self::LinkRefused
            | Self::LinkSilent
            | Self::LinkSlow => Reach::Workers,
            _ => Reach::All,
        }
    }

    /// What the table calls it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ProducerKilled => "producer killed",
            Self::ProducerTerminated => "producer told to end",
            Self::WorkerKilled => "worker killed",
            Self::WorkerTerminated => "worker told to end",
            Self::WorkerStopped => "worker stopped for a while",
            Self::WorkerFrozen => "worker stopped until it is given up",
            Self::WorkerCrashed => "worker killed by a task",
            Self::BrokerKilled => "broker killed",
            Self::BrokerRestarted => "broker restarted",
            Self::BrokerStopped => "broker stopped for a while",
            Self::ConnectionsClosed => "connections closed by the broker",
            Self::LinkCut => "workers' connections cut",
            Self::LinkRefused => "workers' connections refused",
            Self::LinkSilent => "workers' network silent",
            Self::LinkSlow => "workers' network slow",
            Self::MemoryAlarm => "memory alarm",
            Self::DiskAlarm => "disk alarm",
            Self::DeadLettersDeleted => "dead letters deleted",
            Self::BindingDeleted => "tasks' binding deleted",
            Self::DelayBindingDeleted => "delay queue's binding deleted",
            Self::ExchangeDeleted => "tasks' exchange deleted",
            Self::PermissionsCleared => "permissions cleared",
            Self::QueueFull => "tasks' queue full",
            Self::ResultsMissing => "results' queue missing for a while",
            Self::ResultsDeleted => "results' queue deleted",
            Self::DelayDeleted => "delay queue deleted",
            Self::QueuePurged => "tasks' queue purged",
            Self::QueueDeleted => "tasks' queue deleted",
            Self::DataWiped => "broker's data wiped",
        }
    }
}

/// A fault to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Which.
    pub fault: Fault,
    /// How long nothing is broken before it.
    pub pause: Duration,
    /// How long it lasts, if it is one that lasts.
    pub lasts: Duration,
    /// Which of the workers it meets.
    pub worker: usize,
}

/// The faults of a seed, without end: each kind once, then each once more in another order, and so on.
pub fn schedule(seed: u64, kinds: Vec<Fault>, workers: usize) -> impl Iterator<Item = Plan> {
    let mut rng = Rng::with_seed(seed);
    let mut deck = Vec::new();
    std::iter::from_fn(move || {
        if deck.is_empty() {
            deck.clone_from(&kinds);
            rng.shuffle(&mut deck);
        }
        let fault = deck.pop()?;
        let pause = Duration::from_millis(rng.u64(500..=2_500));
        let lasts = Duration::from_millis(rng.u64(500..=4_000));
        Some(Plan { fault, pause, lasts, worker: rng.usize(..workers.max(1)) })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_has_one_schedule_and_each_round_has_every_kind() {
        let kinds = Fault::USUAL.to_vec();
        let draw = |seed| schedule(seed, kinds.clone(), 2).take(2 * kinds.len()).collect::<Vec<_>>();
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        for round in draw(7).chunks(kinds.len()) {
            let mut drawn: Vec<Fault> = round.iter().map(|plan| plan.fault).collect();
            drawn.sort_unstable();
            let mut all = kinds.clone();
            all.sort_unstable();
            assert_eq!(drawn, all);
        }
        assert!(schedule(7, Vec::new(), 2).next().is_none());
    }
}
