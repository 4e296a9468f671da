//! What the property tests draw from. A failing case is kept in `proptest-regressions` beside `src` and run first from
//! then on.

use proptest::prelude::*;
use serde_json::Value;
use serde_json::value::RawValue;

/// Any JSON that AMQP's tables hold too: its integers are signed.
pub(crate) fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-1e300..1e300_f64).prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 64, 8, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..8).prop_map(Value::from),
            prop::collection::hash_map(any::<String>(), inner, 0..8).prop_map(|map| map.into_iter().collect()),
        ]
    })
}

prop_compose! {
    /// `args` and `kwargs`.
    pub(crate) fn any_arguments()(
        args in prop::collection::vec(any_json(), 0..8),
        kwargs in prop::collection::hash_map(any::<String>(), any_json(), 0..8),
    ) -> (Box<RawValue>, Box<RawValue>) {
        let raw = |value: Value| RawValue::from_string(value.to_string()).unwrap();
        (raw(args.into()), raw(kwargs.into_iter().collect()))
    }
}

pub(crate) fn any_text(max_chars: usize) -> impl Strategy<Value = String> {
    prop::collection::vec(any::<char>(), 1..=max_chars).prop_map(String::from_iter)
}
