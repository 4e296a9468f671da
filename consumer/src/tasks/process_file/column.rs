//! The sum of a column's numbers.

use schemars::JsonSchema;
use serde::Serialize;

/// A column's numbers, as written in JSON or with a sign, leading zeros or white space around them. What else is in
/// the column does not count: compare `count` with the rows to see how much that is.
#[derive(Debug, PartialEq, Serialize, JsonSchema)]
pub(crate) struct Totals {
    /// How many numbers.
    pub(super) count: u64,
    /// Exact as long as all are integers and the sum has no more than 127 bits; JSON readers that keep 64 bits or a
    /// float lose digits of a larger one. Otherwise a float of 64 bits, summed so that rounding does not add up.
    /// `null` if that is too small to hold it.
    pub(super) sum: Option<Sum>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum Sum {
    Integer(i128),
    Float(f64),
}

/// What was summed so far.
#[derive(Default)]
pub(super) struct Column {
    count: u64,
    /// Of the integers, as long as it fits.
    integers: i128,
    /// Of everything else, once there is any.
    floats: Option<Floats>,
}

impl Column {
    /// Adds the field if it is a number.
    pub(super) fn add(&mut self, field: &[u8]) {
        let Some(number) = parse(field) else { return };
        self.count += 1;
        match number {
            Sum::Float(float) => self.floats.get_or_insert_default().add(float),
            Sum::Integer(integer) => {
                self.integers = self.integers.checked_add(integer).unwrap_or_else(|| {
                    self.floats.get_or_insert_default().add(float(self.integers));
                    integer
                });
            }
        }
    }

    /// `None` without a number.
    pub(super) fn totals(self) -> Option<Totals> {
        let sum = match self.floats {
            None => Some(Sum::Integer(self.integers)),
            Some(mut floats) => {
                floats.add(float(self.integers));
                let sum = floats.sum + floats.lost;
                sum.is_finite().then_some(Sum::Float(sum))
            }
        };
        (self.count > 0).then_some(Totals { count: self.count, sum })
    }
}

#[expect(clippy::cast_precision_loss, reason = "a sum of floats holds no more digits")]
fn float(integer: i128) -> f64 {
    integer as f64
}

/// A sum and what rounding took from it (Neumaier's summation).
#[derive(Default)]
struct Floats {
    sum: f64,
    lost: f64,
}

impl Floats {
    fn add(&mut self, float: f64) {
        let sum = self.sum + float;
        let (larger, smaller) = if self.sum.abs() >= float.abs() { (self.sum, float) } else { (float, self.sum) };
        self.lost += (larger - sum) + smaller;
        self.sum = sum;
    }
}

fn parse(field: &[u8]) -> Option<Sum> {
    let field = field.trim_ascii();
    // Not `inf`, `NaN`, `1e`: and a cheap answer for text.
    let first = *field.first()?;
    if !(first.is_ascii_digit() || matches!(first, b'-' | b'+' | b'.')) {
        return None;
    }
    if !field.iter().all(|byte| byte.is_ascii_digit() || matches!(byte, b'-' | b'+' | b'.' | b'e' | b'E')) {
        return None;
    }
    let text = str::from_utf8(field).ok()?;
    if let Ok(integer) = text.parse() {
        return Some(Sum::Integer(integer));
    }
    text.parse().ok().filter(|float: &f64| float.is_finite()).map(Sum::Float)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals(fields: &[&str]) -> Option<(u64, Option<Sum>)> {
        let mut column = Column::default();
        for field in fields {
            column.add(field.as_bytes());
        }
        column.totals().map(|totals| (totals.count, totals.sum))
    }

    #[test]
    fn integers_are_summed_exactly() {
        let max = u64::MAX.to_string();
        let exact = 3 * i128::from(u64::MAX) - 1;
        assert_eq!(totals(&[&max, &max, "-1", &max]), Some((4, Some(Sum::Integer(exact)))));
        assert_eq!(totals(&["007", "+1", " 2 ", "-0"]), Some((4, Some(Sum::Integer(10)))));
    }

    #[test]
    fn beyond_127_bits_it_is_a_float() {
        let max = i128::MAX.to_string();
        let Some((3, Some(Sum::Float(sum)))) = totals(&[&max, &max, "1"]) else { panic!("not a float") };
        assert!((sum / 2_f64.powi(128) - 1.0).abs() < 1e-15, "{sum}");
        let digits = "9".repeat(60);
        assert_eq!(totals(&[&digits]), Some((1, Some(Sum::Float(1e60)))));
    }

    #[test]
    fn rounding_does_not_add_up() {
        let cents = vec!["0.1"; 1_000_000];
        assert_eq!(totals(&cents), Some((1_000_000, Some(Sum::Float(100_000.0)))));
        assert_eq!(totals(&["1e100", "1", "1.5", "-1e100"]), Some((4, Some(Sum::Float(2.5)))));
    }

    #[test]
    fn what_is_no_number_does_not_count() {
        assert_eq!(totals(&["", "x", "inf", "NaN", "-", ".", "1e", "1_000", "1,5", "0x10", "1-2", "1e999", "٣"]), None);
        assert_eq!(totals(&["n/a", "1.5", "", ".5", "1e3"]), Some((3, Some(Sum::Float(1002.0)))));
    }

    #[test]
    fn a_sum_that_no_float_holds_is_null() {
        assert_eq!(totals(&["1.5e308", "1.5e308"]), Some((2, None)));
    }
}
