//! The operations themselves, one family a file.

mod accumulate;
mod activation;
mod arithmetic;
mod attention;
mod combine;
mod contraction;
mod convolution;
mod create;
mod einsum;
mod elementary;
mod identity;
mod logic;
mod norm;
mod number;
mod pad;
mod pick;
mod pool;
mod random;
mod reduce;
mod resize;
mod rounding;
mod scatter;
mod view;
mod window;

use super::{Call, Operand, Outcome, Scalar, Value, schema::Entry, value::Known};

/// Every entry of the table.
pub(super) fn all() -> impl Iterator<Item = &'static Entry> {
    [
        accumulate::ENTRIES,
        activation::ENTRIES,
        arithmetic::ENTRIES,
        attention::ENTRIES,
        combine::ENTRIES,
        contraction::ENTRIES,
        convolution::ENTRIES,
        create::ENTRIES,
        einsum::ENTRIES,
        elementary::ENTRIES,
        identity::ENTRIES,
        logic::ENTRIES,
        norm::ENTRIES,
        number::ENTRIES,
        pad::ENTRIES,
        pick::ENTRIES,
        pool::ENTRIES,
        random::ENTRIES,
        reduce::ENTRIES,
        resize::ENTRIES,
        rounding::ENTRIES,
        scatter::ENTRIES,
        view::ENTRIES,
        window::ENTRIES,
    ]
    .into_iter()
    .flatten()
}

const fn entry(signature: &'static str, lower: fn(&mut Call<'_, '_>) -> Outcome) -> Entry {
    Entry { signature, lower }
}
