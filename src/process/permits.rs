//! What this daemon may do for its jobs, so that what it may not is refused before it is accepted.

use std::fs;
use std::io;

use nix::sys::resource::{self, getrlimit};

use super::{LimitSupport, Resource};

/// From `linux/capability.h`.
const CAP_SYS_NICE: u32 = 23;
const CAP_SYS_RESOURCE: u32 = 24;

/// What this daemon may do for its jobs. It does not change while the daemon runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permits {
    /// The lowest nice value.
    pub lowest_nice: i32,
    /// The highest hard limits, where there are any.
    highest: Vec<(Resource, u64)>,
    /// Limits of whole trees.
    pub limits: LimitSupport,
}

impl Default for Permits {
    /// All that the kernel allows at all, but no limits of whole trees.
    fn default() -> Self {
        let limits = LimitSupport::none("nobody has asked the system");
        Self { lowest_nice: -20, highest: Vec::new(), limits }
    }
}

impl Permits {
    /// Those of the calling process. Call it before its limits are changed: jobs start with what it has now.
    ///
    /// # Errors
    /// Those of `/proc` and `getrlimit`.
    pub fn of_this_process(limits: LimitSupport) -> io::Result<Self> {
        let status = fs::read_to_string("/proc/self/status")?;
        let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
        let capabilities = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
        let may = |capability: u32| capabilities & (1 << capability) != 0;
        let lowest_nice = if may(CAP_SYS_NICE) {
            -20
        } else {
            let own = rustix::process::getpriority_process(None)?;
            // 20 minus the lowest value allowed, so that it is no negative number.
            let (allowed, _) = getrlimit(resource::Resource::RLIMIT_NICE)?;
            own.min(20 - i32::try_from(allowed.min(40)).unwrap_or(0))
        };
        let mut highest = Vec::new();
        if !may(CAP_SYS_RESOURCE) {
            for resource in Resource::ALL {
                highest.push((*resource, getrlimit(resource.number())?.1));
            }
        }
        // Not even root may exceed this one.
        let files = fs::read_to_string("/proc/sys/fs/nr_open").ok();
        highest.extend(files.and_then(|text| Some((Resource::OpenFiles, text.trim().parse().ok()?))));
        Ok(Self { lowest_nice, highest, limits })
    }

    /// The highest hard limit of a resource; `u64::MAX` is unlimited.
    pub fn highest(&self, of: Resource) -> u64 {
        let bounds = self.highest.iter().filter(|(resource, _)| *resource == of).map(|(_, bound)| *bound);
        bounds.min().unwrap_or(u64::MAX)
    }

    /// The same with these bounds instead, to try out what an ordinary user meets.
    pub fn with_highest(mut self, highest: Vec<(Resource, u64)>) -> Self {
        self.highest = highest;
        self
    }
}

impl Resource {
    /// Every one of them.
    pub const ALL: &[Self] = &[
        Self::AddressSpace,
        Self::Core,
        Self::Cpu,
        Self::Data,
        Self::FileSize,
        Self::LockedMemory,
        Self::OpenFiles,
        Self::Processes,
        Self::Stack,
    ];

    pub(super) fn number(self) -> resource::Resource {
        match self {
            Self::AddressSpace => resource::Resource::RLIMIT_AS,
            Self::Core => resource::Resource::RLIMIT_CORE,
            Self::Cpu => resource::Resource::RLIMIT_CPU,
            Self::Data => resource::Resource::RLIMIT_DATA,
            Self::FileSize => resource::Resource::RLIMIT_FSIZE,
            Self::LockedMemory => resource::Resource::RLIMIT_MEMLOCK,
            Self::OpenFiles => resource::Resource::RLIMIT_NOFILE,
            Self::Processes => resource::Resource::RLIMIT_NPROC,
            Self::Stack => resource::Resource::RLIMIT_STACK,
        }
    }
}
