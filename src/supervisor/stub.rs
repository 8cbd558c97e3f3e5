//! Stands in until the core has them.
#![allow(missing_docs, clippy::all)]
use std::sync::Arc;

use jiff::Timestamp;

use super::{
    Refusal, Submitted, Supervisor, Taken,
    ports::IdempotencyKey,
};
use crate::job::{Job, QueueSettings, Requester, RunnerId, Spec};

#[derive(Clone, Debug)]
pub struct Submission {
    pub id: RunnerId,
    pub spec: Arc<Spec>,
    pub key: Option<IdempotencyKey>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueStatus {
    pub name: String,
    pub settings: QueueSettings,
    pub changed: bool,
    pub queued: usize,
    pub ready: usize,
    pub running: usize,
    pub slots: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    Held,
    Until { at: Timestamp },
    Key { key: String, holder: RunnerId },
    Paused { queue: String },
    Stopping,
    Line { position: usize, of: usize, ahead: Vec<RunnerId>, limit: Limit, running: Vec<RunnerId> },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Limit {
    Queue { name: String, max: u32 },
    Daemon { max: u32 },
    InProcess { max: u32 },
}

impl Supervisor {
    pub async fn submit_batch(&self, jobs: Vec<Submission>) -> Vec<Result<Submitted, Refusal>> {
        jobs.into_iter().map(|_| Err(Refusal::Ended)).collect()
    }
    pub async fn add_run(&self, _: RunnerId, _: Arc<Job>) -> Result<u32, Refusal> {
        Err(Refusal::Ended)
    }
    pub async fn release(&self, _: RunnerId, _: Requester) -> Result<Taken, Refusal> {
        Err(Refusal::Ended)
    }
    pub async fn set_queue(&self, _: String, _: Option<QueueSettings>) -> Result<(), Refusal> {
        Err(Refusal::Ended)
    }
    pub async fn queues(&self) -> Result<Vec<QueueStatus>, Refusal> {
        Err(Refusal::Ended)
    }
    pub async fn standing(&self, _: RunnerId) -> Result<Option<Standing>, Refusal> {
        Err(Refusal::Ended)
    }
}
