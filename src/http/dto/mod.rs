//! The API's own vocabulary. Stored types are another: they are converted here and nowhere else.

mod event;
mod event_loop;
mod runner;
mod submission;

pub(super) use event::{Event, EventPage};
pub(super) use event_loop::EventLoop;
pub(super) use runner::{Cancelled, Runner, RunnerPage, time};
pub(super) use submission::{RunToAdd, Submission};
