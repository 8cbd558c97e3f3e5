//! runward
#[cfg(feature = "daemon")]
pub mod process;
pub mod runner;
