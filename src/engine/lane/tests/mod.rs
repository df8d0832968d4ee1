//! A lane from the trainer's side: a real arena, real rings, real threads, kernels that can be computed by
//! hand.

mod courses;
mod ends;
mod kernels;
mod on_device;
mod passes;
mod trainer;
mod turns;
