//! A seed's life as a table of transitions.

use super::EngineError;
use crate::wire::SeedState::{self, *};

/// Where a seed may go from each state.
fn successors(from: SeedState) -> &'static [SeedState] {
    match from {
        Dormant => &[Loading],
        Loading => &[Training, Blending, Holding, Pruned, ErrorRecovery],
        Training => &[Blending, Holding, Pruned, ErrorRecovery],
        Blending => &[Holding, Pruned, ErrorRecovery],
        Holding => &[Blending, Fossilized, Pruned, ErrorRecovery],
        Fossilized => &[Pruned, ErrorRecovery],
        Pruned => &[Dormant],
        ErrorRecovery => &[Loading, Dormant],
    }
}

/// The state after a step from one state to another.
///
/// A hot swap is no step: the seed keeps its state while the new kernel is made ready beside the old one.
///
/// # Errors
/// [`EngineError::Transition`] naming both states when there is no such step.
pub fn transition(from: SeedState, to: SeedState) -> Result<SeedState, EngineError> {
    if successors(from).contains(&to) { Ok(to) } else { Err(EngineError::Transition { from, to }) }
}

/// Whether a seed in this state has a kernel that runs.
pub fn is_active(state: SeedState) -> bool {
    matches!(state, Training | Blending | Holding | Fossilized)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_good_graft_goes_all_the_way() {
        let way = [Dormant, Loading, Training, Blending, Holding, Fossilized];
        for pair in way.windows(2) {
            assert_eq!(transition(pair[0], pair[1]), Ok(pair[1]));
        }
    }

    #[test]
    fn every_active_state_can_be_pruned_and_can_fail() {
        for state in SeedState::ALL {
            let leaves = transition(state, Pruned).is_ok() && transition(state, ErrorRecovery).is_ok();
            assert_eq!(leaves, is_active(state) || state == Loading, "{state}");
        }
        assert!(transition(Pruned, Dormant).is_ok() && transition(ErrorRecovery, Dormant).is_ok());
        assert!(transition(ErrorRecovery, Loading).is_ok());
    }

    #[test]
    fn an_impossible_step_names_both_states() {
        for (from, to) in [(Dormant, Blending), (Pruned, Loading), (Fossilized, Blending), (Holding, Dormant)]
        {
            let text = transition(from, to).unwrap_err().to_string();
            assert!(text.contains(from.as_str()) && text.contains(to.as_str()), "{text}");
        }
        for state in SeedState::ALL {
            assert!(transition(state, state).is_err(), "{state}");
        }
    }
}
