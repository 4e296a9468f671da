//! What a text has, counted as its bytes come.

/// The counts so far. It holds no text, so that a line may be as long as the file.
#[derive(Default)]
pub(super) struct Text {
    pub(super) lines: u64,
    pub(super) words: u64,
    in_word: bool,
    in_line: bool,
}

impl Text {
    pub(super) fn push(&mut self, piece: &[u8]) {
        for byte in piece {
            // Each counts where it begins, so that the last needs no end.
            self.lines += u64::from(!self.in_line);
            self.in_line = *byte != b'\n';
            let in_word = !byte.is_ascii_whitespace();
            self.words += u64::from(in_word && !self.in_word);
            self.in_word = in_word;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_words_count_where_they_begin() {
        for (content, lines, words) in [
            ("", 0, 0),
            ("\n", 1, 0),
            ("one", 1, 1),
            ("one\n", 1, 1),
            ("one\n\n two\tthree \r\nfour", 4, 4),
            ("é\u{a0}ü", 1, 1),
        ] {
            let (mut whole, mut split) = (Text::default(), Text::default());
            whole.push(content.as_bytes());
            content.as_bytes().chunks(1).for_each(|byte| split.push(byte));
            assert_eq!((whole.lines, whole.words), (lines, words), "{content:?}");
            assert_eq!((split.lines, split.words), (lines, words), "{content:?}");
        }
    }
}
