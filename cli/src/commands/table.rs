//! Aligned tables for people, safe to show on a terminal.

/// Columns two spaces apart, each as wide as its widest cell.
pub fn table<const N: usize>(headers: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let rows: Vec<[String; N]> = std::iter::once(headers.map(str::to_uppercase))
        .chain(rows.into_iter().map(|row| row.map(|cell| plain(&cell))))
        .collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for row in &rows {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// Names and values, one pair a line; empty values are left out.
pub fn facts<'a>(facts: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let facts: Vec<_> = facts.into_iter().filter(|(_, value)| !value.is_empty()).collect();
    let width = facts.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    facts.iter().map(|(name, value)| format!("{name:width$}  {}\n", plain(value))).collect()
}

/// Without control characters: what a job wrote must not steer the terminal of who reads it.
pub fn plain(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["a".to_owned(), "1".to_owned()], ["längst".to_owned(), "2".to_owned()]];
        assert_eq!(table(["id", "n"], rows), "ID      N\na       1\nlängst  2\n");
    }

    #[test]
    fn escape_sequences_do_not_reach_the_terminal() {
        assert!(!table(["id"], [["\u{1b}[2J".to_owned()]]).contains('\u{1b}'));
    }

    #[test]
    fn empty_facts_are_left_out() {
        assert_eq!(facts([("id", "1".to_owned()), ("error", String::new())]), "id  1\n");
    }
}
