//! The vocabulary of a job: what was asked for, what became of it, and the one function that turns an
//! event into a state. No I/O, no clock, no threads.

mod event;
mod id;
mod limits;
mod rare;
mod record;
mod settings;
mod spec;
mod state;
mod transition;

pub use event::{
    Action, CancelReason, CloseFacts, Event, EventKind, Exit, OutputFacts, Requester, RequeueReason,
};
pub use id::{AttemptKey, ParseIdError, RunnerId};
pub use limits::{Bound, Controller, Limits, Resource, Rlimit, Rlimits};
pub use rare::{Rare, Usual};
pub use record::{Attempt, Drain, Failure, Raised, Receipt, Record, Run, Step};
pub use settings::{ContextValue, QueueSettings, SharedContext, Variable};
pub use spec::{
    Body, Command, Handler, Http, Job, Json, OnLost, Process, Python, PythonCode, Retry, Script, Spec, Text,
    Webhook,
};
pub use state::{AttemptState, Outcome, State};
pub use transition::{Illegal, apply, create, replay};
