//! runward
#[cfg(feature = "daemon")]
pub mod job;
#[cfg(feature = "daemon")]
pub mod process;
pub mod runner;
#[cfg(feature = "daemon")]
pub mod settings;
#[cfg(feature = "daemon")]
pub mod store;
#[cfg(feature = "daemon")]
pub mod supervisor;
#[cfg(feature = "daemon")]
pub mod telemetry;
#[cfg(feature = "daemon")]
pub mod text;
