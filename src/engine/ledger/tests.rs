//! Whatever is taken and given back, from whatever thread, the sums are right and no limit is passed.

use std::sync::Arc;

use proptest::prelude::*;

use super::{Held, Holdings, Ledgers, QuotaLimits, QuotaSpent, Share, Whose};
use crate::fault::Fault as _;

const LIMITS: QuotaLimits = QuotaLimits {
    session: Holdings { sessions: 0, layers: 3, seeds: 4, tickets: 5, bytes: 100 },
    user: Holdings { sessions: 2, layers: 4, seeds: 6, tickets: 8, bytes: 150 },
};

fn some(what: Held, amount: u64) -> Holdings {
    Holdings::from_fn(|other| if other == what { amount } else { 0 })
}

#[test]
fn every_limit_is_refused_by_its_key_and_free_again_afterwards() {
    let ledgers = Ledgers::new(LIMITS);
    let (first, second) = (ledgers.open(7).unwrap(), ledgers.open(7).unwrap());
    let refused = ledgers.open(7).unwrap_err();
    assert_eq!(
        (refused.key, refused.limit, refused.whose),
        ("limits.max_sessions_per_uid", 2, Whose::User(7))
    );
    ledgers.open(8).expect("another user's are another's");
    for (what, session_key, user_key) in [
        (Held::Layers, "limits.max_layers_per_session", "limits.max_layers_per_uid"),
        (Held::Seeds, "limits.max_seeds_per_session", "limits.max_seeds_per_uid"),
        (Held::Tickets, "engine.max_tickets_per_layer", "limits.max_tickets_per_uid"),
        (Held::Bytes, "limits.max_bytes_per_session", "limits.max_bytes_per_uid"),
    ] {
        let (alone, together) = (LIMITS.session.of(what), LIMITS.user.of(what));
        let all = first.take(some(what, alone)).unwrap();
        let refused = first.take(some(what, 1)).unwrap_err();
        let expected =
            QuotaSpent { key: session_key, limit: alone, used: alone, asked: 1, what, whose: Whose::Session };
        assert_eq!(refused, expected);
        let rest = second.take(some(what, together - alone)).unwrap();
        let refused = second.take(some(what, 1)).unwrap_err();
        assert_eq!((refused.key, refused.limit, refused.used), (user_key, together, together));
        assert_eq!(second.held().of(what), together - alone, "refused by the user's, nothing of it stays");
        assert_eq!(refused.code(), "session.quota");
        let text = refused.to_string();
        assert!(
            text.starts_with(&format!("{user_key} is {together}: user 7 has {together} and asks for 1")),
            "{text}"
        );
        drop(all);
        second.take(some(what, 1)).unwrap();
        drop(rest);
        assert_eq!((first.held().of(what), second.held().of(what)), (0, 0));
    }
    let share = first.take(some(Held::Layers, 1)).unwrap();
    drop(first);
    assert_eq!(
        ledgers.open(7).unwrap_err().whose,
        Whose::User(7),
        "as long as it holds something it is there"
    );
    drop(share);
    ledgers.open(7).unwrap();
    drop(second);
    assert_eq!(ledgers.users(), [], "nobody is left");
}

#[test]
fn nothing_is_taken_of_what_does_not_fit_as_a_whole() {
    let ledgers = Ledgers::new(LIMITS);
    let session = ledgers.open(1).unwrap();
    let refused = session.take(Holdings { layers: 1, seeds: 2, bytes: 101, ..Holdings::NONE }).unwrap_err();
    assert_eq!(refused.what, Held::Bytes);
    assert_eq!(session.held(), Holdings { sessions: 1, ..Holdings::NONE });
    assert_eq!(ledgers.users()[0].held, Holdings { sessions: 1, ..Holdings::NONE });
    let absurd = Holdings { bytes: u64::MAX, ..Holdings::NONE };
    assert!(session.take(absurd).is_err());
    let unlimited = Ledgers::new(QuotaLimits::default());
    let session = unlimited.open(1).unwrap();
    let _most = session.take(absurd).expect("0 is no limit");
    assert!(session.take(absurd).is_err(), "and a sum that has no number is none either");
}

#[test]
fn threads_that_take_and_give_pass_no_limit_and_lose_nothing() {
    let ledgers = Ledgers::new(LIMITS);
    let sessions = [ledgers.open(1).unwrap(), ledgers.open(1).unwrap()];
    std::thread::scope(|scope| {
        for session in &sessions {
            for turn in 0..2 {
                let (session, ledgers) = (session.clone(), &ledgers);
                scope.spawn(move || {
                    for n in 0..2_000 {
                        let asked = Holdings { seeds: 1, bytes: 10 + (n + turn) % 30, ..Holdings::NONE };
                        let share = session.take(asked);
                        let (held, users) = (session.held(), ledgers.users()[0].held);
                        assert!(
                            held.bytes <= 100 && users.bytes <= 150 && users.seeds <= 6,
                            "{held:?} {users:?}"
                        );
                        drop(share);
                    }
                });
            }
        }
    });
    assert_eq!(ledgers.users()[0].held, Holdings { sessions: 2, ..Holdings::NONE });
}

proptest! {
    #[test]
    fn sums_are_those_of_the_shares(steps in prop::collection::vec((0..2usize, 0..4usize, 0..4u64, 0..60u64), 1..60)) {
        let ledgers = Ledgers::new(LIMITS);
        let sessions = [ledgers.open(1).unwrap(), ledgers.open(1).unwrap()];
        let mut shares: [Vec<Share>; 2] = [Vec::new(), Vec::new()];
        let sum = |shares: &[Share], what| shares.iter().map(|share| share.of(what)).sum::<u64>();
        for (who, step, seeds, bytes) in steps {
            if step == 0 {
                shares[who].pop();
            } else {
                let asked = Holdings { seeds, bytes, ..Holdings::NONE };
                let fits = |what: Held| {
                    let own = sum(&shares[who], what) + asked.of(what);
                    let both = own + sum(&shares[1 - who], what);
                    asked.of(what) == 0 || (own <= LIMITS.session.of(what) && both <= LIMITS.user.of(what))
                };
                let expected = fits(Held::Seeds) && fits(Held::Bytes);
                let taken = Arc::clone(&sessions[who]).take(asked);
                prop_assert_eq!(taken.is_ok(), expected);
                shares[who].extend(taken);
            }
            for what in [Held::Seeds, Held::Bytes] {
                prop_assert_eq!(sessions[who].held().of(what), sum(&shares[who], what));
                let both = sum(&shares[0], what) + sum(&shares[1], what);
                prop_assert_eq!(ledgers.users()[0].held.of(what), both);
            }
        }
    }
}
