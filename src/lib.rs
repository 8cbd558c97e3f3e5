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

#[cfg(feature = "daemon")]
pub mod cli;
#[cfg(feature = "daemon")]
pub mod daemon;
#[cfg(feature = "daemon")]
pub mod descriptors;
#[cfg(feature = "daemon")]
pub mod http;
#[cfg(feature = "daemon")]
pub mod job;
#[cfg(feature = "daemon")]
pub mod json;
#[cfg(feature = "daemon")]
pub mod kinds;
#[cfg(feature = "daemon")]
pub mod metrics;
#[cfg(feature = "daemon")]
pub mod private_file;
#[cfg(feature = "daemon")]
pub mod process;
#[cfg(feature = "daemon")]
pub mod reload;
#[cfg(feature = "daemon")]
pub mod retention;
#[cfg(feature = "daemon")]
pub mod secrets;
#[cfg(feature = "daemon")]
pub mod settings;
#[cfg(feature = "daemon")]
pub mod signals;
#[cfg(feature = "daemon")]
pub mod state_dir;
#[cfg(feature = "daemon")]
pub mod store;
#[cfg(feature = "daemon")]
pub mod supervisor;
#[cfg(feature = "daemon")]
pub mod systemd;
#[cfg(feature = "daemon")]
pub mod telemetry;
#[cfg(feature = "daemon")]
pub mod text;
#[cfg(feature = "daemon")]
pub mod webhooks;
