//! The command line, as somebody meets it who types, or whose script does.

#[path = "../common/mod.rs"]
mod common;
mod connection;
mod daemonless;
mod pages;
mod program;
mod running;
mod seeing;
mod terminal;
