//! The daemon's own process, by the names that Prometheus has for that.

use std::fs;

use nix::{
    sys::resource::{Resource, getrlimit},
    unistd::{SysconfVar, sysconf},
};

use super::{Text, Type};

/// The process at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Process {
    /// Descriptors that are open.
    pub open_fds: usize,
    /// How many may be.
    pub max_fds: u64,
    /// Bytes in memory.
    pub resident_bytes: u64,
    /// Bytes of address space.
    pub virtual_bytes: u64,
    /// Threads.
    pub threads: u64,
    /// Processor time taken, seconds.
    pub cpu_seconds: f64,
}

impl Process {
    /// Reads it from `/proc`. Blocking, for a moment; what can't be read is 0.
    pub fn read() -> Self {
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        // After the name, which may hold anything; the first of these is field 3 of proc_pid_stat(5).
        let fields: Vec<&str> =
            stat.rsplit_once(") ").map(|(_, rest)| rest.split(' ').collect()).unwrap_or_default();
        let field = |number: usize| -> u64 {
            fields.get(number - 3).and_then(|field| field.trim().parse().ok()).unwrap_or_default()
        };
        let system = |variable| sysconf(variable).ok().flatten().and_then(|value| u64::try_from(value).ok());
        let ticks = system(SysconfVar::CLK_TCK).unwrap_or(100);
        Self {
            // One of them is the directory itself.
            open_fds: fs::read_dir("/proc/self/fd").map_or(0, |fds| fds.count().saturating_sub(1)),
            max_fds: getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft),
            resident_bytes: field(24) * system(SysconfVar::PAGE_SIZE).unwrap_or(4096),
            virtual_bytes: field(23),
            threads: field(20),
            cpu_seconds: (field(14) + field(15)) as f64 / ticks as f64,
        }
    }

    /// Writes it, with when it started in seconds since 1970.
    pub fn write(self, text: &mut Text, started: f64) {
        let Self { open_fds, max_fds, resident_bytes, virtual_bytes, threads, cpu_seconds } = self;
        text.gauge("process_open_fds", "Descriptors that the daemon has open.", open_fds);
        text.gauge("process_max_fds", "Descriptors that it may have open.", max_fds);
        text.gauge("process_resident_memory_bytes", "Its memory.", resident_bytes);
        text.gauge("process_virtual_memory_bytes", "Its address space.", virtual_bytes);
        text.gauge("process_threads", "Its threads.", threads);
        text.family("process_cpu_seconds_total", Type::Counter, "Processor time it has taken.");
        text.sample("process_cpu_seconds_total", &[], cpu_seconds);
        text.gauge("process_start_time_seconds", "When it started, in seconds since 1970.", started);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_descriptors_memory_and_threads() {
        let Process { open_fds, max_fds, resident_bytes, virtual_bytes, threads, cpu_seconds } =
            Process::read();
        assert!(open_fds >= 3 && max_fds >= open_fds as u64);
        assert!(resident_bytes > 1 << 20 && virtual_bytes > resident_bytes);
        assert!(threads >= 2 && cpu_seconds >= 0.0);
    }
}
