//! The bearer token: a file that only the daemon's own user can read.

use std::{fmt, path::Path};

use subtle::ConstantTimeEq;

use crate::private_file::{PrivateFile, PrivateFileError};

/// The file in the state directory.
const FILE: PrivateFile =
    PrivateFile { name: "token", what: "token", without: "the next start writes a new token" };

/// The token. It is never shown.
#[derive(Clone)]
pub struct Token(String);

impl Token {
    /// From a text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Compares without telling by the time taken where the two differ.
    pub fn matches(&self, given: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(given).into()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// Reads the token of a state directory; writes a new one where there is none. Call it under the directory's lock.
///
/// # Errors
/// [`PrivateFileError`]; it names the file.
pub fn load_or_create(state_dir: &Path) -> Result<Token, PrivateFileError> {
    FILE.load_or_create(state_dir).map(Token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_not_shown_and_matches_itself_only() {
        let dir = tempfile::tempdir().expect("a directory");
        let token = load_or_create(dir.path()).expect("made");
        let text = std::fs::read_to_string(dir.path().join("token")).expect("readable");
        assert!(token.matches(text.trim().as_bytes()));
        assert!(!token.matches(b"") && !token.matches(&text.as_bytes()[..63]));
        assert!(!format!("{token:?}").contains(text.trim()));
    }
}
