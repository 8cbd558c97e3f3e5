//! Identifiers. They are the server's own: nothing a client sends becomes a path or a name of a cgroup.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::{Uuid, fmt::Hyphenated};

/// A Runner, and with it the job that was submitted: a UUIDv7.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RunnerId(Uuid);

/// One attempt, as the processes below know it: it names the cgroup and marks the job's environment.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AttemptKey(Uuid);

/// A text that is no identifier.
#[derive(Debug, thiserror::Error)]
#[error("not a UUID")]
pub struct ParseIdError;

macro_rules! id {
    ($name:ident) => {
        impl $name {
            /// A new one, later in order than those this process made before.
            pub fn new() -> Self {
                Self(Uuid::now_v7())
            }

            /// How long its text is.
            pub const LENGTH: usize = Hyphenated::LENGTH;

            /// Its text, in this buffer.
            pub fn encode(self, buffer: &mut [u8; Self::LENGTH]) -> &str {
                self.0.as_hyphenated().encode_lower(buffer)
            }

            /// The 128 bits.
            pub fn as_u128(self) -> u128 {
                self.0.as_u128()
            }

            /// From the 128 bits.
            pub fn from_u128(bits: u128) -> Self {
                Self(Uuid::from_u128(bits))
            }
        }

        impl Default for $name {
            fn default() -> Self {
                Self::new()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.as_hyphenated().fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            /// Only the hyphenated form: one Runner has one address.
            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                let id = Uuid::try_parse(text).map_err(|_| ParseIdError)?;
                if text.len() == Self::LENGTH { Ok(Self(id)) } else { Err(ParseIdError) }
            }
        }
    };
}

id!(RunnerId);
id!(AttemptKey);
