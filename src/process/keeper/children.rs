//! The direct children of this process. They alone may be signalled by number: one that is not reaped keeps it.

use std::fs::File;
use std::io::{self, Read, Seek};

/// Lists children through one open file.
#[derive(Debug)]
pub(crate) struct Children {
    file: File,
    text: String,
}

impl Children {
    /// Opens the list of the calling process. Fails with `NotFound` on a kernel without `CONFIG_PROC_CHILDREN`.
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Self { file: File::open("/proc/thread-self/children")?, text: String::new() })
    }

    /// The children, ended ones included until they are reaped.
    pub(crate) fn list(&mut self) -> io::Result<Vec<i32>> {
        self.text.clear();
        self.file.rewind()?;
        self.file.read_to_string(&mut self.text)?;
        Ok(self.text.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect())
    }
}
