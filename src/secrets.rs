//! Secrets of the shared context: sealed where they are kept, in clear only where a job needs them.

use std::{
    fmt,
    fs::OpenOptions,
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use nix::libc;
use ring::{
    aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    digest,
    rand::{SecureRandom, SystemRandom},
};

use crate::{
    job::{ContextValue, SharedContext},
    private_file::{self, PrivateFile, PrivateFileError},
};

/// The most of a variable's value, bytes: half of what Linux takes as one variable of an environment.
pub const MAX_VALUE: usize = 64 << 10;

/// The credential of systemd that holds the key, where the operator gives one (`LoadCredential=`).
const CREDENTIAL: &str = "runward-context-key";

/// The key where there is no such credential.
const FILE: PrivateFile = PrivateFile {
    name: "context.key",
    what: "key",
    without: "start with `serve --forget-secrets`: secrets that were set before must then be set again",
};

/// Told apart from any other use of the same text.
const PURPOSE: &[u8] = b"runward context key 1\0";

/// Seals secrets and reveals them to jobs.
pub struct Vault {
    key: LessSafeKey,
    /// Where the key is from, for people.
    origin: String,
    credentials: Option<PathBuf>,
}

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// Its file is no good.
    #[error(transparent)]
    File(#[from] PrivateFileError),
    /// The credential is no good.
    #[error(
        "the credential {path}: {problem}; it must be one line of 32 to 1024 visible ASCII characters, as of \
         `openssl rand -hex 32`"
    )]
    Credential {
        /// The file that systemd made of it.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

/// Why a job can't have a variable, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the variable `{name}` of the shared context {problem}")]
pub struct Unavailable {
    /// The variable.
    pub name: String,
    problem: String,
}

/// Secrets are kept that no job could have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "secrets of the shared context can't be decrypted, {cause}: `{}`; restore that key from its backup (the file {} of \
     the state directory, or the credential `{CREDENTIAL}`), or start with `serve --forget-secrets`, which unsets these \
     variables and goes on", names.join("`, `"), FILE.name
)]
pub struct SecretsLost {
    /// The variables.
    pub names: Vec<String>,
    cause: String,
}

/// The system gives no random numbers.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the system gives no random numbers to encrypt with")]
pub struct NoRandom;

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vault").field("origin", &self.origin).finish_non_exhaustive()
    }
}

impl Vault {
    /// Takes the key from systemd's credentials, else from the state directory, where the first start makes one.
    ///
    /// # Errors
    /// [`VaultError`]: there is a key, but it is no secret or no key.
    pub fn open(state_dir: &Path, credentials: Option<PathBuf>) -> Result<Self, VaultError> {
        match Self::find(state_dir, credentials.clone())? {
            Some(vault) => Ok(vault),
            None => Ok(Self::new(&FILE.load_or_create(state_dir)?, Self::file_origin(), credentials)),
        }
    }

    /// Takes the key from where it is; `None` where there is none.
    ///
    /// # Errors
    /// As [`Vault::open`].
    pub fn find(state_dir: &Path, credentials: Option<PathBuf>) -> Result<Option<Self>, VaultError> {
        let given = credentials.as_ref().map(|dir| dir.join(CREDENTIAL));
        let (text, origin) = match given.map(|path| (read_bounded(&path), path)) {
            Some((Ok(bytes), path)) => {
                let refused = || "it is too short, too long, or more than one line".into();
                let text = private_file::one_line(&bytes);
                let text = text.ok_or_else(|| VaultError::Credential { path, problem: refused() })?;
                (text, format!("the credential `{CREDENTIAL}`"))
            }
            Some((Err(error), path)) if error.kind() != io::ErrorKind::NotFound => {
                return Err(VaultError::Credential { path, problem: error.to_string() });
            }
            Some(_) | None => match FILE.load(state_dir)? {
                Some(text) => (text, Self::file_origin()),
                None => return Ok(None),
            },
        };
        Ok(Some(Self::new(&text, origin, credentials)))
    }

    fn new(text: &str, origin: String, credentials: Option<PathBuf>) -> Self {
        Self { key: key(text), origin, credentials }
    }

    fn file_origin() -> String {
        format!("`{}`", FILE.name)
    }

