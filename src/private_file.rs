//! Files of the state directory that only the daemon's own user can read: made once, checked at each start.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use nix::{libc, unistd};

/// 256 bits: beyond guessing.
const RANDOM_BYTES: usize = 32;
/// A text that somebody chose himself may not be shorter than this.
const MIN_LENGTH: usize = 32;
/// Nor longer: it has to fit into a header.
const MAX_LENGTH: usize = 1024;
/// The file's mode: its owner only.
const MODE: u32 = 0o600;

/// A file with one secret text.
#[derive(Clone, Copy, Debug)]
pub struct PrivateFile {
    /// Its name.
    pub name: &'static str,
    /// What it holds.
    pub what: &'static str,
    /// What follows from removing it.
    pub without: &'static str,
}

/// Why the text of a private file can't be had.
#[derive(Debug, thiserror::Error)]
pub enum PrivateFileError {
    /// The file could not be read or written.
    #[error("the {what} file {path} can't be {doing}: {error}")]
    Io {
        /// What it holds.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What failed.
        doing: &'static str,
        /// Why.
        error: io::Error,
    },
    /// Others can read it, so it is no secret.
    #[error(
        "the {} file {path} has mode {mode:04o}, others can read it: run `chmod 600` on it if nobody has; otherwise \
         remove it, and {}", file.what, file.without
    )]
    TooOpen {
        /// Which.
        file: PrivateFile,
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// It belongs to somebody else.
    #[error(
        "the {what} file {path} belongs to the user {uid}, not to the daemon's: remove it, or change its owner"
    )]
    ForeignOwner {
        /// What it holds.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Whose it is.
        uid: u32,
    },
    /// It holds no such text.
    #[error(
        "the {} file {path} holds no {}: it must be one line of 32 to 1024 visible ASCII characters; restore it, or \
         remove it, and {}", file.what, file.what, file.without
    )]
    Invalid {
        /// Which.
        file: PrivateFile,
        /// The file.
        path: PathBuf,
    },
}

impl PrivateFile {
    /// Reads the text; writes a new random one where there is none. Call it under the directory's lock.
    ///
    /// # Errors
    /// [`PrivateFileError`]; it names the file.
    pub fn load_or_create(self, dir: &Path) -> Result<String, PrivateFileError> {
        match self.load(dir)? {
            Some(text) => Ok(text),
            None => self.create(dir, dir.join(self.name)),
        }
    }

    /// Reads the text; `None` where there is no file.
    ///
    /// # Errors
    /// [`PrivateFileError`]; it names the file.
    pub fn load(self, dir: &Path) -> Result<Option<String>, PrivateFileError> {
        let path = dir.join(self.name);
        match OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(&path) {
            Ok(file) => self.read(&file, path).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(PrivateFileError::Io { what: self.what, path, doing: "opened", error }),
        }
    }

    fn read(self, file: &File, path: PathBuf) -> Result<String, PrivateFileError> {
        let what = self.what;
        let io = |error| PrivateFileError::Io { what, path: path.clone(), doing: "read", error };
        let facts = file.metadata().map_err(io)?;
        if !facts.is_file() {
            return Err(PrivateFileError::Invalid { file: self, path });
        }
        if facts.uid() != unistd::geteuid().as_raw() {
            return Err(PrivateFileError::ForeignOwner { what, path, uid: facts.uid() });
        }
        let mode = facts.mode() & 0o7777;
        if mode & !MODE != 0 {
            return Err(PrivateFileError::TooOpen { file: self, path, mode });
        }
        let mut text = Vec::new();
        Read::take(file, 2 * MAX_LENGTH as u64).read_to_end(&mut text).map_err(io)?;
        one_line(&text).ok_or(PrivateFileError::Invalid { file: self, path })
    }

    /// Under another name first: a crash leaves no half text behind.
    fn create(self, dir: &Path, path: PathBuf) -> Result<String, PrivateFileError> {
        let io =
            |error| PrivateFileError::Io { what: self.what, path: path.clone(), doing: "written", error };
        let mut random = [0; RANDOM_BYTES];
        File::open("/dev/urandom").and_then(|mut source| source.read_exact(&mut random)).map_err(io)?;
        let text: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        let draft = dir.join(format!("{}.new", self.name));
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
        std::fs::rename(&draft, &path).and_then(|()| File::open(dir)?.sync_all()).map_err(io)?;
        Ok(text)
    }
}

/// The one line of visible characters that a secret text is.
pub fn one_line(text: &[u8]) -> Option<String> {
    let text = text.trim_ascii();
    let valid = (MIN_LENGTH..=MAX_LENGTH).contains(&text.len()) && text.iter().all(u8::is_ascii_graphic);
    valid.then(|| text.iter().copied().map(char::from).collect())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    const TOKEN: PrivateFile =
        PrivateFile { name: "token", what: "token", without: "the next start writes a new token" };

    #[test]
    fn a_text_is_made_once_and_kept() {
        let dir = tempfile::tempdir().expect("a directory");
        let first = TOKEN.load_or_create(dir.path()).expect("made");
        let path = dir.path().join("token");
        assert_eq!(path.metadata().expect("there").mode() & 0o7777, 0o600);
        assert_eq!(std::fs::read_to_string(&path).expect("readable"), format!("{first}\n"));
        assert_eq!(first.len(), 64);
        assert_eq!(TOKEN.load_or_create(dir.path()).expect("kept"), first);
    }

    #[test]
    fn what_is_no_secret_is_refused_by_name() {
        let dir = tempfile::tempdir().expect("a directory");
        TOKEN.load_or_create(dir.path()).expect("made");
        let path = dir.path().join("token");
        for mode in [0o640, 0o604, 0o700, 0o4600] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("changed");
            let error = TOKEN.load_or_create(dir.path()).expect_err("too open");
            assert!(
                matches!(error, PrivateFileError::TooOpen { mode: found, .. } if found == mode),
                "{mode:o}"
            );
            let text = error.to_string();
            assert!(text.contains(&*path.to_string_lossy()) && text.contains("writes a new token"), "{text}");
        }
    }

    #[test]
    fn links_and_nonsense_are_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("token");
        symlink("/etc/hostname", &path).expect("linked");
        assert!(matches!(TOKEN.load_or_create(dir.path()), Err(PrivateFileError::Io { .. })));
        std::fs::remove_file(&path).expect("removed");
        for text in ["", "short", "a token with spaces in it, long enough"] {
            std::fs::write(&path, text).expect("written");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("changed");
            let refused = TOKEN.load_or_create(dir.path());
            assert!(matches!(refused, Err(PrivateFileError::Invalid { .. })), "{text:?}");
        }
        std::fs::remove_file(&path).expect("removed");
        std::fs::create_dir(&path).expect("made");
        assert!(TOKEN.load_or_create(dir.path()).is_err());
    }
}
