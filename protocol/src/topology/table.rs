//! What can be declared on a broker. Plain data; [`super::Topology`] fills it in.

use serde_json::{Map, Value};

/// The kinds of exchange in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExchangeKind {
    /// Routes by pattern.
    Topic,
    /// Routes by header values.
    Headers,
    /// Routes to all.
    Fanout,
    /// Routes by the whole routing key.
    Direct,
}

/// An exchange to declare.
#[derive(Debug, Clone, PartialEq)]
pub struct Exchange {
    /// Full name.
    pub name: String,
    /// Its kind.
    pub kind: ExchangeKind,
    /// Whether it survives the broker.
    pub durable: bool,
    /// Declare arguments.
    pub arguments: Map<String, Value>,
}

/// A queue to declare.
#[derive(Debug, Clone, PartialEq)]
pub struct Queue {
    /// Full name.
    pub name: String,
    /// Whether it survives the broker.
    pub durable: bool,
    /// Whether it belongs to one connection and goes with it.
    pub exclusive: bool,
    /// Declare arguments.
    pub arguments: Map<String, Value>,
}

/// A binding to declare.
#[derive(Debug, Clone, PartialEq)]
pub struct Binding {
    /// Source exchange.
    pub exchange: String,
    /// Destination queue.
    pub queue: String,
    /// Binding key; also set, without meaning, for fanout and headers exchanges.
    pub routing_key: String,
    /// Binding arguments.
    pub arguments: Map<String, Value>,
}

/// An object by its full name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Object {
    /// An exchange.
    Exchange(String),
    /// A queue.
    Queue(String),
}

impl std::fmt::Display for Object {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exchange(name) => write!(f, "exchange {name}"),
            Self::Queue(name) => write!(f, "queue {name}"),
        }
    }
}

/// What one service declares. Exchanges first: queues name them as dead-letter exchange.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Table {
    /// Exchanges, each after its alternate exchange.
    pub exchanges: Vec<Exchange>,
    /// Queues.
    pub queues: Vec<Queue>,
    /// Bindings.
    pub bindings: Vec<Binding>,
    /// What somebody else declares and this service only looks for. The broker tells whether it is there, not its
    /// arguments or bindings.
    pub expected: Vec<Object>,
}

impl Table {
    /// Both tables as one.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.exchanges.extend(other.exchanges);
        self.queues.extend(other.queues);
        self.bindings.extend(other.bindings);
        self.expected.extend(other.expected);
        self
    }

    /// The bindings of these queues alone.
    #[must_use]
    pub fn bindings_of<'a>(&self, queues: impl Iterator<Item = &'a str>) -> Self {
        let queues: Vec<&str> = queues.collect();
        let bindings = self.bindings.iter().filter(|binding| queues.contains(&binding.queue.as_str()));
        Self { bindings: bindings.cloned().collect(), ..Self::default() }
    }

    /// The same objects, to be declared by somebody else.
    #[must_use]
    pub fn declared_elsewhere(self) -> Self {
        let exchanges = self.exchanges.into_iter().map(|exchange| Object::Exchange(exchange.name));
        let queues = self.queues.into_iter().map(|queue| Object::Queue(queue.name));
        let expected = self.expected.into_iter().chain(exchanges).chain(queues).collect();
        Self { expected, ..Self::default() }
    }
}
