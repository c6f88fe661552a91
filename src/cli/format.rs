//! Numbers and tables as people read them.

/// `160202` as `160,202`.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bytes in the largest unit of 1024 that leaves a whole part, as Keras prints them: `625.79 KB`.
pub(super) fn bytes(count: u64) -> String {
    let (mut value, mut unit) = (count as f64, "B");
    for next in ["KB", "MB", "GB", "TB"] {
        if value < 1024.0 {
            break;
        }
        (value, unit) = (value / 1024.0, next);
    }
    format!("{value:.2} {unit}")
}

/// `32×32×3`.
pub(super) fn extents(extents: &[usize]) -> String {
    extents.iter().map(usize::to_string).collect::<Vec<_>>().join("×")
}

/// Rows under a heading, each column as wide as its longest cell; columns that `right` marks with `>` are flush right.
pub(super) fn table(heading: &[&str], right: &str, rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([heading[column].chars().count()]).max().unwrap_or(0)
    };
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded = cells.zip(right.chars()).enumerate().map(|(column, (cell, side))| match side {
            '>' => format!("{cell:>0$}", width(column)),
            _ => format!("{cell:<0$}", width(column)),
        });
        format!("{}\n", padded.collect::<Vec<_>>().join("  ").trim_end())
    };
    let heading = line(&mut heading.iter().copied());
    let rule = "─".repeat(
        rows.iter()
            .map(|row| line(&mut row.iter().map(String::as_str)))
            .chain([heading.clone()])
            .map(|l| l.chars().count() - 1)
            .max()
            .unwrap_or(0),
    );
    let rows: String = rows.iter().map(|row| line(&mut row.iter().map(String::as_str))).collect();
    format!("{heading}{rule}\n{rows}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_grouped() {
        assert_eq!([0, 999, 1000, 160_202, 1_000_000].map(grouped), ["0", "999", "1,000", "160,202", "1,000,000"]);
    }

    #[test]
    fn bytes_take_the_unit_that_leaves_a_whole_part() {
        assert_eq!([0, 1023, 1024, 640_808, 1 << 30].map(bytes), ["0.00 B", "1023.00 B", "1.00 KB", "625.79 KB", "1.00 GB"]);
    }

    #[test]
    fn columns_are_as_wide_as_their_longest_cell() {
        let rows = vec![vec!["a".to_owned(), "12,345".to_owned()], vec!["long".to_owned(), "6".to_owned()]];
        assert_eq!(table(&["name", "n"], "<>", &rows), "name       n\n────────────\na     12,345\nlong       6\n");
    }
}
