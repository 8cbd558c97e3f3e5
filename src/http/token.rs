//! The bearer token: a file that only the daemon's own user can read.

use std::{
    fmt,
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use nix::{libc, unistd};
use subtle::ConstantTimeEq;

/// The name of the file in the state directory.
pub const FILE: &str = "token";

/// 256 bits: beyond guessing.
const RANDOM_BYTES: usize = 32;
/// A token that somebody chose himself may not be shorter than this.
const MIN_LENGTH: usize = 32;
/// Nor longer: it has to fit into a header.
const MAX_LENGTH: usize = 1024;
/// The file's mode: its owner only.
const MODE: u32 = 0o600;

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

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file could not be read or written.
    #[error("the token file {path} can't be {doing}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What failed.
        doing: &'static str,
        /// Why.
        error: io::Error,
    },
    /// Others can read it, so it is no secret.
    #[error(
        "the token file {path} has mode {mode:04o}, others can read it: remove it, and the next start writes a new \
         token, or run `chmod 600` on it if nobody has read it"
    )]
    TooOpen {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// It belongs to somebody else.
    #[error(
        "the token file {path} belongs to the user {uid}, not to the daemon's: remove it, or change its owner"
    )]
    ForeignOwner {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        uid: u32,
    },
    /// It holds no token.
    #[error(
        "the token file {path} holds no token: it must be one line of 32 to 1024 visible ASCII characters; remove it, \
         and the next start writes a new one"
    )]
    Invalid {
        /// The file.
        path: PathBuf,
    },
}

/// Reads the token of a state directory; writes a new one where there is none. Call it under the directory's lock.
///
/// # Errors
/// [`TokenError`]; it names the file.
pub fn load_or_create(state_dir: &Path) -> Result<Token, TokenError> {
    let path = state_dir.join(FILE);
    match OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(&path) {
        Ok(file) => load(&file, path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => create(state_dir, path),
        Err(error) => Err(TokenError::Io { path, doing: "opened", error }),
    }
}

fn load(file: &File, path: PathBuf) -> Result<Token, TokenError> {
    let io = |error| TokenError::Io { path: path.clone(), doing: "read", error };
    let facts = file.metadata().map_err(io)?;
    if !facts.is_file() {
        return Err(TokenError::Invalid { path });
    }
    if facts.uid() != unistd::geteuid().as_raw() {
        return Err(TokenError::ForeignOwner { path, uid: facts.uid() });
    }
    let mode = facts.mode() & 0o7777;
    if mode & !MODE != 0 {
        return Err(TokenError::TooOpen { path, mode });
    }
    let mut text = Vec::new();
    Read::take(file, 2 * MAX_LENGTH as u64).read_to_end(&mut text).map_err(io)?;
    let text = text.trim_ascii();
    if !(MIN_LENGTH..=MAX_LENGTH).contains(&text.len()) || !text.iter().all(u8::is_ascii_graphic) {
        return Err(TokenError::Invalid { path });
    }
    Ok(Token(text.iter().copied().map(char::from).collect()))
}

/// Under another name first: a crash leaves no half token behind.
fn create(state_dir: &Path, path: PathBuf) -> Result<Token, TokenError> {
    let io = |error| TokenError::Io { path: path.clone(), doing: "written", error };
    let mut random = [0; RANDOM_BYTES];
    File::open("/dev/urandom").and_then(|mut source| source.read_exact(&mut random)).map_err(io)?;
    let text: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    let draft = state_dir.join("token.new");
    match std::fs::remove_file(&draft) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(io(error)),
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(MODE)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&draft)
        .map_err(io)?;
    writeln!(file, "{text}").and_then(|()| file.sync_all()).map_err(io)?;
    std::fs::rename(&draft, &path).and_then(|()| File::open(state_dir)?.sync_all()).map_err(io)?;
    Ok(Token(text))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_token_is_made_once_and_kept() {
        let dir = tempfile::tempdir().expect("a directory");
        let first = load_or_create(dir.path()).expect("made");
        let path = dir.path().join(FILE);
        assert_eq!(path.metadata().expect("there").mode() & 0o7777, 0o600);
        let text = std::fs::read_to_string(&path).expect("readable");
        assert!(first.matches(text.trim().as_bytes()) && text.trim().len() == 64);
        assert!(!first.matches(b"") && !first.matches(&text.as_bytes()[..63]));
        let second = load_or_create(dir.path()).expect("kept");
        assert!(second.matches(text.trim().as_bytes()));
        assert!(!format!("{first:?}").contains(text.trim()));
    }

    #[test]
    fn what_is_no_secret_is_refused_by_name() {
        let dir = tempfile::tempdir().expect("a directory");
        load_or_create(dir.path()).expect("made");
        let path = dir.path().join(FILE);
        for mode in [0o640, 0o604, 0o700, 0o4600] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("changed");
            let error = load_or_create(dir.path()).expect_err("too open");
            assert!(matches!(error, TokenError::TooOpen { mode: found, .. } if found == mode), "{mode:o}");
            assert!(error.to_string().contains(&*path.to_string_lossy()));
        }
    }

    #[test]
    fn links_and_nonsense_are_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join(FILE);
        symlink("/etc/hostname", &path).expect("linked");
        assert!(matches!(load_or_create(dir.path()), Err(TokenError::Io { .. })));
        std::fs::remove_file(&path).expect("removed");
        for text in ["", "short", "a token with spaces in it, long enough"] {
            std::fs::write(&path, text).expect("written");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("changed");
            assert!(matches!(load_or_create(dir.path()), Err(TokenError::Invalid { .. })), "{text:?}");
        }
        std::fs::remove_file(&path).expect("removed");
        std::fs::create_dir(&path).expect("made");
        assert!(load_or_create(dir.path()).is_err());
    }
}
