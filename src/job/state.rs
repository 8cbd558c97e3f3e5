//! States and outcomes.
//!
//! ```text
//! queued ─→ starting ─→ running ─→ (idle) ─→ cancelling ─→ draining ─→ closed
//!    │          │           │                                             ↑
//!    └──────────┴───────────┴── cancelled while queued, or lost ──────────┘
//! ```
//! A Runner goes back to `queued` only before its job was executed, or when it was lost and its job said so.

use serde::{Deserialize, Serialize};

macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum $name { $($(#[$doc])* $variant,)+ }

        impl $name {
            /// Every one of them.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The word users see.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }

            /// The variant with this word.
            pub fn from_word(word: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|known| known.as_str() == word)
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }
    };
}
pub(crate) use words;

words! {
    /// Where a Runner is.
    State {
        /// Accepted; waits for its turn.
        Queued = "queued",
        /// Its turn has come; the job is not yet executing.
        Starting = "starting",
        /// The main task runs.
        Running = "running",
        /// Kept open, between runs.
        Idle = "idle",
        /// Asked to stop; the main task cleans up.
        Cancelling = "cancelling",
        /// The main task is done; the executor finishes.
        Draining = "draining",
        /// Done, for good. It has an outcome.
        Closed = "closed",
    }
}

words! {
    /// What became of a job. Only a closed Runner has one.
    Outcome {
        /// The job did what it was to do.
        Succeeded = "succeeded",
        /// The job ended by itself, badly, or could not be started.
        Failed = "failed",
        /// It ended after a cancellation, within its grace.
        Cancelled = "cancelled",
        /// Force was needed.
        Killed = "killed",
        /// Its time was up.
        TimedOut = "timed_out",
        /// The daemon or the host died under it.
        Lost = "lost",
    }
}

words! {
    /// Where an attempt is.
    AttemptState {
        /// Being prepared; nothing executes.
        Starting = "starting",
        /// The job executes.
        Running = "running",
        /// It is over.
        Ended = "ended",
    }
}
