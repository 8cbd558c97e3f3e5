//! A Runner's loop in the API.

use serde::Serialize;
use utoipa::ToSchema;

use crate::supervisor::ports::{LoopFacts, TaskFacts};

/// What is on a runner's loop.
#[derive(Serialize, ToSchema)]
pub(crate) struct EventLoop<'a> {
    /// Tasks that are alive.
    tasks_alive: usize,
    /// Blocking work on the executor.
    blocking_tasks: usize,
    /// How often its tasks were polled.
    polls: u64,
    /// The time spent in their polls.
    busy_seconds: f64,
    /// Polls longer than the threshold, 100 ms.
    slow_polls: u64,
    /// The tasks, oldest first.
    tasks: Vec<Task<'a>>,
    /// The tasks as a tree, for people.
    tree: &'a str,
}

/// A task on a loop.
#[derive(Serialize, ToSchema)]
struct Task<'a> {
    id: u64,
    name: &'a str,
    /// `created`, `running`, `waiting` or `cancelling`.
    state: &'a str,
    /// The line that started it.
    source: &'a str,
    /// The task that started it.
    parent: Option<u64>,
    age_seconds: f64,
    polls: u64,
    busy_seconds: f64,
    slow_polls: u32,
}

impl<'a> From<&'a LoopFacts> for EventLoop<'a> {
    fn from(facts: &'a LoopFacts) -> Self {
        Self {
            tasks_alive: facts.tasks.len(),
            blocking_tasks: facts.blocking,
            polls: facts.tasks.iter().map(|task| task.polls).sum(),
            busy_seconds: facts.tasks.iter().map(|task| task.busy.as_secs_f64()).sum(),
            slow_polls: facts.tasks.iter().map(|task| u64::from(task.slow_polls)).sum(),
            tasks: facts.tasks.iter().map(Task::from).collect(),
            tree: &facts.tree,
        }
    }
}

impl<'a> From<&'a TaskFacts> for Task<'a> {
    fn from(task: &'a TaskFacts) -> Self {
        Self {
            id: task.id,
            name: &task.name,
            state: &task.state,
            source: &task.source,
            parent: task.parent,
            age_seconds: task.age.as_secs_f64(),
            polls: task.polls,
            busy_seconds: task.busy.as_secs_f64(),
            slow_polls: task.slow_polls,
        }
    }
}
