//! Kasmina: a node daemon that grafts small compiled modules into the layers of a network while it trains.
//!
//! The modules below stand in layers; each may import only what stands above it (the words import each
//! other freely). `tests/layering.rs` holds the tree to that.
//!
//! - words: [`id`], [`digest`], [`fault`], [`failpoint`], [`backoff`], [`clock`], [`signature`]
//! - settings and self-report: [`config`], [`telemetry`]
//! - compute, pure: [`tensor`], [`graph`], [`artifact`], [`backend`], [`validation`]
//! - data plane, threads and no async: [`wire`], [`record`], [`engine`]
//! - supply: [`guard`], [`cache`], [`origin`]
//! - control plane: [`actor`]
//! - edges: [`control`], [`http`], [`client`], [`cli`]
//! - the whole: [`daemon`]

#![cfg_attr(not(test), warn(clippy::unwrap_used))]

pub mod backoff;
pub mod clock;
pub mod digest;
pub mod failpoint;
pub mod fault;
pub mod id;
pub mod signature;

pub mod config;
pub mod telemetry;

pub mod tensor;

pub mod graph;

pub mod artifact;

pub mod backend;

pub mod validation;

pub mod wire;

pub mod record;

pub mod engine;

pub mod guard;

pub mod cache;
pub mod origin;

pub mod actor;

pub mod control;
pub mod http;

pub mod client;

pub mod cli;

pub mod daemon;