    /// Encrypts the value of a variable, for this name only.
    ///
    /// # Errors
    /// [`NoRandom`].
    pub fn seal(&self, name: &str, text: &str) -> Result<Vec<u8>, NoRandom> {
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).map_err(|_| NoRandom)?;
        let mut sealed = nonce.to_vec();
        let mut body = text.as_bytes().to_vec();
        self.key
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(name), &mut body)
            .map_err(|_| NoRandom)?;
        sealed.extend(body);
        Ok(sealed)
    }

    /// What a variable holds, in clear. Blocking where it [reads a file](reads_file).
    ///
    /// # Errors
    /// [`Unavailable`].
    pub fn reveal(&self, name: &str, value: &ContextValue) -> Result<String, Unavailable> {
        let text = match value {
            ContextValue::Plain(text) => return Ok(text.clone()),
            ContextValue::Sealed(sealed) => return self.open_sealed(name, sealed),
            ContextValue::File(path) => {
                file_text(path).map_err(|problem| format!("can't be read from {}: {problem}", path.display()))
            }
            ContextValue::Credential(credential) => match &self.credentials {
                Some(dir) => file_text(&dir.join(credential)).map_err(|problem| {
                    format!("can't be read from systemd's credential `{credential}`: {problem}")
                }),
                None => Err(format!(
                    "is to be read from systemd's credential `{credential}`, but systemd gave this daemon none \
                     (LoadCredential=)"
                )),
            },
            ContextValue::Env(variable) => env_text(variable).map_err(|problem| {
                format!("can't be taken from `{variable}` of the daemon's environment: {problem}")
            }),
        };
        text.map_err(|problem| {
            let problem = format!("{problem}; mend that, or set it anew with PUT /v1/context/{name}");
            Unavailable { name: name.to_owned(), problem }
        })
    }

    fn open_sealed(&self, name: &str, sealed: &[u8]) -> Result<String, Unavailable> {
        let opened = sealed.split_first_chunk::<NONCE_LEN>().and_then(|(nonce, body)| {
            let mut body = body.to_vec();
            let nonce = Nonce::assume_unique_for_key(*nonce);
            let text = self.key.open_in_place(nonce, Aad::from(name), &mut body).ok()?;
            String::from_utf8(text.to_vec()).ok()
        });
        opened.ok_or_else(|| {
            let problem = format!(
                "can't be decrypted: it was set with another key than the one in {}; restore that key and start the \
                 daemon again, or set the variable anew with PUT /v1/context/{name}",
                self.origin
            );
            Unavailable { name: name.to_owned(), problem }
        })
    }
}

/// The secrets that can't be decrypted with this key, or for want of one. What is kept elsewhere may come later.
///
/// # Errors
/// [`SecretsLost`], where there are any.
pub fn check_sealed(vault: Option<&Vault>, context: &SharedContext) -> Result<(), SecretsLost> {
    let is_lost = |name: &str, value: &ContextValue| match value {
        ContextValue::Sealed(_) => vault.is_none_or(|vault| vault.reveal(name, value).is_err()),
        ContextValue::Plain(_)
        | ContextValue::File(_)
        | ContextValue::Env(_)
        | ContextValue::Credential(_) => false,
    };
    let lost = context.variables.iter().filter(|(name, variable)| is_lost(name, &variable.value));
    let names: Vec<String> = lost.map(|(name, _)| name.clone()).collect();
    if names.is_empty() {
        return Ok(());
    }
    let cause = vault.map_or_else(
        || "their key is missing".to_owned(),
        |vault| format!("they were set with another key than the one in {}", vault.origin),
    );
    Err(SecretsLost { names, cause })
}

/// Whether revealing it reads a file.
pub fn reads_file(value: &ContextValue) -> bool {
    match value {
        ContextValue::File(_) | ContextValue::Credential(_) => true,
        ContextValue::Plain(_) | ContextValue::Sealed(_) | ContextValue::Env(_) => false,
    }
}

fn key(text: &str) -> LessSafeKey {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(PURPOSE);
    context.update(text.as_bytes());
    let bytes = context.finish();
    let key = UnboundKey::new(&CHACHA20_POLY1305, bytes.as_ref()).expect("SHA-256 has the length of the key");
    LessSafeKey::new(key)
}

/// A file's text, without the newline that editors put at its end.
fn file_text(path: &Path) -> Result<String, String> {
    let bytes = read_bounded(path).map_err(|error| error.to_string())?;
    let text = checked(bytes)?;
    let text = text.strip_suffix('\n').unwrap_or(&text);
    Ok(text.strip_suffix('\r').unwrap_or(text).to_owned())
}

fn env_text(variable: &str) -> Result<String, String> {
    use std::os::unix::ffi::OsStringExt;
    let value = std::env::var_os(variable).ok_or("the daemon was started without it")?;
    checked(value.into_vec())
}

fn checked(bytes: Vec<u8>) -> Result<String, String> {
    if bytes.len() > MAX_VALUE {
        return Err(format!("it is larger than {MAX_VALUE} bytes"));
    }
    if bytes.contains(&0) {
        return Err("it has a NUL character, which no variable can have".into());
    }
    String::from_utf8(bytes).map_err(|_| "it is no UTF-8".into())
}

