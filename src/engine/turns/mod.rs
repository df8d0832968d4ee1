//! Turns: which session's pass runs next where more want to run than there are places.
//!
//! While there is a place for everybody, a pass takes one by a single atomic operation and nothing is decided. Where
//! passes wait, the next place goes to the user whose sessions have used the least time, and among those to the
//! session that has. Time is measured after the fact: a pass is charged what it took.

mod account;
mod entrant;
mod places;
mod schedule;

#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod tests;

pub use entrant::{Entrant, Turn, Used};
pub use places::{Occupancy, Turns, TurnsSettings};
