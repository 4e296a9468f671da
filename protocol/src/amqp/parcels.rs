//! What of a window travels as one message. It publishes nothing and waits for nothing: what shares a message came while
//! the window before was on its way.

use std::collections::HashMap;
use std::sync::Arc;

use super::publish::Publish;
use super::window::{Done, Pending};
use crate::message::Message;
use crate::pack::{self, MAX_BYTES, MAX_MEMBERS};

/// One message on the wire, and all that wait for its confirm; nobody for one that may be lost.
pub(super) struct Parcel {
    pub(super) publish: Arc<Publish>,
    pub(super) waiting: Vec<Done>,
}

/// The window in its order, packed: a pack stands where its first member stood. What may be lost is in none, so that it
/// stays ahead of what was published after it.
pub(super) fn parcels(window: Vec<Pending>) -> Vec<Parcel> {
    let mut parcels: Vec<Vec<Pending>> = Vec::with_capacity(window.len());
    for (number, pending) in numbers(&window).into_iter().zip(window) {
        match parcels.get_mut(number) {
            Some(parcel) => parcel.push(pending),
            None => parcels.push(vec![pending]),
        }
    }
    parcels.into_iter().map(parcel).collect()
}

/// A parcel that takes more.
struct Open {
    number: usize,
    members: usize,
    bytes: usize,
}

impl Open {
    fn takes(&self, bytes: usize) -> bool {
        self.members < MAX_MEMBERS && self.bytes + bytes <= MAX_BYTES
    }
}

/// For each publish the number of its parcel, counted as they begin. One at most is open for a place: what is awaited is
/// overtaken by nothing that goes there after it, such as a child by its parent's end.
fn numbers(window: &[Pending]) -> Vec<usize> {
    let mut open = HashMap::new();
    let mut begun = 0;
    let mut numbers = Vec::with_capacity(window.len());
    for Pending { publish, done } in window {
        let Publish { exchange, routing_key, message, .. } = &**publish;
        let (place, common, bytes) = ((exchange, routing_key), pack::common(&message.properties), pack::size(message));
        let packable = publish.packable && done.is_some();
        let before = open.remove(&place);
        let joined = before.filter(|(of, parcel): &(_, Open)| packable && *of == common && parcel.takes(bytes));
        let mut parcel = joined.map_or(Open { number: begun, members: 0, bytes: 0 }, |(_, parcel)| parcel);
        parcel.members += 1;
        parcel.bytes += bytes;
        begun += usize::from(parcel.number == begun);
        numbers.push(parcel.number);
        if packable {
            open.insert(place, (common, parcel));
        }
    }
    numbers
}

fn parcel(members: Vec<Pending>) -> Parcel {
    let (publishes, waiting): (Vec<_>, Vec<_>) =
        members.into_iter().map(|member| (member.publish, member.done)).unzip();
    let publish = match publishes.as_slice() {
        [one] => one.clone(),
        publishes => packed(publishes),
    };
    Parcel { publish, waiting: waiting.into_iter().flatten().collect() }
}

fn packed(publishes: &[Arc<Publish>]) -> Arc<Publish> {
    metrics::histogram!("errand_pack_members").record(u32::try_from(publishes.len()).unwrap_or(u32::MAX));
    let members: Vec<&Message> = publishes.iter().map(|publish| &publish.message).collect();
    let Publish { exchange, routing_key, .. } = &*publishes[0];
    Publish::to(exchange.clone(), routing_key.clone(), pack::pack(&members)).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;

    /// A publish of so many bytes to a queue, with a caller that waits.
    fn publish(queue: &str, bytes: usize) -> (Publish, bool) {
        let message = Message { body: vec![b'x'; bytes], ..Message::default() };
        (Publish::to_queue(queue.to_owned(), message).packable(true), true)
    }

    /// The members' bodies and how many wait, by parcel.
    fn parcels_of(publishes: Vec<(Publish, bool)>) -> Vec<(Vec<usize>, usize)> {
        let pending = |(publish, is_awaited): (Publish, bool)| Pending {
            publish: publish.into(),
            done: is_awaited.then(|| oneshot::channel().0),
        };
        let sizes = |message: &Message| match pack::unpack(message) {
            Some(members) => members.unwrap().iter().map(|member| member.body.len()).collect(),
            None => vec![message.body.len()],
        };
        let parcels = parcels(publishes.into_iter().map(pending).collect());
        parcels.iter().map(|parcel| (sizes(&parcel.publish.message), parcel.waiting.len())).collect()
    }

    #[test]
    fn what_goes_to_the_same_place_shares_a_message_and_overtakes_nothing_there() {
        let (transient, _) = publish("a", 1);
        let (single, _) = publish("a", 2);
        let (mut urgent, _) = publish("a", 3);
        urgent.message.properties.priority = Some(9);
        let window = vec![
            (transient, false),
            publish("a", 10),
            (single.packable(false), true),
            publish("b", 20),
            (urgent, true),
            publish("a", 11),
            publish("b", 21),
            publish("a", 12),
        ];
        let expected = [(vec![1], 0), (vec![10], 1), (vec![2], 1), (vec![20, 21], 2), (vec![3], 1), (vec![11, 12], 2)];
        assert_eq!(parcels_of(window), expected);
    }

    #[test]
    fn a_pack_has_bounds_and_what_is_larger_goes_alone() {
        let many = parcels_of((0..=2 * MAX_MEMBERS).map(|_| publish("a", 1)).collect());
        assert_eq!(many.iter().map(|(_, waiting)| *waiting).collect::<Vec<_>>(), [MAX_MEMBERS, MAX_MEMBERS, 1]);
        let half = MAX_BYTES / 2;
        let large = parcels_of([1, half, half, 1, 2 * MAX_BYTES, 1].map(|bytes| publish("a", bytes)).into());
        assert_eq!(large, [(vec![1, half], 2), (vec![half, 1], 2), (vec![2 * MAX_BYTES], 1), (vec![1], 1)]);
    }
}
