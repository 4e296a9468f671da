//! Whether a JPEG is whole. The decoder makes up what is missing, and half a photo is not what was asked for.

const MARKER: u8 = 0xff;
const START_OF_IMAGE: u8 = 0xd8;
const END_OF_IMAGE: u8 = 0xd9;
const START_OF_SCAN: u8 = 0xda;

/// Whether an end of image follows the scans (ITU-T T.81, B.1). What comes after it does not count.
pub(super) fn is_complete(jpeg: &[u8]) -> bool {
    let Some(mut rest) = jpeg.strip_prefix(&[MARKER, START_OF_IMAGE]) else { return false };
    while let Some((marker, after)) = next_marker(rest) {
        if marker == END_OF_IMAGE {
            return true;
        }
        // A segment's length counts itself. A scan's data follow its segment, up to the next marker.
        let Some(length) = after.first_chunk().map(|length| usize::from(u16::from_be_bytes(*length))) else {
            return false;
        };
        let Some(next) = after.get(length..) else { return false };
        rest = if marker == START_OF_SCAN { skip_scan(next) } else { next };
    }
    false
}

/// The next marker and what follows it. It may be preceded by any number of fill bytes.
fn next_marker(bytes: &[u8]) -> Option<(u8, &[u8])> {
    let start = bytes.iter().position(|&byte| byte == MARKER)?;
    let code = start + bytes[start..].iter().position(|&byte| byte != MARKER)?;
    Some((bytes[code], &bytes[code + 1..]))
}

/// From the first marker that is neither a stuffed zero nor a restart.
fn skip_scan(bytes: &[u8]) -> &[u8] {
    let ends = |pair: &[u8]| pair[0] == MARKER && !matches!(pair[1], 0 | 0xd0..=0xd7 | MARKER);
    let end = bytes.windows(2).position(ends).unwrap_or(bytes.len());
    &bytes[end..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_jpeg_with_its_end_is_complete() {
        // A comment that looks like an end, a scan with a stuffed byte and a restart, the end, and more.
        let head = b"\xff\xd8\xff\xfe\x00\x04\xff\xd9\xff\xda\x00\x02ab\xff\x00\xff\xd0cd".as_slice();
        let whole = [head, b"\xff\xff\xd9"].concat();
        assert!(is_complete(&whole));
        assert!(is_complete(&[&whole, b"trailer".as_slice()].concat()));
        for end in 0..whole.len() {
            assert!(!is_complete(&whole[..end]), "{end}");
        }
    }

    #[test]
    fn lengths_that_lie_are_survived() {
        for bytes in [&b"\xff\xd8\xff\xfe\x00\x00"[..], b"\xff\xd8\xff\xfe\xff\xff", b"\xff\xd8\xff\xff\xff", b"PNG"] {
            assert!(!is_complete(bytes), "{bytes:?}");
        }
    }
}
