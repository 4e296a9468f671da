//! JSON as Python would show it, for the headers `argsrepr` and `kwargsrepr`: for people's eyes in Flower and logs.
//!
//! It goes from token to token without building a value, and stops at the limit whatever the size of the input.

use std::str::Chars;

use serde_json::value::RawValue;

/// The characters of Celery's own `argsrepr` (`argsrepr_maxsize`).
pub const MAX_CHARS: usize = 1024;

/// A repr of many-byte characters is cut here, to stay under [`crate::message::MAX_HEADER_BYTES`].
const MAX_BYTES: usize = 2000;

/// What stands for the rest.
const ELLIPSIS: &str = "...";

/// The Python repr of `raw`, at most `max_chars` characters and 2,000 bytes; what is longer ends in `...`.
///
/// Numbers stand as they were sent (`1e3`, where Python shows `1000.0`). Of a string that does not fit, only the part
/// that fits decides on the quotes.
#[must_use]
pub fn python_repr(raw: &RawValue, max_chars: usize) -> String {
    let mut out = Bounded { text: String::new(), chars: 0, max_chars };
    let mut rest = raw.get().chars();
    while let Some(token) = rest.next() {
        match token {
            ' ' | '\t' | '\n' | '\r' => {}
            ',' => out.push_str(", "),
            ':' => out.push_str(": "),
            't' => literal(&mut out, &mut rest, "True"),
            'f' => literal(&mut out, &mut rest, "False"),
            'n' => literal(&mut out, &mut rest, "None"),
            '"' => string(&mut out, &mut rest),
            other => out.push(other),
        }
        if out.is_full() {
            break;
        }
    }
    out.finish()
}

/// Text that notes when it has become longer than allowed.
struct Bounded {
    text: String,
    chars: usize,
    max_chars: usize,
}

impl Bounded {
    fn push(&mut self, c: char) {
        self.text.push(c);
        self.chars += 1;
    }

    fn push_str(&mut self, text: &str) {
        text.chars().for_each(|c| self.push(c));
    }

    fn is_full(&self) -> bool {
        self.chars > self.max_chars || self.text.len() > MAX_BYTES
    }

    /// The characters that can be added before it is full, at most.
    fn room(&self) -> usize {
        (self.max_chars + 1).saturating_sub(self.chars)
    }

    fn finish(mut self) -> String {
        if self.is_full() {
            let keep = self.max_chars.saturating_sub(ELLIPSIS.len());
            let end = self.text.char_indices().nth(keep).map_or(self.text.len(), |(at, _)| at);
            let end = self.text.floor_char_boundary(end.min(MAX_BYTES - ELLIPSIS.len()));
            self.text.truncate(end);
            self.text.extend(ELLIPSIS.chars().take(self.max_chars));
        }
        self.text
    }
}

/// `true`, `false` or `null`, whose first letter is taken.
fn literal(out: &mut Bounded, rest: &mut Chars<'_>, python: &str) {
    while rest.as_str().starts_with(|c: char| c.is_ascii_lowercase()) {
        rest.next();
    }
    out.push_str(python);
}

/// A string whose opening quote is taken: single quotes, unless it contains single ones and no double ones.
fn string(out: &mut Bounded, rest: &mut Chars<'_>) {
    let room = out.room();
    let points: Vec<u32> = std::iter::from_fn(|| code_point(rest)).take(room).collect();
    let contains = |quote: char| points.contains(&u32::from(quote));
    let quote = if contains('\'') && !contains('"') { '"' } else { '\'' };
    out.push(quote);
    for point in points {
        escaped(out, point, quote);
        if out.is_full() {
            return;
        }
    }
    out.push(quote);
}

/// The next code point of a JSON string, `None` at its closing quote. A lone surrogate comes as its number.
fn code_point(rest: &mut Chars<'_>) -> Option<u32> {
    let c = match rest.next()? {
        '"' => return None,
        '\\' => match rest.next()? {
            'b' => '\u{8}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'u' => return surrogate_pair(rest),
            other => other,
        },
        other => other,
    };
    Some(u32::from(c))
}

