//! What the daemon counts and measures of itself, for `/metrics`. Everything is an atomic number that exists from the
//! start: who counts never waits, and nothing is made for a job.
//!
//! What is counted of jobs is counted when it is durable, by the thread that made it so: `/metrics` tells nothing that
//! is not on record.

mod instrument;
mod jobs;
mod process;
mod text;

use tokio::runtime::Handle;

pub use instrument::{Counter, FAST, Gauge, Histogram, SLOW};
pub use jobs::Jobs;
pub use process::Process;
pub use text::{Text, Type};

/// Events of one commit.
const EVENTS: &[f64] =
    &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10_000.0];

/// All that is counted. Shared by those who count and the one who tells.
#[derive(Debug)]
pub struct Metrics {
    /// Runners and their attempts.
    pub jobs: Jobs,
    /// The store.
    pub store: Store,
    /// Messages to others.
    pub webhooks: Webhooks,
    /// How long requests wait for the core's loop.
    pub core_lag: Histogram,
    /// Connections to the API that are open.
    pub connections: Connections,
    /// Settings that were read again.
    pub reloads: Reloads,
    /// The loop of in-process jobs, to be asked how long it takes to come to something new.
    pub in_process: Option<Handle>,
}

/// See [`Metrics::store`].
#[derive(Debug)]
pub struct Store {
    /// How long commits took.
    pub commits: Histogram,
    /// How many events they held.
    pub events: Histogram,
    /// Commits that the store did not take.
    pub failures: Counter,
}

/// See [`Metrics::webhooks`].
#[derive(Debug, Default)]
pub struct Webhooks {
    /// Taken by their receivers.
    pub delivered: Counter,
    /// Tries that failed.
    pub failures: Counter,
    /// Given up.
    pub given_up: Counter,
    /// Not taken yet.
    pub pending: Gauge,
}

/// See [`Metrics::connections`].
#[derive(Debug, Default)]
pub struct Connections {
    /// On TCP.
    pub tcp: Gauge,
    /// On the unix socket.
    pub unix: Gauge,
}

/// See [`Metrics::reloads`].
#[derive(Debug, Default)]
pub struct Reloads {
    /// Those that were taken over.
    pub taken: Counter,
    /// Those with something wrong in them: nothing was changed.
    pub refused: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            jobs: Jobs::default(),
            store: Store {
                commits: Histogram::new(FAST),
                events: Histogram::new(EVENTS),
                failures: Counter::default(),
            },
            webhooks: Webhooks::default(),
            core_lag: Histogram::new(FAST),
            connections: Connections::default(),
            reloads: Reloads::default(),
            in_process: None,
        }
    }
}

impl Metrics {
    /// Writes all that needs nobody to be asked.
    pub fn write(&self, text: &mut Text) {
        self.jobs.write(text);
        let Store { commits, events, failures } = &self.store;
        text.family(
            "runward_store_commit_duration_seconds",
            Type::Histogram,
            "How long commits of the store took.",
        );
        text.histogram("runward_store_commit_duration_seconds", &[], commits);
        text.family("runward_store_commit_events", Type::Histogram, "Events in a commit of the store.");
        text.histogram("runward_store_commit_events", &[], events);
        text.counter("runward_store_commit_failures_total", "Commits that the store did not take.", failures);
        let Webhooks { delivered, failures, given_up, pending } = &self.webhooks;
        text.counter("runward_webhooks_delivered_total", "Messages that their receivers took.", delivered);
        text.counter("runward_webhook_failures_total", "Tries to deliver a message that failed.", failures);
        text.counter("runward_webhooks_given_up_total", "Messages that were given up.", given_up);
        text.gauge("runward_webhooks_pending", "Messages that are still to be delivered.", pending.get());
        text.family(
            "runward_core_lag_seconds",
            Type::Histogram,
            "How long requests waited for the supervisor's loop.",
        );
        text.histogram("runward_core_lag_seconds", &[], &self.core_lag);
        let name = "runward_http_connections";
        text.family(name, Type::Gauge, "Connections to the API that are open.");
        text.sample(name, &[("transport", "tcp")], self.connections.tcp.get());
        text.sample(name, &[("transport", "unix")], self.connections.unix.get());
        let name = "runward_settings_reloads_total";
        text.family(
            name,
            Type::Counter,
            "How often the settings were read again; refused: nothing was changed.",
        );
        text.sample(name, &[("result", "taken")], self.reloads.taken.get());
        text.sample(name, &[("result", "refused")], self.reloads.refused.get());
    }
}
