//! How a section is declared: once, with key, type, default, unit and what a change takes.

use super::{
    problem::{Place, Problem},
    raw::RawConfig,
    setting::Setting,
};

/// What it takes for a changed key to come into force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The daemon has to be restarted.
    Restart,
}

impl Change {
    /// The word in the shipped file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Restart => "restart",
        }
    }
}

/// A key with its present value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The full name, such as `cache.sqlite.path`.
    pub key: String,
    /// The value as it stands in a TOML file.
    pub value: String,
    /// The unit or the kind of value, such as `bytes`.
    pub unit: &'static str,
    /// What a change takes.
    pub change: Change,
}

/// A part of the configuration, made by [`section!`].
pub(super) trait Section: Default {
    /// The section that stands at `path`, with what was written laid over the defaults; bad values stay at
    /// their default.
    fn resolve(reader: &mut Reader<'_>, path: &str) -> Self;

    /// Appends every key of the section at `path` and of those below it.
    fn list(&self, entries: &mut Vec<Entry>, path: &str);
}

/// Takes settings out of the raw configuration and notes what is wrong with them.
pub(super) struct Reader<'a> {
    pub(super) raw: &'a RawConfig,
    pub(super) problems: &'a mut Vec<Problem>,
}

impl Reader<'_> {
    pub(super) fn read<T: Setting>(&mut self, key: &str, default: T) -> T {
        let Some(setting) = self.raw.settings.get(key) else { return default };
        T::read(&setting.value).unwrap_or_else(|message| {
            self.refuse(key, message);
            default
        })
    }

    /// Notes a problem with `key` at the place where it was written.
    pub(super) fn refuse(&mut self, key: &str, message: String) {
        let place = self.raw.settings.get(key).map_or(Place::File, |setting| setting.place.clone());
        self.problems.push(Problem { place, key: key.to_owned(), message });
    }
}

/// Declares a section: `field: Type = default, "unit", Change;`, and below `sections` those it holds. One that
/// stands in a single place says so with `in "path"`; without it may stand in several.
macro_rules! section {
    (
        $(#[$doc:meta])*
        $name:ident $(in $path:literal)? {
            $($(#[$field_doc:meta])* $field:ident: $type:ty = $default:expr, $unit:literal, $change:ident;)*
        }
        $(sections { $($(#[$inner_doc:meta])* $inner:ident: $inner_type:ty;)* })?
    ) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $type,)*
            $($($(#[$inner_doc])* pub $inner: $inner_type,)*)?
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)* $($($inner: Default::default(),)*)? }
            }
        }

        impl $crate::config::section::Section for $name {
            fn resolve(reader: &mut $crate::config::section::Reader<'_>, path: &str) -> Self {
                $(debug_assert_eq!(path, $path);)?
                Self {
                    $($field: reader.read(&format!("{path}.{}", stringify!($field)), $default),)*
                    $($($inner: <$inner_type as $crate::config::section::Section>::resolve(
                        reader,
                        &format!("{path}.{}", stringify!($inner)),
                    ),)*)?
                }
            }

            fn list(&self, entries: &mut Vec<$crate::config::section::Entry>, path: &str) {
                $(entries.push($crate::config::section::Entry {
                    key: format!("{path}.{}", stringify!($field)),
                    value: $crate::config::setting::Setting::show(&self.$field),
                    unit: $unit,
                    change: $crate::config::section::Change::$change,
                });)*
                $($($crate::config::section::Section::list(
                    &self.$inner,
                    entries,
                    &format!("{path}.{}", stringify!($inner)),
                );)*)?
            }
        }
    };
}
pub(super) use section;
