//! A CSV's rows, one at a time: never more of it in memory than a record and a sum for each column.

use std::collections::{BTreeMap, btree_map::Entry};

use csv_core::{ReadRecordResult, Reader, ReaderBuilder};

use super::column::{Column, Totals};
use crate::handler::TaskError;

const MAX_RECORD: usize = 1 << 20;
const MAX_COLUMNS: usize = 10_000;

/// What was counted so far.
pub(super) struct Table {
    reader: Reader,
    record: Record,
    /// What the first row is for.
    header: bool,
    names: Vec<String>,
    columns: Vec<Column>,
    rows: u64,
}

/// The fields that were read of the current record, one after another, and where each ends.
struct Record {
    fields: Vec<u8>,
    ends: Vec<usize>,
    /// How much of either is filled.
    filled: (usize, usize),
    /// Whether anything but the ends of empty lines was read of it.
    begun: bool,
}

impl Table {
    pub(super) fn new(delimiter: u8, header: bool) -> Self {
        Self {
            reader: ReaderBuilder::new().delimiter(delimiter).build(),
            record: Record { fields: vec![0; 4096], ends: vec![0; 64], filled: (0, 0), begun: false },
            header,
            names: Vec::new(),
            columns: Vec::new(),
            rows: 0,
        }
    }

