//! The configuration as written: every key optional, each value with the place it stands at.

use std::{collections::BTreeMap, ops::Range};

use toml::de::{DeTable, DeValue};

use super::{
    environment::{Environment, PREFIX},
    keys::Keys,
    problem::{Place, Problem},
};

/// A value before anyone has asked what type it should have.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum RawValue {
    String(String),
    Integer(i64),
    Boolean(bool),
    List(Vec<RawValue>),
    /// The text of an environment variable, which has no type of its own.
    Variable(String),
    /// A TOML type that no key has, named for the message.
    Other(&'static str),
}

impl RawValue {
    /// The text of a string or a variable.
    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Self::String(text) | Self::Variable(text) => Some(text),
            _ => None,
        }
    }

    /// What was written, for a message.
    pub(super) fn kind(&self) -> String {
        match self {
            Self::String(text) | Self::Variable(text) => format!("{text:?}"),
            Self::Integer(number) => number.to_string(),
            Self::Boolean(value) => value.to_string(),
            Self::List(_) => "a list".to_owned(),
            Self::Other(what) => (*what).to_owned(),
        }
    }

    fn from_toml(value: &DeValue<'_>) -> Self {
        match value {
            DeValue::String(text) => Self::String(text.to_string()),
            DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
                Ok(number) => Self::Integer(number),
                Err(_) => Self::Other("a number beyond 64 bits"),
            },
            DeValue::Boolean(value) => Self::Boolean(*value),
            DeValue::Array(items) => Self::List(items.iter().map(|i| Self::from_toml(i.get_ref())).collect()),
            DeValue::Float(_) => Self::Other("a number with a fraction"),
            DeValue::Datetime(_) => Self::Other("a date"),
            DeValue::Table(_) => Self::Other("a table"),
        }
    }
}

/// One key as written.
#[derive(Clone, Debug)]
pub(super) struct RawSetting {
    pub(super) value: RawValue,
    pub(super) place: Place,
}

/// Every key that was written, by its full name. Unknown ones are already reported and left out.
#[derive(Debug, Default)]
pub(super) struct RawConfig {
    pub(super) settings: BTreeMap<String, RawSetting>,
}

impl RawConfig {
    /// Reads the file's text; unknown keys are left out and reported.
    ///
    /// # Errors
    /// Where the text is no TOML, and nothing else: what follows a slip in the syntax cannot be trusted, and
    /// complaints about it would bury the cause.
    pub(super) fn from_toml(text: &str, keys: &Keys, problems: &mut Vec<Problem>) -> Result<Self, Problem> {
        let lines = Lines(text);
        let (table, errors) = DeTable::parse_recoverable(text);
        if let Some(first) = errors.iter().min_by_key(|error| error.span().map_or(0, |span| span.start)) {
            return Err(Problem {
                place: first.span().map_or(Place::File, |span| lines.place(&span)),
                key: String::new(),
                message: first.message().replace('\n', "; "),
            });
        }
        let mut raw = Self::default();
        raw.read_table(table.get_ref(), "", &lines, keys, problems);
        Ok(raw)
    }

    fn read_table(
        &mut self,
        table: &DeTable<'_>,
        prefix: &str,
        lines: &Lines<'_>,
        keys: &Keys,
        problems: &mut Vec<Problem>,
    ) {
        for (name, value) in table {
            let key = match prefix {
                "" => name.get_ref().to_string(),
                _ => format!("{prefix}.{}", name.get_ref()),
            };
            let place = lines.place(&name.span());
            match value.get_ref() {
                DeValue::Table(inner) if keys.is_section(&key) => {
                    self.read_table(inner, &key, lines, keys, problems);
                }
                value if keys.is_key(&key) => {
                    self.settings.insert(key, RawSetting { value: RawValue::from_toml(value), place });
                }
                _ => problems.push(Problem { place, message: keys.unknown(&key), key }),
            }
        }
    }

    /// Lays the variables over the file.
    pub(super) fn override_with(
        &mut self,
        environment: &impl Environment,
        keys: &Keys,
        problems: &mut Vec<Problem>,
    ) {
        for (name, value) in environment.variables() {
            let Some(rest) = name.strip_prefix(PREFIX) else { continue };
            let key = rest.to_ascii_lowercase().replace("__", ".");
            let place = Place::Variable(name);
            if keys.is_key(&key) {
                self.settings.insert(key, RawSetting { value: RawValue::Variable(value), place });
            } else {
                problems.push(Problem { place, message: keys.unknown(&key), key });
            }
        }
    }
}

/// Turns byte offsets into line numbers.
struct Lines<'a>(&'a str);

impl Lines<'_> {
    fn place(&self, span: &Range<usize>) -> Place {
        let before = self.0.as_bytes().get(..span.start).unwrap_or(self.0.as_bytes());
        Place::Line(1 + before.iter().filter(|byte| **byte == b'\n').count())
    }
}
