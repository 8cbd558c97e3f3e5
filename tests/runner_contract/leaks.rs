//! Rows 5 and 28: nothing is made before it is needed, and nothing stays.

use std::fs;

use libtest_mimic::Trial;
use runward::runner::{Builder, LoopFactory, Runner};

use crate::runner_support::{Child, say};

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        new_makes_no_runtime,
        ten_thousand_runners_leave_nothing,
        ten_thousand_runners_with_workers_leave_nothing,
        ten_thousand_runners_on_the_calling_thread_leave_nothing,
    ]
}

/// Threads, descriptors, resident KiB.
fn footprint() -> (usize, usize, usize) {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let resident = resident.trim().trim_end_matches(" kB").parse().unwrap();
    (count("/proc/self/task"), count("/proc/self/fd"), resident)
}

fn count(directory: &str) -> usize {
    fs::read_dir(directory).unwrap().count()
}

/// A thread that was joined may be listed for a moment more.
fn assert_threads(expected: usize) {
    let began = std::time::Instant::now();
    while footprint().0 != expected {
        assert!(began.elapsed().as_secs() < 10, "{} threads instead of {expected}", footprint().0);
        std::thread::yield_now();
    }
}

pub(crate) fn scenario(name: &str) -> bool {
    match name {
        "lazy" => {
            let (threads, descriptors, _) = footprint();
            assert_eq!(threads, 1);
            let mut runner = Runner::new();
            assert_eq!((threads, descriptors), (footprint().0, footprint().1));
            runner.get_loop().unwrap();
            assert!(footprint().1 > descriptors);
            runner.close();
            assert_eq!((threads, descriptors), (footprint().0, footprint().1));
        }
        // The main thread, the one that watches signals for the whole process, a loop thread.
        "many" => many(Runner::builder, 3),
        "many workers" => many(|| Runner::builder().loop_factory(LoopFactory::multi_thread(1)), 2),
        "many here" => many(|| Runner::builder().loop_factory(LoopFactory::current_thread()), 2),
        _ => return false,
    }
    say("fine");
    true
}

fn many(builder: fn() -> Builder, threads: usize) {
    let some = |rounds| {
        for n in 0..rounds {
            let mut runner = builder().build();
            let event_loop = runner.get_loop().unwrap();
            drop(event_loop.spawn(std::future::pending::<()>()));
            let work = event_loop.spawn_blocking(move || n);
            assert_eq!(runner.run(work).unwrap().unwrap(), n);
            assert!(runner.close().is_clean());
        }
    };
    some(200);
    let (_, descriptors, resident) = footprint();
    some(10_000);
    let after = footprint();
    assert_eq!(descriptors, after.1);
    assert_threads(threads);
    // 2 MiB: 200 bytes for each of them would show.
    assert!(after.2 <= resident + 2048, "{resident} KiB, then {} KiB", after.2);
}

fn passes(scenario: &str) {
    assert_eq!(Child::start(scenario).ends(), (Ok(0), vec!["fine".to_owned()]));
}

/// Row 5.
fn new_makes_no_runtime() {
    passes("lazy");
}

fn ten_thousand_runners_leave_nothing() {
    passes("many");
}

fn ten_thousand_runners_with_workers_leave_nothing() {
    passes("many workers");
}

fn ten_thousand_runners_on_the_calling_thread_leave_nothing() {
    passes("many here");
}