/// The code point after `\u`, which may take another `\u`.
fn surrogate_pair(rest: &mut Chars<'_>) -> Option<u32> {
    let high = hex4(rest)?;
    if !(0xd800..0xdc00).contains(&high) {
        return Some(high);
    }
    let mut ahead = rest.clone();
    if (ahead.next(), ahead.next()) == (Some('\\'), Some('u'))
        && let Some(low @ 0xdc00..0xe000) = hex4(&mut ahead)
    {
        *rest = ahead;
        return Some(0x1_0000 + ((high - 0xd800) << 10) + (low - 0xdc00));
    }
    Some(high)
}

fn hex4(rest: &mut Chars<'_>) -> Option<u32> {
    (0..4).try_fold(0, |sum, _| Some(sum * 16 + rest.next()?.to_digit(16)?))
}

fn escaped(out: &mut Bounded, point: u32, quote: char) {
    match char::from_u32(point) {
        Some('\n') => out.push_str("\\n"),
        Some('\r') => out.push_str("\\r"),
        Some('\t') => out.push_str("\\t"),
        Some(c) if c == quote || c == '\\' => {
            out.push('\\');
            out.push(c);
        }
        Some(c) if is_printable(c) => out.push(c),
        _ if point <= 0xff => out.push_str(&format!("\\x{point:02x}")),
        _ if point <= 0xffff => out.push_str(&format!("\\u{point:04x}")),
        _ => out.push_str(&format!("\\U{point:08x}")),
    }
}

/// Python's `str.isprintable` without its tables: not controls, separators but the space, format characters (which
/// could turn the direction of a log line) or private use. Unassigned characters count as printable here.
fn is_printable(c: char) -> bool {
    let format_or_private = matches!(c,
        '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{180e}'
        | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
        | '\u{fff9}'..='\u{fffb}' | '\u{e000}'..='\u{f8ff}' | '\u{e0000}'..='\u{10ffff}');
    c == ' ' || !(c.is_control() || c.is_whitespace() || format_or_private)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(json: &str, max_chars: usize) -> String {
        python_repr(serde_json::from_str(json).unwrap(), max_chars)
    }

    #[test]
    fn it_reads_like_python() {
        for (json, repr) in [
            ("[2,3]", "[2, 3]"),
            ("{}", "{}"),
            (r#"{ "x": 2, "y": [true, false, null] }"#, "{'x': 2, 'y': [True, False, None]}"),
            (r#""it's""#, r#""it's""#),
            (r#""it's \"x\"""#, r#"'it\'s "x"'"#),
            (r#""say \"x\"""#, r#"'say "x"'"#),
            (r#""a\\b\n\t\r\u0000\u007f\b""#, r"'a\\b\n\t\r\x00\x7f\x08'"),
            (r#""\u00e9€\ud83d\ude00 \u2028\u202e""#, r"'é€😀 \u2028\u202e'"),
            (r#""\ud800x\udc00\ud83dA""#, r"'\ud800x\udc00\ud83dA'"),
            (r#"["null", ": ,"]"#, "['null', ': ,']"),
            ("[-1.5e10, 0]", "[-1.5e10, 0]"),
        ] {
            assert_eq!(of(json, MAX_CHARS), repr);
        }
    }

    #[test]
    fn what_just_fits_is_whole_and_what_does_not_ends_in_dots() {
        assert_eq!(of("[1, 2]", 6), "[1, 2]");
        assert_eq!(of("[1, 23]", 6), "[1,...");
        assert_eq!(of(r#""abcdef""#, 8), "'abcdef'");
        assert_eq!(of(r#""abcdefg""#, 8), "'abcd...");
        assert_eq!(of("[1, 2]", 2), "..");
        assert_eq!(of("[1, 2]", 0), "");
    }

    #[test]
    fn many_byte_text_stays_under_the_limit_in_bytes() {
        let json = serde_json::to_string(&"😀".repeat(5000)).unwrap();
        let repr = of(&json, MAX_CHARS);
        assert!(repr.len() <= MAX_BYTES && repr.ends_with("😀..."));
    }

    proptest! {
        #[test]
        fn no_json_exceeds_the_limits(text in prop::collection::vec(".{0,50}", 0..60), max in 0..1100_usize) {
            let repr = of(&serde_json::to_string(&text).unwrap(), max);
            prop_assert!(repr.chars().count() <= max && repr.len() <= MAX_BYTES);
        }

        #[test]
        fn nothing_unprintable_gets_through(text in any::<String>()) {
            let repr = of(&serde_json::to_string(&text).unwrap(), MAX_CHARS);
            prop_assert!(repr.chars().all(is_printable));
        }
    }
}
