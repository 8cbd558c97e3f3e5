//! The control plane. It knows the supervisor's handle and the vocabulary of jobs, and of what is below only how
//! a log is read.
//!
//! A request passes, in this order: the transport ([`serve()`]), the checks of [`access`], its route in `routes`.
//! Whatever goes wrong on the way is a [`problem`].

pub mod access;
mod body;
mod config;
mod dto;
mod duration;
mod fields;
mod idempotency;
mod json;
mod logs;
mod measure;
mod nearest;
pub mod openapi;
pub mod problem;
mod query;
mod reload;
mod routes;
mod serve;
mod submission;
mod timing;
pub mod token;

use std::sync::Arc;

use tokio::sync::watch;

pub use config::{Config, Containment, Info};
pub use reload::{AskedBy, Changed, Reload, ReloadRequest, Reloaded};
pub use serve::{Listener, serve};
pub use token::Token;

use crate::{job::Record, metrics::Metrics, secrets::Vault, supervisor::Supervisor};
use access::Access;

/// What the control plane is made of.
pub struct Api {
    /// Whose control plane it is.
    pub supervisor: Supervisor,
    /// Who may ask.
    pub access: Access,
    /// What keeps secrets.
    pub vault: Arc<Vault>,
    /// Limits and defaults, as they are now.
    pub config: watch::Receiver<Arc<Config>>,
    /// What reads the settings again.
    pub reload: Reload,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// How many connections there may be at once.
    pub connections: usize,
    /// What the daemon tells of itself.
    pub info: Info,
}

/// A runner as the API shows it, in JSON.
pub fn runner_json(record: &Record) -> Vec<u8> {
    // Our own types with text keys: it can't fail.
    serde_json::to_vec(&dto::Runner::from(record)).unwrap_or_default()
}

/// What each handler holds.
#[derive(Clone)]
struct Shared(Arc<Parts>);

struct Parts {
    api: Api,
    /// `None` where the system gave no inotify instance: then nothing can be followed.
    feeds: Option<logs::Feeds>,
    /// Held while a queue is changed: a change of a part reads the rest first.
    queue_changes: tokio::sync::Mutex<()>,
    /// Becomes true when the control plane stops: answers that are held open end.
    closing: watch::Receiver<bool>,
    requests: measure::Requests,
}

impl Parts {
    /// Limits and defaults, as they are now.
    fn config(&self) -> Arc<Config> {
        Arc::clone(&self.api.config.borrow())
    }
}

impl std::ops::Deref for Shared {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}
