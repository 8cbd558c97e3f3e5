//! How the daemon ends: its exit codes, and what keeps it from starting.

use std::{io, path::PathBuf};

use crate::{
    private_file::PrivateFileError,
    secrets::{SecretsLost, VaultError},
    settings::SettingsError,
    state_dir::StateDirError,
    store::OpenError,
    supervisor::ports::AppendError,
};

/// The daemon's exit codes, after `sysexits.h` where that has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    /// A signal came, everything was cancelled, drained, closed and recorded.
    Stopped = 0,
    /// The store is damaged, of a later version, or missing though it should be there; or the key of its secrets is.
    StoreUnusable = 65,
    /// An address can't be listened on.
    Unavailable = 69,
    /// A mistake of runward's own.
    Internal = 70,
    /// The keeper died, or the system gives no processes, threads or descriptors.
    System = 71,
    /// The store failed while the daemon ran. What happened since the last record is recovered at the next start.
    StoreFailed = 74,
    /// Another daemon has the state directory.
    InUse = 75,
    /// The state directory is not private, or the token or the key in it is not.
    NotPrivate = 77,
    /// The settings are wrong.
    Settings = 78,
    /// The time for the shutdown was up and something could not be killed: it is named in the log.
    Abandoned = 80,
    /// A second signal: everything was killed.
    Forced = 81,
}

/// Why the daemon did not start.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartError {
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error("{0}")]
    Telemetry(String),
    #[error(transparent)]
    StateDir(#[from] StateDirError),
    #[error("the store {path}: {error}")]
    Store { path: PathBuf, error: OpenError },
    #[error("the settings demand a cgroup for each job, but there is none to be had: {0}")]
    Containment(String),
    #[error(transparent)]
    Token(#[from] PrivateFileError),
    #[error(transparent)]
    Vault(#[from] VaultError),
    #[error(transparent)]
    SecretsLost(#[from] SecretsLost),
    #[error("can't listen on {address}: {error}; choose another address with --listen")]
    Bind { address: String, error: io::Error },
    #[error("the socket {name} of the service manager can't be served: {error}")]
    HandedOver { name: String, error: io::Error },
    #[error("{what}: {error}")]
    System { what: &'static str, error: io::Error },
    #[error("recovery: {0}")]
    Recovery(String),
    #[error("recovery: {0}; make room and start again")]
    Append(AppendError),
}

impl StartError {
    pub(super) fn code(&self) -> Code {
        match self {
            Self::Settings(_) | Self::Telemetry(_) | Self::Containment(_) | Self::HandedOver { .. } => {
                Code::Settings
            }
            Self::StateDir(StateDirError::InUse { .. }) => Code::InUse,
            Self::StateDir(StateDirError::NotPrivate { .. } | StateDirError::Io { .. })
            | Self::Token(_)
            | Self::Vault(_) => Code::NotPrivate,
            Self::Store { error, .. } if error.may_pass() => Code::StoreFailed,
            Self::Append(_) => Code::StoreFailed,
            Self::Store { .. } | Self::Recovery(_) | Self::SecretsLost(_) => Code::StoreUnusable,
            Self::Bind { .. } => Code::Unavailable,
            Self::System { .. } => Code::System,
        }
    }
}

/// What the system would not give.
pub(super) fn system(what: &'static str) -> impl Fn(io::Error) -> StartError {
    move |error| StartError::System { what, error }
}
