//! The cgroup of a shim's attempts: one after another in the same, as long as each leaves it as it was.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};

use crate::process::cgroup::Cgroup;
use crate::process::{KILL_PENDING_AFTER, Oom, TreeLimits};

/// What a new group without controllers says in the files by which an attempt could change it for the next.
const AS_MADE: [(&str, &[u8]); 4] = [
    ("cgroup.freeze", b"0\n"),
    ("cgroup.type", b"domain\n"),
    ("cgroup.max.depth", b"max\n"),
    ("cgroup.max.descendants", b"max\n"),
];

/// Links of a cgroup's directory that has none below: its own and its parent's.
const NO_GROUP_BELOW: u64 = 2;

/// A cgroup, made when the first attempt needs it.
#[derive(Debug)]
pub(super) struct Group {
    cgroup: Cgroup,
    made: Option<Made>,
}

#[derive(Debug)]
struct Made {
    dir: File,
    /// It has files of controllers, more than is looked through.
    controlled: bool,
    spoilt: bool,
    /// `cgroup.events` and those of [`AS_MADE`], opened when there is a second attempt.
    files: Option<(File, [File; AS_MADE.len()])>,
}

impl Group {
    pub(super) fn new(cgroup: Cgroup) -> Self {
        Self { cgroup, made: None }
    }

    /// Makes it ready for an attempt: new, or as if it were. Fails when somebody in it does not die.
    pub(super) fn renew(&mut self) -> io::Result<()> {
        if let Some(made) = &mut self.made {
            if made.is_as_made(&self.cgroup).unwrap_or(false) {
                return Ok(());
            }
            self.made = None;
            self.sweep()?;
        }
        let dir = match self.cgroup.create() {
            // What a shim that was killed has left in this slot.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.sweep()?;
                self.cgroup.create()?
            }
            made => made?,
        };
        let controlled = self.cgroup.is_controlled();
        self.made = Some(Made { dir, controlled, spoilt: false, files: None });
        Ok(())
    }

    /// The next attempt has a new one.
    pub(super) fn spoil(&mut self) {
        if let Some(made) = &mut self.made {
            made.spoilt = true;
        }
    }

    fn sweep(&self) -> io::Result<()> {
        match self.cgroup.remove() {
            Ok(()) => return Ok(()),
            // Somebody else was here first.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(_) => {}
        }
        self.cgroup.kill()?;
        self.cgroup.wait_empty(KILL_PENDING_AFTER)?;
        self.cgroup.remove()
    }

    pub(super) fn limit(&self, limits: &TreeLimits) -> io::Result<()> {
        if *limits == TreeLimits::default() { Ok(()) } else { self.cgroup.limit(limits) }
    }

    pub(super) fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// It and its directory, opened to be cloned into; `None` before [`renew`](Self::renew).
    pub(super) fn opened(&self) -> Option<(&Cgroup, &File)> {
        self.made.as_ref().map(|made| (&self.cgroup, &made.dir))
    }

    /// What the kernel has killed for want of memory; `limit` is the tree's own.
    pub(super) fn oom(&self, limit: Option<u64>) -> Option<Oom> {
        self.made.as_ref().filter(|made| made.controlled).and_then(|_| self.cgroup.oom(limit))
    }

    /// Removes it when the shim leaves and its keeper is gone.
    pub(super) fn remove(&mut self) {
        if self.made.take().is_some() && self.cgroup.remove().is_err() {
            // Somebody from elsewhere has entered it. The next start of the daemon removes it.
            self.cgroup.kill().ok();
        }
    }
}

impl Made {
    fn is_as_made(&mut self, cgroup: &Cgroup) -> io::Result<bool> {
        let facts = self.dir.metadata()?;
        if self.controlled || self.spoilt || facts.nlink() != NO_GROUP_BELOW {
            return Ok(false);
        }
        // Another one may have been made in its place.
        if cgroup.inode()? != facts.ino() {
            return Ok(false);
        }
        let (events, files) = match &self.files {
            Some(files) => files,
            None => self.files.insert(open(cgroup)?),
        };
        let says = |file: &File, text: &[u8]| {
            let mut bytes = [0; 64];
            let length = file.read_at(&mut bytes, 0)?;
            Ok::<_, io::Error>(bytes[..length] == *text)
        };
        if !says(events, b"populated 0\nfrozen 0\n")? {
            return Ok(false);
        }
        for (file, (_, text)) in files.iter().zip(AS_MADE) {
            if !says(file, text)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

fn open(cgroup: &Cgroup) -> io::Result<(File, [File; AS_MADE.len()])> {
    let [a, b, c, d] = AS_MADE.map(|(name, _)| cgroup.open(name));
    Ok((cgroup.open("cgroup.events")?, [a?, b?, c?, d?]))
}
