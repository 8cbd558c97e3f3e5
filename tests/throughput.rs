//! A first figure, without a threshold: `cargo test --release --test throughput -- --nocapture` prints it.

mod common;

use std::{
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use common::{Setup, id};
use serde_json::json;

const JOBS: usize = 1000;
const CONNECTIONS: usize = 16;

fn rate(elapsed: Duration) -> f64 {
    JOBS as f64 / elapsed.as_secs_f64()
}

/// As many at a time as there are cores.
fn bare_spawn_and_wait() -> Duration {
    let left = Arc::new(AtomicUsize::new(JOBS));
    let start = Instant::now();
    common::in_parallel(std::thread::available_parallelism().map_or(1, usize::from), move |_| {
        while left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
            let status = Command::new("/bin/true").stdin(Stdio::null()).stdout(Stdio::null()).status();
            assert!(status.expect("it runs").success());
        }
    });
    start.elapsed()
}

#[test]
fn a_thousand_jobs_over_one_pool_of_connections_all_finish() {
    let bare = bare_spawn_and_wait();
    let daemon = Arc::new(Setup::new().start());
    let shared = Arc::clone(&daemon);
    let left = Arc::new(AtomicUsize::new(JOBS));
    let start = Instant::now();
    let ids: Vec<String> = common::in_parallel(CONNECTIONS, move |_| {
        let mut ids = Vec::new();
        while left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
            let record = shared.run(json!({"job": {"command": ["/bin/true"]}}));
            assert_eq!(record["outcome"], "succeeded", "{record}");
            ids.push(id(&record));
        }
        ids
    })
    .concat();
    let supervised = start.elapsed();
    assert_eq!(ids.iter().collect::<std::collections::HashSet<_>>().len(), JOBS, "each has an id of its own");
    println!(
        "{JOBS} x /bin/true, submit to closed, {CONNECTIONS} connections: {:.0}/s; bare spawn and wait: {:.0}/s; ratio {:.2}",
        rate(supervised),
        rate(bare),
        bare.as_secs_f64() / supervised.as_secs_f64(),
    );
}
