//! The API's own vocabulary. Stored types are another: they are converted here and nowhere else.

mod batch;
mod context;
mod event;
mod event_loop;
mod explain;
mod job;
mod limits;
mod queue;
mod runner;
mod submission;

pub(super) use batch::{Batch, CancelFilter, CancelledItem, CancelledMany, Made, Submitted, SubmittedItem};
pub(super) use context::{Context, SetVariable, Unset, Variable};
pub(super) use event::{Event, EventPage};
pub(super) use event_loop::EventLoop;
pub(super) use explain::Explained;
pub(super) use queue::{Queue, QueueToSet, Queues};
pub(super) use runner::{Cancelled, Runner, RunnerPage, time};
pub(super) use submission::{RunToAdd, Submission};
