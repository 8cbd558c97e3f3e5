//! runward supervises async jobs: a daemon, and the Runner it is built on.
//!
//! # The library
//!
//! [`runner`] is the contract of Python's `asyncio.Runner` on tokio. It stands alone: with
//! `default-features = false` nothing else is built, and nothing else is needed to use it.
//!
//! ```
//! assert_eq!(runward::runner::run(async { 6 * 7 }).unwrap(), 42);
//! ```
//!
//! # The daemon
//!
//! The rest is the `runward` program, as floors: what stands lower knows nothing of what stands above it.
//!
//! | floor | |
//! |---|---|
//! | 0 | [`runner`], [`process`]: keeper and shims, which hold the processes of jobs |
//! | 1 | [`job`]: the vocabulary, and the one transition function; [`metrics`]: what is counted |
//! | 2 | [`supervisor`]: decides and records; [`kinds`]: runs jobs inside Runners |
//! | 3 | [`store`]: the event log; [`http`]: the control plane; [`cli`]: the client commands |
//! | 4 | [`daemon`]: composition, the order of start and stop |
//!
//! A program that embeds the daemon makes a [`daemon::Daemon`] with handlers of its own.

#![cfg_attr(
    not(feature = "daemon"),
    expect(
        rustdoc::broken_intra_doc_links,
        reason = "the table names modules that are not there without the daemon"
    )
)]

pub mod runner;

macro_rules! daemon {
    ($($name:ident)+) => { $(#[cfg(feature = "daemon")] pub mod $name;)+ };
}

daemon! { cli daemon descriptors http job json kinds metrics private_file process reload retention secrets settings signals state_dir store supervisor systemd telemetry text webhooks }
