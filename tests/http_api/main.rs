//! The API over real sockets.

// The whole record as one `json!`.
#![recursion_limit = "256"]

mod access;
mod client;
mod context;
mod events;
mod garbage;
mod logs;
mod rig;
mod runners;
mod slow;
