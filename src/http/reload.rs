//! How the control plane asks for the settings to be read again, and what it is answered.

use serde::Serialize;
use tokio::sync::{mpsc, oneshot};
use utoipa::ToSchema;

/// Who asks for the settings to be read again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AskedBy {
    /// A signal.
    Signal,
    /// A client.
    Client(String),
}

/// A request to read the settings again.
#[derive(Debug)]
pub struct ReloadRequest {
    /// Whose.
    pub by: AskedBy,
    /// Where the answer goes, if anybody waits for one. An error is a sentence: nothing was changed then.
    pub answer: Option<oneshot::Sender<Result<Reloaded, String>>>,
}

/// What reads the settings again.
pub type Reload = mpsc::Sender<ReloadRequest>;

/// What became of the settings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Reloaded {
    /// In force from now on.
    pub changed: Vec<Changed>,
    /// Different from what is in force, which stays so until the daemon is started again.
    pub needs_restart: Vec<Changed>,
}

/// A setting with two values.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Changed {
    /// Which: `jobs.max_running`.
    pub key: String,
    /// What was in force until now.
    pub from: String,
    /// What the settings say.
    pub to: String,
}
