//! What the descriptors are for. What was accepted must not fail for want of one, whatever clients do: each use has a
//! share of its own, and waits or is turned away within it.

use std::io;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::settings::Settings;

/// Descriptors of the daemon itself: the store, its readers, the loops, the listeners, standard streams (about 27), logs
/// of in-process jobs (8), and a few for moments.
const OWN: usize = 40;

/// What a running job of processes takes: the socket to its shim, and at its start the shim's end of it.
const OF_A_JOB: usize = 2;

/// What a request of the daemon takes: its connection; before that what looks its host's name up, and of several
/// addresses one that is given up.
const OF_A_REQUEST: usize = 2;

/// What a client's connection takes: the connection, and what it reads, a log it may be.
const OF_A_CONNECTION: usize = 2;

/// Clients' connections at once, however many descriptors there are. A quarter of them may hold an answer open on each
/// transport: a thousand followers, and others beside them.
const MAX_CONNECTIONS: usize = 4096;

/// How many of each there may be at once. At least two clients and one of the others, even where the descriptors are
/// too few for that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Jobs of processes.
    pub jobs: u32,
    /// Requests of `http` jobs and webhooks.
    pub requests: usize,
    /// Connections of clients.
    pub connections: usize,
}

impl Budget {
    fn of(limit: usize) -> Self {
        let left = limit.saturating_sub(OWN);
        // Half of them for clients, a quarter for requests, the rest for jobs.
        let connections = (left / 2 / OF_A_CONNECTION).clamp(2, MAX_CONNECTIONS);
        let requests = (left / 4 / OF_A_REQUEST).max(1);
        let taken = connections * OF_A_CONNECTION + requests * OF_A_REQUEST;
        let jobs = u32::try_from(left.saturating_sub(taken) / OF_A_JOB).unwrap_or(u32::MAX).max(1);
        Self { jobs, requests, connections }
    }
}

/// Takes all descriptors that may be had, and says what they are for.
///
/// # Errors
/// The system's.
pub fn take() -> io::Result<Budget> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok(budget(hard))
}

fn budget(limit: u64) -> Budget {
    // More than this nobody can have, and sums of it fit.
    Budget::of(usize::try_from(limit).unwrap_or(usize::MAX).min(i32::MAX as usize))
}

/// Runs no more jobs at once than there are descriptors for.
pub fn fit(settings: &mut Settings) {
    let Ok((limit, _)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
    let Budget { jobs, .. } = budget(limit);
    if settings.max_running > jobs {
        tracing::warn!(
            limit,
            max_running = jobs,
            "fewer jobs run at once than `jobs.max_running` says: raise the limit of descriptors (ulimit -n)"
        );
        settings.max_running = jobs;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_fits_the_limit() {
        for limit in (52..5000).chain([1 << 20, i32::MAX as usize]) {
            let Budget { jobs, requests, connections } = Budget::of(limit);
            let taken =
                OWN + jobs as usize * OF_A_JOB + requests * OF_A_REQUEST + connections * OF_A_CONNECTION;
            assert!(taken <= limit, "{limit}: {taken}");
            assert!(jobs >= 1 && requests >= 1 && connections >= 2, "{limit}");
        }
        assert_eq!(Budget::of(1 << 20).connections, MAX_CONNECTIONS);
    }
}
