//! The API over real sockets.

mod access;
mod client;
mod events;
mod garbage;
mod logs;
mod rig;
mod runners;
mod slow;
