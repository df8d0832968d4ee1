//! Metrics for Prometheus, and whether the daemon lives and is ready, by HTTP.
//!
//! Nothing is counted here: a scrape asks the actors for the reports that `kasmina status` and `kasmina cache`
//! show, and `samples` makes numbers of them. What there is stands once, in `metric`; `docs/metrics.md` is
//! written from it.

mod encode;
mod metric;
mod reports;
mod routes;
mod samples;
mod server;

#[cfg(test)]
mod page_tests;
#[cfg(test)]
mod tests;

pub use routes::Probe;
pub use server::{HttpServer, Socket};
