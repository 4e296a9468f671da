//! Times as text and as milliseconds since 1970, all in UTC.
//!
//! Two spellings are written: RFC 3339 with `Z` for HTTP (DESIGN section 5), and Celery's with `+00:00` for messages.

use time::format_description::BorrowedFormatItem;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;
use time::{OffsetDateTime, PrimitiveDateTime, UtcOffset};

const MILLISECONDS: &[BorrowedFormatItem<'static>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]");

/// UTC with milliseconds and `Z`, as every time in an HTTP answer; what is below a millisecond is cut off.
#[must_use]
pub fn rfc3339(at: OffsetDateTime) -> String {
    utc_text(at) + "Z"
}

/// UTC with milliseconds and `+00:00`, as Celery writes `eta`, `expires` and `date_done`: `fromisoformat` of older
/// Pythons knows no `Z`.
#[must_use]
pub fn celery(at: OffsetDateTime) -> String {
    utc_text(at) + "+00:00"
}

fn utc_text(at: OffsetDateTime) -> String {
    // A time in the last hours of the year 9999 west of Greenwich is beyond the calendar in UTC.
    let utc = at.checked_to_offset(UtcOffset::UTC).unwrap_or(PrimitiveDateTime::MAX.assume_utc());
    utc.format(MILLISECONDS).unwrap_or_default()
}

/// The time so many milliseconds after 1970, `None` beyond the years -9999 to 9999.
#[must_use]
pub fn from_unix_ms(ms: i64) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000).ok()
}

/// Milliseconds since 1970, rounded down.
#[must_use]
pub fn unix_ms(at: OffsetDateTime) -> i64 {
    at.unix_timestamp() * 1000 + i64::from(at.millisecond())
}

/// The system clock in milliseconds since 1970.
#[must_use]
pub fn now_ms() -> i64 {
    unix_ms(OffsetDateTime::now_utc())
}

/// Reads RFC 3339 strictly: date and time are separated by `T`, the offset is required. The result is in UTC.
#[must_use]
pub fn parse_rfc3339(text: &str) -> Option<OffsetDateTime> {
    // The library takes any separator.
    if !matches!(text.as_bytes().get(10), Some(b'T' | b't')) {
        return None;
    }
    OffsetDateTime::parse(text, &Rfc3339).ok()?.checked_to_offset(UtcOffset::UTC)
}

/// Reads what Celery clients send: as [`parse_rfc3339`], but also with a space as separator, and a time without
/// offset is UTC, which is a stock worker's default time zone. The result is in UTC.
#[must_use]
pub fn parse_celery(text: &str) -> Option<OffsetDateTime> {
    let (date, time) = text.trim().split_once(['T', 't', ' '])?;
    let zone = if time.contains(['Z', 'z', '+', '-']) { "" } else { "Z" };
    parse_rfc3339(&format!("{date}T{time}{zone}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use time::macros::datetime;

    #[test]
    fn celery_times_are_read_in_every_spelling() {
        let noon = datetime!(2030-01-01 12:00 UTC);
        for text in [
            "2030-01-01T12:00:00+00:00",
            "2030-01-01T12:00:00",
            "2030-01-01 12:00:00",
            "2030-01-01T12:00:00Z",
            "2030-01-01t12:00:00.000000z",
            "2030-01-01T14:00:00+02:00",
            "2030-01-01T04:30:00-07:30",
        ] {
            assert_eq!(parse_celery(text), Some(noon), "{text}");
        }
        let with_fraction = datetime!(2026-11-20 14:52:19.507514 UTC);
        assert_eq!(parse_celery("2026-11-20T14:52:19.507514+00:00"), Some(with_fraction));
        assert_eq!(parse_celery("2026-11-20 14:52:19.507514"), Some(with_fraction));
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in ["", "soon", "2030-01-01", "12:00:00", "2030-13-01T12:00:00", "2030-01-01T12:00:00+0", "T", "é T é"]
        {
            assert_eq!(parse_celery(text), None, "{text}");
        }
    }

    #[test]
    fn rfc3339_needs_its_separator_and_its_offset() {
        assert!(parse_rfc3339("2026-11-20T15:00:00Z").is_some());
        assert!(parse_rfc3339("2026-11-20T15:00:00.123+01:00").is_some());
        for text in ["2026-11-20T15:00:00", "2026-11-20 15:00:00Z", "2026-11-20x15:00:00Z", "", "2026-11-20T15:00:00Z "]
        {
            assert_eq!(parse_rfc3339(text), None, "{text}");
        }
    }

    #[test]
    fn the_edges_of_the_calendar_do_not_panic() {
        assert_eq!(parse_rfc3339("9999-12-31T23:59:59-01:00"), None);
        let west = PrimitiveDateTime::MAX.assume_offset(time::macros::offset!(-1));
        assert_eq!(rfc3339(west), "9999-12-31T23:59:59.999Z");
        assert_eq!(from_unix_ms(i64::MAX), None);
        assert_eq!(from_unix_ms(i64::MIN), None);
    }

    #[test]
    fn both_spellings_are_utc_with_milliseconds() {
        let at = datetime!(2026-11-20 15:00:00.1239 +2);
        assert_eq!(rfc3339(at), "2026-11-20T13:00:00.123Z");
        assert_eq!(celery(at), "2026-11-20T13:00:00.123+00:00");
    }

    proptest! {
        #[test]
        fn a_time_survives_text_and_milliseconds(ms in -62_135_596_800_000_i64..253_402_300_800_000) {
            let at = from_unix_ms(ms).unwrap();
            prop_assert_eq!(unix_ms(at), ms);
            prop_assert_eq!(parse_rfc3339(&rfc3339(at)), Some(at));
            prop_assert_eq!(parse_celery(&celery(at)), Some(at));
        }

        #[test]
        fn no_text_panics(text in ".*", digits in "[0-9:T.+Z -]{0,40}") {
            let _ = (parse_celery(&text), parse_rfc3339(&text), parse_celery(&digits), parse_rfc3339(&digits));
        }
    }
}
