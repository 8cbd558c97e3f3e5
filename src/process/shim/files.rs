//! The job's files, on the shim's side. Their directory is the job's to do with as it likes: it is reached by its
//! descriptor only, and of what is found in it nothing is believed.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, geteuid, unlinkat};

use crate::process::{Files, Taken, Untaken, User};

/// The files of an attempt, from *go* to its end. Dropping it removes a directory of their own.
#[derive(Debug)]
pub(super) struct JobFiles {
    dir: File,
    path: PathBuf,
    /// Who has made what the job leaves.
    owner: u32,
    given: Vec<String>,
    taken: Vec<String>,
    own_dir: Option<OwnDir>,
}

/// A directory that is removed with all that is in it.
#[derive(Debug)]
struct OwnDir(PathBuf);

impl Drop for OwnDir {
    fn drop(&mut self) {
        // Links are not followed. What can't be removed is left to whoever tidies that place.
        fs::remove_dir_all(&self.0).ok();
    }
}

/// Does it, if need be once more with the directory made that it needs, and up to `above - 1` above that: an earlier job
/// may have tidied them away.
pub(super) fn with_dir<T>(
    dir: Option<&Path>,
    above: u32,
    attempt: impl Fn() -> io::Result<T>,
) -> io::Result<T> {
    match (attempt(), dir) {
        (Err(error), Some(dir)) if error.kind() == io::ErrorKind::NotFound && above > 0 => {
            make_dir(dir, above - 1)?;
            attempt()
        }
        (done, _) => done,
    }
}

/// Makes a directory, unless another shim was faster, and as many above it as may be.
pub(super) fn make_dir(dir: &Path, above: u32) -> io::Result<()> {
    let make: &dyn Fn() -> io::Result<()> = &|| match DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    };
    with_dir(dir.parent(), above, make)
}

impl JobFiles {
    /// Makes them; `None` where there is nothing to give and nothing to take.
    pub(super) fn make(files: &Files, user: Option<&User>) -> io::Result<Option<Self>> {
        if files.is_empty() {
            return Ok(None);
        }
        let path = &files.dir;
        let own_dir = if files.own_dir {
            // It must not be there: then nobody else has a hand in it.
            with_dir(path.parent(), 1, || DirBuilder::new().mode(0o700).create(path))?;
            Some(OwnDir(path.clone()))
        } else {
            None
        };
        let flags = (OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW).bits();
        let dir = with_dir(Some(path), 1, || OpenOptions::new().read(true).custom_flags(flags).open(path))?;
        let give_away = |file: &OwnedFd| match user {
            Some(user) => fchown(file, Some(Uid::from_raw(user.uid)), Some(Gid::from_raw(user.gid))),
            None => Ok(()),
        };
        let new = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        for (name, content) in &files.given {
            let file = openat(&dir, name.as_str(), new, Mode::S_IRUSR)?;
            give_away(&file)?;
            File::from(file).write_all(content)?;
        }
        let dir: OwnedFd = dir.into();
        if own_dir.is_some() {
            // Last: until then nobody else can reach into it.
            give_away(&dir)?;
        }
        let owner = user.map_or_else(|| geteuid().as_raw(), |user| user.uid);
        let given = files.given.iter().map(|(name, _)| name.clone()).collect();
        Ok(Some(Self {
            dir: dir.into(),
            path: path.clone(),
            owner,
            given,
            taken: files.taken.clone(),
            own_dir,
        }))
    }

    /// Reads what the job has left, once nothing of it lives, and removes it.
    pub(super) fn take(&self) -> Vec<Taken> {
        let taken: Vec<Taken> = self.taken.iter().map(|name| self.read(name)).collect();
        if self.own_dir.is_none() {
            let found = self.taken.iter().zip(&taken).filter(|(_, taken)| **taken != Ok(None));
            for name in self.given.iter().chain(found.map(|(name, _)| name)) {
                // What can't be removed is left to whoever tidies that place.
                if unlinkat(&self.dir, name.as_str(), UnlinkatFlags::NoRemoveDir) == Err(Errno::EISDIR) {
                    fs::remove_dir_all(self.path.join(name)).ok();
                }
            }
        }
        taken
    }

