//! What the composition decides for the control plane, and what it tells of the daemon.

use std::time::{Duration, Instant};

use jiff::Timestamp;

use crate::{process::Permits, supervisor::core::Limits};

/// Limits and defaults of the control plane: what the operator decides, and may decide anew while it serves.
#[derive(Clone, Debug)]
pub struct Config {
    /// The largest body, in bytes. 1 MiB: the largest script anybody submits, small enough to hold a few hundred.
    pub max_body: usize,
    /// The drain timeout of a job that sets none.
    pub drain_timeout: Duration,
    /// Names of this machine that `Host` may have, besides `localhost` and the addresses connected to.
    pub hosts: Vec<String>,
    /// The supervisor's limits in force.
    pub limits: Limits,
    /// The handlers that jobs can name.
    pub handlers: Vec<String>,
    /// What the daemon may do for its jobs.
    pub permits: Permits,
}

impl Default for Config {
    fn default() -> Self {
        let limits = Limits {
            max_running: 4,
            max_in_process: 100_000,
            max_queued: 1_000_000,
            cancel_grace: Duration::from_secs(30),
            shutdown: Duration::from_secs(300),
        };
        Self {
            max_body: 1 << 20,
            drain_timeout: Duration::from_secs(300),
            hosts: Vec::new(),
            limits,
            handlers: Vec::new(),
            permits: Permits::default(),
        }
    }
}

/// What the daemon tells of itself at `/v1/info`. No secrets.
#[derive(Clone, Debug)]
pub struct Info {
    /// The version of runward.
    pub version: String,
    /// The daemon's process.
    pub pid: u32,
    /// The boot it runs in.
    pub boot_id: String,
    /// When it started, for people.
    pub started_at: Timestamp,
    /// When it started, for its uptime.
    pub started: Instant,
    /// How jobs are kept from escaping.
    pub containment: Containment,
}

/// How jobs are kept from escaping.
#[derive(Clone, Debug)]
pub struct Containment {
    /// The tier in force: a stable word.
    pub tier: String,
    /// Why it is not a better one, or what it is made of.
    pub detail: String,
}