    pub(super) fn push(&mut self, mut piece: &[u8]) -> Result<(), TaskError> {
        // To the reader an empty piece is the end.
        while !piece.is_empty() {
            let (outcome, read) = self.record.read(&mut self.reader, piece);
            piece = &piece[read..];
            match outcome {
                ReadRecordResult::Record => self.end_record()?,
                ReadRecordResult::OutputFull if !grow(&mut self.record.fields, MAX_RECORD) => {
                    return Err(self.refused("RecordTooLong", &format!("is longer than {MAX_RECORD} bytes")));
                }
                ReadRecordResult::OutputEndsFull if !grow(&mut self.record.ends, MAX_COLUMNS) => {
                    return Err(self.refused("TooManyColumns", &format!("has more than {MAX_COLUMNS} fields")));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The rows, and the columns that hold numbers by their names.
    pub(super) fn finish(mut self) -> Result<(u64, BTreeMap<String, Totals>), TaskError> {
        // It ends the last record, except within quotes.
        self.push(b"\n")?;
        if self.record.begun {
            return Err(self.refused("MalformedCsv", "has a quote that is never closed"));
        }
        let mut totals_by_name = BTreeMap::new();
        let mut names = self.names.into_iter();
        for (index, column) in self.columns.into_iter().enumerate() {
            let name = names.next().unwrap_or_default();
            if let Some(totals) = column.totals() {
                insert(&mut totals_by_name, name, index + 1, totals);
            }
        }
        Ok((self.rows, totals_by_name))
    }

    fn end_record(&mut self) -> Result<(), TaskError> {
        let (first, fields) = (self.columns.is_empty(), self.record.filled.1);
        if first {
            self.columns.resize_with(fields, Column::default);
        }
        if first && self.header {
            self.names = self.record.fields().map(|name| String::from_utf8_lossy(name).into_owned()).collect();
        } else {
            self.add_row(fields)?;
        }
        self.record.clear();
        Ok(())
    }

    fn add_row(&mut self, fields: usize) -> Result<(), TaskError> {
        let first = self.columns.len();
        if fields != first {
            return Err(self.refused("MalformedCsv", &format!("has {fields} fields, and the first {first}")));
        }
        for (column, field) in self.columns.iter_mut().zip(self.record.fields()) {
            column.add(field);
        }
        self.rows += 1;
        Ok(())
    }

    /// An error about the present row.
    fn refused(&self, kind: &str, what: &str) -> TaskError {
        let header = self.header && self.columns.is_empty();
        let row = if header { "the header".to_owned() } else { format!("row {}", self.rows + 1) };
        TaskError::fail(kind, format!("{row} {what}"))
    }
}

impl Record {
    /// Reads on, at most to the record's end; how much of the piece that took.
    fn read(&mut self, reader: &mut Reader, piece: &[u8]) -> (ReadRecordResult, usize) {
        let (fields, ends) = self.filled;
        let (outcome, read, written, ended) =
            reader.read_record(piece, &mut self.fields[fields..], &mut self.ends[ends..]);
        self.filled = (fields + written, ends + ended);
        self.begun |= piece[..read].iter().any(|byte| !matches!(byte, b'\r' | b'\n'));
        (outcome, read)
    }

    fn fields(&self) -> impl Iterator<Item = &[u8]> {
        let ends = &self.ends[..self.filled.1];
        let starts = std::iter::once(0).chain(ends.iter().copied());
        starts.zip(ends).map(|(start, &end)| &self.fields[start..end])
    }

    fn clear(&mut self) {
        self.filled = (0, 0);
        self.begun = false;
    }
}

/// Doubles it, `false` when it has its largest size already.
fn grow<T: Clone + Default>(buffer: &mut Vec<T>, max: usize) -> bool {
    let can = buffer.len() < max;
    buffer.resize((2 * buffer.len()).min(max), T::default());
    can
}

/// Under its name, and with its position when that is empty or taken.
fn insert(named: &mut BTreeMap<String, Totals>, name: String, position: usize, totals: Totals) {
    match named.entry(name) {
        Entry::Vacant(vacant) if !vacant.key().is_empty() => {
            vacant.insert(totals);
        }
        taken => {
            let name = taken.key();
            let positioned = if name.is_empty() { position.to_string() } else { format!("{name} {position}") };
            insert(named, positioned, position, totals);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::process_file::column::Sum;

    type Sums = Vec<(String, u64, Option<Sum>)>;

    fn table(csv: &[u8], chunk: usize, header: bool) -> Result<(u64, Sums), String> {
        let mut table = Table::new(b',', header);
        let told = |error: TaskError| format!("{}: {}", error.error().kind, error.error().message);
        csv.chunks(chunk).try_for_each(|piece| table.push(piece)).map_err(told)?;
        let (rows, columns) = table.finish().map_err(told)?;
        Ok((rows, columns.into_iter().map(|(name, totals)| (name, totals.count, totals.sum)).collect()))
    }

    fn sum(name: &str, count: u64, sum: i128) -> (String, u64, Option<Sum>) {
        (name.to_owned(), count, Some(Sum::Integer(sum)))
    }

    #[test]
    fn rows_are_the_same_however_the_bytes_come() {
        let csv = "\u{feff}id,\"na\"\"me\",n\r\n1,\"a,\nb\",10\r\n\r\n2,\"c \"\"d\"\"\",\n3,e,\"5\"".as_bytes();
        for chunk in 3..=csv.len() {
            assert_eq!(table(csv, chunk, true), Ok((3, vec![sum("id", 3, 6), sum("n", 2, 15)])), "{chunk}");
        }
    }

    #[test]
    fn columns_without_a_name_of_their_own_have_their_position() {
        assert_eq!(table(b"1,2\n3,4\n", 9, false), Ok((2, vec![sum("1", 2, 4), sum("2", 2, 6)])));
        let columns = vec![sum("2", 1, 2), sum("a", 1, 1), sum("a 3", 1, 4)];
        assert_eq!(table(b"a,,a\n1,2,4\n", 99, true), Ok((1, columns)));
        let columns = vec![sum("2", 1, 1), sum("2 2", 1, 2)];
        assert_eq!(table(b"2,2\n1,2\n", 99, true), Ok((1, columns)));
    }

    #[test]
    fn there_may_be_no_rows() {
        for csv in ["", "\n\r\n", "a,b", "a,b\r\n"] {
            assert_eq!(table(csv.as_bytes(), 99, true), Ok((0, vec![])), "{csv:?}");
        }
    }

    #[test]
    fn a_row_unlike_the_first_is_named() {
        for (csv, message) in [
            ("a,b\n1,2\n3\n", "row 2 has 1 fields, and the first 2"),
            ("a,b\n1,2,3\n", "row 1 has 3 fields, and the first 2"),
            ("a,b\n1,2\n3,\"4\n5,6\n", "row 2 has a quote that is never closed"),
            ("a,b\n1,\"", "row 1 has a quote that is never closed"),
            ("\"a,b", "the header has a quote that is never closed"),
        ] {
            assert_eq!(table(csv.as_bytes(), 5, true), Err(format!("MalformedCsv: {message}")), "{csv:?}");
        }
    }

    #[test]
    fn a_record_is_bounded_in_bytes_and_fields() {
        let row = |length| [b"a\n".as_slice(), &vec![b'x'; length], b"\n1\n"].concat();
        assert_eq!(table(&row(MAX_RECORD - 1), 60_000, true), Ok((2, vec![sum("a", 1, 1)])));
        let error = "RecordTooLong: row 1 is longer than 1048576 bytes".to_owned();
        assert_eq!(table(&row(MAX_RECORD + 1), 60_000, true), Err(error));
        let open = [b"\"".as_slice(), &vec![b'\n'; 2 << 20]].concat();
        assert!(table(&open, 60_000, true).unwrap_err().starts_with("RecordTooLong: the header"));
        let wide = |fields: usize| vec!["1"; fields].join(",");
        assert_eq!(table(wide(MAX_COLUMNS).as_bytes(), 999, false).unwrap().1.len(), MAX_COLUMNS);
        assert!(table(wide(MAX_COLUMNS + 1).as_bytes(), 999, false).unwrap_err().starts_with("TooManyColumns: row 1"));
    }
}
