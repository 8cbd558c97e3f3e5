//! What a child inherits of its shim, and somebody else may change: a job whose user is the shim's, or root, can do so.

use std::fs::File;
use std::os::unix::fs::FileExt;

use nix::libc;

use crate::process::keeper::sys::{self, CPU_SET_BYTES, SCHED_ATTR_BYTES};

/// How many resources have limits (`RLIM_NLIMITS` of `asm-generic/resource.h`).
const RESOURCES: u32 = 16;

/// Files of the kernel with one attribute each. It may lack the second.
const FILES: [&str; 2] = ["/proc/self/oom_score_adj", "/proc/self/coredump_filter"];

/// The attributes of this process as they were when it was new. One that can't be read counts as unchanged.
#[derive(Debug)]
pub(super) struct Attributes {
    files: [Option<File>; FILES.len()],
    made: Values,
}

#[derive(Debug, PartialEq, Eq)]
struct Values {
    limits: [Option<(u64, u64)>; RESOURCES as usize],
    scheduling: Option<[u8; SCHED_ATTR_BYTES]>,
    affinity: Option<Box<[u8; CPU_SET_BYTES]>>,
    io_priority: libc::c_long,
    timer_slack: i32,
    files: [Option<[u8; 16]>; FILES.len()],
}

impl Attributes {
    /// Takes down what they are now.
    pub(super) fn note() -> Self {
        let files = FILES.map(|path| File::open(path).ok());
        Self { made: Values::read(&files), files }
    }

    /// Whether they are as they were.
    pub(super) fn are_as_made(&self) -> bool {
        Values::read(&self.files) == self.made
    }
}

impl Values {
    fn read(files: &[Option<File>; FILES.len()]) -> Self {
        let mut limits = [None; RESOURCES as usize];
        (0..RESOURCES).zip(&mut limits).for_each(|(number, limits)| *limits = sys::limits_of(number));
        let read = |file: &Option<File>| {
            let mut bytes = [0; 16];
            file.as_ref()?.read_at(&mut bytes, 0).ok()?;
            Some(bytes)
        };
        Self {
            limits,
            scheduling: sys::scheduling().ok(),
            affinity: sys::affinity().ok().map(Box::new),
            io_priority: sys::io_priority(),
            timer_slack: sys::timer_slack(),
            files: files.each_ref().map(read),
        }
    }
}
