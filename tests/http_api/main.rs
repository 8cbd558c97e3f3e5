//! The API over real sockets.

// The whole record as one `json!`.
#![recursion_limit = "256"]

mod access;
mod client;
mod context;
mod events;
mod explain;
mod following;
mod garbage;
mod logs;
mod many;
mod queues;
mod rig;
mod runners;
mod runs;
mod slow;
