//! The API's own vocabulary. Stored types are another: they are converted here and nowhere else.

mod event;
mod runner;
mod submission;

pub use event::{Event, EventPage};
pub use runner::{Cancelled, Runner, RunnerPage, time};
pub use submission::Submission;
