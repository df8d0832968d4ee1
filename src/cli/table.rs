//! Text and tables for terminals: columns as wide as they need to be, numbers to the right.

use std::io::Write as _;

use super::CliError;

/// Prints text; a reader that went away, such as `head`, is no error.
pub(super) fn say(text: &str) {
    // Nothing is left to say it to where this fails.
    drop(std::io::stdout().write_all(shown(text).as_bytes()));
}

/// Prints JSON for a program to read, which a person may look at.
pub(super) fn say_json(value: &impl serde::Serialize) -> Result<(), CliError> {
    let text = serde_json::to_string_pretty(value).map_err(|error| CliError::usage(error.to_string()))?;
    drop(std::io::stdout().write_all((json_shown(&text) + "\n").as_bytes()));
    Ok(())
}

/// Prints a line to the standard error stream, after the tool's name.
pub fn complain(text: &str) {
    drop(writeln!(std::io::stderr(), "kasmina: {}", shown(text)));
}

/// What an artifact says of itself stands in what is printed, so characters that a terminal obeys are shown and
/// not sent to it: controls, and those that turn the direction of writing.
pub(super) fn shown(text: &str) -> String {
    with_escapes(text, |c, shown| shown.extend(c.escape_default()))
}

/// The same in JSON, where such characters stand in strings alone and have escapes of four digits.
fn json_shown(text: &str) -> String {
    with_escapes(text, |c, shown| shown.push_str(&format!("\\u{:04x}", u32::from(c))))
}

fn with_escapes(text: &str, escape: impl Fn(char, &mut String)) -> String {
    let turns = |c: char| matches!(c, '\u{200e}' | '\u{200f}' | '\u{061c}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars().fold(String::with_capacity(text.len()), |mut shown, c| {
        if (c != '\n' && c.is_control()) || turns(c) {
            escape(c, &mut shown);
        } else {
            shown.push(c);
        }
        shown
    })
}

/// Prints rows under their headings. Columns whose heading starts with a space go to the right.
pub(super) fn print(headings: &[&str], rows: &[Vec<String>]) {
    say(&render(headings, rows));
}

/// Rows under their headings as text.
pub(super) fn render(headings: &[&str], rows: &[Vec<String>]) -> String {
    let mut table = String::new();
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row.get(column).map_or(0, |cell| cell.chars().count()));
        cells.chain([headings[column].trim().chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..headings.len()).map(width).collect();
    let mut line = |cells: &[String]| {
        let mut text = String::new();
        for (column, (heading, &width)) in headings.iter().zip(&widths).enumerate() {
            let cell = cells.get(column).map_or("", String::as_str);
            let padded =
                if heading.starts_with(' ') { format!("{cell:>width$}") } else { format!("{cell:<width$}") };
            text.push_str(&padded);
            text.push_str("  ");
        }
        table.push_str(text.trim_end());
        table.push('\n');
    };
    line(&headings.iter().map(|heading| heading.trim().to_owned()).collect::<Vec<_>>());
    rows.iter().for_each(|row| line(row));
    table
}

/// A count as a person reads it, with a unit: `1.5 MFLOP`.
pub(super) fn count(number: u64, unit: &str) -> String {
    let prefixes = ["", "k", "M", "G", "T", "P", "E"];
    let (mut value, mut prefix) = (number as f64, 0);
    while value >= 1000.0 && prefix + 1 < prefixes.len() {
        value /= 1000.0;
        prefix += 1;
    }
    if prefix == 0 { format!("{number} {unit}") } else { format!("{value:.1} {}{unit}", prefixes[prefix]) }
}

/// Milliseconds as a person reads them: `350 ms`, `12 s`, `5 min`, `3 h`, `2 d`.
pub(super) fn span(ms: u64) -> String {
    let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "min"), (1000, "s")];
    let unit = units.into_iter().find(|(length, _)| ms >= 2 * length || (*length == 1000 && ms >= 1000));
    unit.map_or_else(|| format!("{ms} ms"), |(length, unit)| format!("{} {unit}", ms / length))
}

/// Bytes as a person reads them.
pub(super) fn bytes(count: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (count as f64, 0);
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", units[unit]) }
}

/// Microseconds as a person reads them.
pub(super) fn micros(us: f64) -> String {
    if us >= 10_000.0 { format!("{:.1} ms", us / 1000.0) } else { format!("{us:.0} us") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_obeys_is_shown_and_not_sent() {
        let text = "weight\u{1b}[2J\u{9b}31m\r é\u{202e}txt\u{2066}\u{200f}\n";
        assert_eq!(shown(text), "weight\\u{1b}[2J\\u{9b}31m\\r é\\u{202e}txt\\u{2066}\\u{200f}\n");
    }

    #[test]
    fn json_stays_json_whatever_it_quotes() {
        let quoted = "\u{1b}[31m\u{9b}\u{7f} é \u{202e}evil\u{2069}";
        let text = json_shown(&serde_json::to_string_pretty(&[quoted]).unwrap());
        assert!(!text.contains(['\u{1b}', '\u{9b}', '\u{7f}', '\u{202e}', '\u{2069}']), "{text:?}");
        assert_eq!(serde_json::from_str::<Vec<String>>(&text).unwrap(), [quoted]);
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["a", "1"], ["longer", "1000"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(render(&["name", " n"], &rows), "name       n\na          1\nlonger  1000\n");
    }

    #[test]
    fn quantities_read_well() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(3 << 30), "3.0 GiB");
        assert_eq!(count(999, "FLOP"), "999 FLOP");
        assert_eq!(count(1_540_000, "FLOP"), "1.5 MFLOP");
        assert_eq!(micros(43.4), "43 us");
        assert_eq!(micros(12_345.0), "12.3 ms");
    }
}
