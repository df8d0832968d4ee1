//! A whole session in random order, beside a model that predicts every answer: seeds of one layer through their lives,
//! passes there and back, kernels that fail and come back, trainers that die and connect again.

mod arithmetic;
mod field;
mod interleaving;
mod kernels;
mod model;
mod run;