    fn read(&self, name: &str) -> Taken {
        let unreadable = |error: io::Error| Untaken::Unreadable(error.raw_os_error().unwrap_or(0));
        // Without blocking: opening a pipe would wait for its writer.
        let flags =
            OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let mut file: File = match openat(&self.dir, name, flags, Mode::empty()) {
            Ok(file) => file.into(),
            Err(Errno::ENOENT) => return Ok(None),
            Err(Errno::ELOOP) => return Err(Untaken::Link),
            // A socket.
            Err(Errno::ENXIO) => return Err(Untaken::NotRegular),
            Err(errno) => return Err(Untaken::Unreadable(errno as i32)),
        };
        let facts = file.metadata().map_err(unreadable)?;
        if !facts.is_file() {
            return Err(Untaken::NotRegular);
        }
        if facts.uid() != self.owner {
            return Err(Untaken::Owner(facts.uid()));
        }
        let mut bytes = Vec::new();
        (&mut file).take(Files::LIMIT as u64 + 1).read_to_end(&mut bytes).map_err(unreadable)?;
        if bytes.len() > Files::LIMIT {
            return Err(Untaken::TooLarge);
        }
        String::from_utf8(bytes).map(Some).map_err(|_| Untaken::NotText)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use super::*;

    /// What is taken after `leave` was done in the directory of the files.
    fn after(leave: impl FnOnce(&Path)) -> Taken {
        let dir = tempfile::tempdir().expect("a directory");
        let files = Files { dir: dir.path().into(), taken: vec!["result".into()], ..Files::default() };
        let made = JobFiles::make(&files, None).expect("made").expect("wanted");
        leave(dir.path());
        let taken = made.take();
        assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), 0, "it is removed");
        assert_eq!(taken.len(), 1);
        taken[0].clone()
    }

    #[test]
    fn only_a_small_regular_file_of_the_job_is_taken() {
        let write = |bytes: Vec<u8>| after(|dir| fs::write(dir.join("result"), bytes).expect("written"));
        assert_eq!(after(|_| {}), Ok(None));
        assert_eq!(write(b"{}".into()), Ok(Some("{}".into())));
        assert_eq!(
            write(vec![b'x'; Files::LIMIT]).map(|text| text.map(|text| text.len())),
            Ok(Some(Files::LIMIT))
        );
        assert_eq!(write(vec![b'x'; Files::LIMIT + 1]), Err(Untaken::TooLarge));
        assert_eq!(write(vec![0xff]), Err(Untaken::NotText));
        assert_eq!(
            after(|dir| symlink("/etc/hostname", dir.join("result")).expect("made")),
            Err(Untaken::Link)
        );
        assert_eq!(after(|dir| fs::create_dir(dir.join("result")).expect("made")), Err(Untaken::NotRegular));
        let pipe = |dir: &Path| nix::unistd::mkfifo(&dir.join("result"), Mode::S_IRWXU).expect("made");
        assert_eq!(after(pipe), Err(Untaken::NotRegular));
        let socket = |dir: &Path| {
            std::os::unix::net::UnixListener::bind(dir.join("result")).expect("bound");
        };
        assert_eq!(after(socket), Err(Untaken::NotRegular));
    }

    #[test]
    fn a_file_of_another_user_is_not_taken() {
        if !geteuid().is_root() {
            println!("only root can give a file away");
            return;
        }
        let foreign = |dir: &Path| {
            fs::write(dir.join("result"), "1").expect("written");
            std::os::unix::fs::chown(dir.join("result"), Some(65534), None).expect("given away");
        };
        assert_eq!(after(foreign), Err(Untaken::Owner(65534)));
    }

    #[test]
    fn a_directory_of_their_own_is_new_and_goes_with_all_in_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let own = dir.path().join("own");
        let files = Files {
            dir: own.clone(),
            own_dir: true,
            given: vec![("request".into(), b"x".into())],
            ..Files::default()
        };
        let made = JobFiles::make(&files, None).expect("made").expect("wanted");
        assert_eq!(fs::read(own.join("request")).expect("given"), b"x");
        assert_eq!(fs::metadata(&own).expect("made").mode() & 0o7777, 0o700);
        let taken = JobFiles::make(&files, None);
        assert_eq!(taken.expect_err("it is there").kind(), io::ErrorKind::AlreadyExists);
        assert!(own.exists(), "what another has made stays");
        drop(made);
        assert!(!own.exists());
    }
}