/// As much of a file as shows that it is too large. Never waits for the other end of a pipe.
fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_VALUE as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vault(dir: &Path) -> Vault {
        Vault::open(dir, None).expect("a key")
    }

    #[test]
    fn what_is_sealed_is_revealed_under_its_name_and_key_only() {
        let dir = tempfile::tempdir().expect("a directory");
        let first = vault(dir.path());
        let sealed = first.seal("TOKEN", "s3cret").expect("sealed");
        assert!(!sealed.windows(6).any(|window| window == b"s3cret"));
        assert_ne!(sealed, first.seal("TOKEN", "s3cret").expect("sealed"), "nobody sees that two are equal");
        let value = ContextValue::Sealed(sealed.clone());
        assert_eq!(vault(dir.path()).reveal("TOKEN", &value).expect("the key is kept"), "s3cret");
        assert!(first.reveal("OTHER", &value).is_err(), "it can't be moved to another name");
        for at in [0, 12, sealed.len() - 1] {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(first.reveal("TOKEN", &ContextValue::Sealed(changed)).is_err());
        }
        assert!(first.reveal("TOKEN", &ContextValue::Sealed(vec![1, 2])).is_err());
        std::fs::remove_file(dir.path().join("context.key")).expect("removed");
        let error = vault(dir.path()).reveal("TOKEN", &value).expect_err("the key is lost").to_string();
        assert!(error.contains("`TOKEN`") && error.contains("set the variable anew with PUT"), "{error}");
        assert!(!format!("{first:?}").contains("s3cret"));
    }

    #[test]
    fn a_credential_is_the_key_where_there_is_one() {
        let (dir, credentials) =
            (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("another"));
        let path = credentials.path().join(CREDENTIAL);
        let open = || Vault::open(dir.path(), Some(credentials.path().to_owned()));
        std::fs::write(&path, "too short\n").expect("written");
        let error = open().expect_err("no key").to_string();
        assert!(error.contains("openssl rand") && error.contains(CREDENTIAL), "{error}");
        std::fs::write(&path, format!("{}\n", "ab".repeat(32))).expect("written");
        let sealed = ContextValue::Sealed(open().expect("a key").seal("A", "x").expect("sealed"));
        assert!(!dir.path().join("context.key").exists(), "no key beside the one that was given");
        assert_eq!(open().expect("a key").reveal("A", &sealed).expect("revealed"), "x");
        std::fs::remove_file(&path).expect("removed");
        assert!(open().expect("a key of its own").reveal("A", &sealed).is_err());
    }

    #[test]
    fn references_are_read_with_bounds_and_say_what_is_wrong() {
        let dir = tempfile::tempdir().expect("a directory");
        let vault = Vault::open(dir.path(), Some(dir.path().to_owned())).expect("a key");
        let path = dir.path().join("secret");
        let reveal = |value: ContextValue| vault.reveal("A", &value).map_err(|error| error.to_string());
        let file = || reveal(ContextValue::File(path.clone()));
        assert!(
            file().is_err_and(|error| error.contains("No such file") && error.contains("PUT /v1/context/A"))
        );
        for (bytes, expected) in [
            (&b"x\n"[..], Ok("x")),
            (b"x\r\n", Ok("x")),
            (b"x\n\n", Ok("x\n")),
            (b"", Ok("")),
            (b"a\0b", Err("NUL")),
            (b"\xff", Err("UTF-8")),
            (&[b'a'; MAX_VALUE + 1], Err("larger than 65536 bytes")),
        ] {
            std::fs::write(&path, bytes).expect("written");
            for value in [ContextValue::File(path.clone()), ContextValue::Credential("secret".into())] {
                match (reveal(value), expected) {
                    (Ok(text), Ok(expected)) => assert_eq!(text, expected),
                    (Err(error), Err(expected)) => assert!(error.contains(expected), "{error}"),
                    (found, expected) => panic!("{found:?} is not {expected:?}"),
                }
            }
        }
        std::fs::remove_file(&path).expect("removed");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("made");
        assert!(
            file().is_err_and(|error| error.contains("no regular file")),
            "it does not wait for a writer"
        );
        assert!(!reveal(ContextValue::Env("PATH".into())).expect("there").is_empty());
        let absent = reveal(ContextValue::Env("RUNWARD_NO_SUCH".into()));
        assert!(absent.is_err_and(|error| error.contains("started without it")));
        let without = Vault::open(dir.path(), None).expect("a key");
        let error = without.reveal("A", &ContextValue::Credential("x".into())).expect_err("none").to_string();
        assert!(error.contains("LoadCredential="), "{error}");
    }
}
