//! What the supervisor is told besides jobs, and keeps: the shared context and the queues.

use std::{collections::BTreeMap, fmt, path::PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The variables that every Runner gets a copy of when it starts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SharedContext {
    /// Rises with each change; a record says which one its attempt saw.
    pub version: u64,
    /// By name.
    pub variables: BTreeMap<String, Variable>,
}

/// A variable of the shared context.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Variable {
    /// What it holds, or where that is.
    pub value: ContextValue,
    /// The version of the context that it came with.
    pub version: u64,
    /// When it was set.
    pub set_at: Timestamp,
}

/// What a variable holds, or where that is. All but `Plain` are secrets: they are shown to jobs only.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContextValue {
    /// A text that anybody may see.
    Plain(String),
    /// A secret, encrypted with the daemon's key.
    Sealed(Vec<u8>),
    /// In a file, read when a job starts.
    File(PathBuf),
    /// In a variable of the daemon's environment.
    Env(String),
    /// A credential that systemd gave the daemon.
    Credential(String),
}

impl fmt::Debug for ContextValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(text) => f.debug_tuple("Plain").field(text).finish(),
            Self::Sealed(_) => f.write_str("Sealed"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Env(name) => f.debug_tuple("Env").field(name).finish(),
            Self::Credential(name) => f.debug_tuple("Credential").field(name).finish(),
        }
    }
}

/// What the operator decides of a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueueSettings {
    /// Slots that its jobs may take at once; `None`: as many as there are.
    #[serde(default)]
    pub max_running: Option<u32>,
    /// Whether none of its jobs is started.
    #[serde(default)]
    pub paused: bool,
}
