//! A queue in the API.

use serde::Serialize;
use utoipa::ToSchema;

use crate::{job::QueueSettings, supervisor::core::QueueStatus};

/// A queue.
#[derive(Serialize, ToSchema)]
pub(crate) struct Queue {
    /// Its name.
    name: String,
    /// Slots that its jobs may take at once; `null`: as many as the daemon has.
    max_running: Option<u32>,
    /// Whether none of its jobs is started.
    paused: bool,
    /// Whether that was set over the API; otherwise it is what the settings of the daemon say.
    changed: bool,
    /// Jobs that wait in it, for whatever reason.
    queued: usize,
    /// Those of them that could start if there were a slot.
    ready: usize,
    /// Jobs of it that run.
    running: usize,
    /// The slots that these take.
    slots_taken: u64,
}

/// All queues.
#[derive(Serialize, ToSchema)]
pub(crate) struct Queues {
    /// Those that are used, set or configured, by name.
    pub items: Vec<Queue>,
}

/// What to change; what is left out stays as it is.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes what is read by hand")]
pub(crate) struct QueueToSet {
    /// Slots that its jobs may take at once; `null`: as many as the daemon has.
    #[schema(minimum = 0, maximum = 1_000_000)]
    max_running: Option<u32>,
    /// Whether none of its jobs is started.
    paused: Option<bool>,
}

impl From<QueueStatus> for Queue {
    fn from(status: QueueStatus) -> Self {
        let QueueSettings { max_running, paused } = status.settings;
        Self {
            name: status.name,
            max_running,
            paused,
            changed: status.changed,
            queued: status.queued,
            ready: status.ready,
            running: status.running,
            slots_taken: status.slots,
        }
    }
}
