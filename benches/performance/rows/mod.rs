//! The measurements, in the order of the table.

mod backlog;
mod jobs;
mod memory;
mod output;
mod pages;
mod program;
mod submits;

use std::time::Duration;

use crate::table::{
    Claim,
    Goal::{AtLeast, AtMost},
    Row,
};

pub(crate) use backlog::{fill, submits_at};

/// Clients at once, where there are many.
const CONNECTIONS: usize = 64;

/// All of them.
pub(crate) static ALL: &[Row] = &[
    Row {
        name: "jobs",
        claims: &[Claim {
            what: "`true` jobs, submit to closed (`?wait`), 64 connections",
            yardstick: "bare posix_spawn + wait of `/bin/true`, as many at a time as cores",
            goal: AtLeast(0.7),
            unit: "×",
        }],
        measure: jobs::many,
    },
    Row {
        name: "job",
        claims: &[Claim {
            what: "one `true` job, submit to closed (`?wait`), idle daemon, p50",
            yardstick: "one bare spawn + wait, plus two fdatasync",
            goal: AtMost(2.0),
            unit: "×",
        }],
        measure: jobs::one,
    },
    Row {
        name: "submits",
        claims: &[Claim {
            what: "durable submits acknowledged, 64 connections",
            yardstick: "a bare axum JSON POST server under the same load",
            goal: AtLeast(0.3),
            unit: "×",
        }],
        measure: submits::many,
    },
    Row {
        name: "batch",
        claims: &[Claim {
            what: "the same by the batch route, 1,000 jobs each, 4 connections",
            yardstick: "",
            goal: AtLeast(50_000.0),
            unit: "jobs/s",
        }],
        measure: submits::batches,
    },
    Row {
        name: "submit",
        claims: &[
            Claim {
                what: "one durable submit, one connection, p50",
                yardstick: "one fdatasync of 4 KiB on that disk",
                goal: AtMost(2.0),
                unit: "×",
            },
            Claim {
                what: "the same with 100,000 queued",
                yardstick: "with none",
                goal: AtMost(1.2),
                unit: "×",
            },
        ],
        measure: submits::one,
    },
    Row {
        name: "echo",
        claims: &[Claim {
            what: "in-process jobs (`handler: echo`), submit to closed (`?wait`), 64 connections",
            yardstick: "durable submits alone",
            goal: AtLeast(0.5),
            unit: "×",
        }],
        measure: jobs::in_process,
    },
    Row {
        name: "asleep",
        claims: &[
            Claim {
                what: "50,000 in-process jobs asleep, memory of the daemon (PSS) for each",
                yardstick: "the same daemon empty",
                goal: AtMost(4.0),
                unit: "KiB",
            },
            Claim {
                what: "cancelling all of them, until closed",
                yardstick: "",
                goal: AtMost(2.0),
                unit: "s",
            },
        ],
        measure: memory::asleep,
    },
    Row {
        name: "sleeps",
        claims: &[
            Claim {
                what: "2,000 `sleep` processes running, memory of the daemon (anonymous) for each",
                yardstick: "the same daemon empty",
                goal: AtMost(3.0),
                unit: "KiB",
            },
            Claim { what: "their shims, PSS of each", yardstick: "", goal: AtMost(150.0), unit: "KiB" },
            Claim {
                what: "processor time of daemon, keeper and all shims meanwhile",
                yardstick: "one core",
                goal: AtMost(1.0),
                unit: "%",
            },
        ],
        measure: memory::sleeps,
    },
    Row {
        name: "queued",
        claims: &[
            Claim {
                what: "1,000,000 queued, memory of the daemon (PSS)",
                yardstick: "the same daemon with none",
                goal: AtMost(32.0),
                unit: "MiB",
            },
            Claim {
                what: "p99 of the slowest page of the list",
                yardstick: "",
                goal: AtMost(50.0),
                unit: "ms",
            },
            Claim { what: "start to ready", yardstick: "", goal: AtMost(3.0), unit: "s" },
        ],
        measure: backlog::million,
    },
    Row {
        name: "output",
        claims: &[Claim {
            what: "output of one job, `head -c 8G /dev/zero`",
            yardstick: "the same into `cat > file`",
            goal: AtLeast(0.7),
            unit: "×",
        }],
        measure: output::flood,
    },
    Row {
        name: "followers",
        claims: &[Claim {
            what: "1,000 followers of one log: a job that computes and prints some 100 lines a second takes longer by",
            yardstick: "one follower",
            goal: AtMost(5.0),
            unit: "%",
        }],
        measure: output::followers,
    },
    Row {
        name: "idle",
        claims: &[
            Claim { what: "idle daemon and keeper, PSS", yardstick: "", goal: AtMost(16.0), unit: "MiB" },
            Claim { what: "their wake-ups", yardstick: "", goal: AtMost(0.0), unit: "in 20 s" },
        ],
        measure: memory::idle,
    },
    Row {
        name: "start",
        claims: &[Claim {
            what: "empty state, start to ready",
            yardstick: "",
            goal: AtMost(30.0),
            unit: "ms",
        }],
        measure: program::start,
    },
    Row {
        name: "stop",
        claims: &[Claim {
            what: "SIGTERM with 1,000 running sleeps, to exit",
            yardstick: "signalling and reaping them bare",
            goal: AtMost(3.0),
            unit: "×",
        }],
        measure: program::stop,
    },
    Row {
        name: "binary",
        claims: &[Claim { what: "release binary", yardstick: "", goal: AtMost(15.0), unit: "MiB" }],
        measure: program::binary,
    },
    Row {
        name: "build",
        claims: &[Claim { what: "clean build", yardstick: "", goal: AtMost(5.0), unit: "min" }],
        measure: program::build,
    },
];

/// The one that as many are below as above; of two the upper.
pub(crate) fn median<T: PartialOrd + Copy>(samples: &[T]) -> T {
    percentile(samples, 0.5)
}

/// The one that this part of all is below.
pub(crate) fn percentile<T: PartialOrd + Copy>(samples: &[T], part: f64) -> T {
    let mut sorted = samples.to_vec();
    sorted.sort_by(|a, b| a.partial_cmp(b).expect("they are numbers"));
    let place = (sorted.len() as f64 * part) as usize;
    sorted[place.min(sorted.len() - 1)]
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
