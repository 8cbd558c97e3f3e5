//! Row 3: what debug finds; and the task tree.

use std::time::Duration;

use libtest_mimic::Trial;
use runward::runner::{Cancelled, EventLoop, LoopFactory, Runner, TaskState};

use crate::runner_support::findings;

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        a_slow_poll_is_found_with_name_line_and_duration,
        the_threshold_can_be_set,
        without_debug_nothing_is_found,
        a_task_never_polled_is_found,
        a_task_dropped_while_pending_is_found,
        all_tasks_tells_what_each_does,
        the_tree_shows_who_started_whom,
    ]
}

fn debugging(name: &str) -> Runner {
    Runner::builder().debug(true).name(name).loop_factory(LoopFactory::current_thread()).build()
}

/// Keeps the loop busy for longer than `limit`, as it measures time itself.
fn keep_busy(limit: Duration) {
    let began = std::time::Instant::now();
    while began.elapsed() <= limit {
        std::hint::spin_loop();
    }
}

fn a_slow_poll_is_found_with_name_line_and_duration() {
    let mut runner = debugging("the slow one");
    let line = line!() + 1;
    runner.run(async { keep_busy(EventLoop::SLOW_POLL) }).unwrap();
    let found = findings("the slow one");
    assert_eq!(found.len(), 1, "{found:?}");
    let place = format!("source={}:{line}:", file!());
    assert!(
        found[0].starts_with("WARN") && found[0].contains("slow poll") && found[0].contains(&place),
        "{found:?}"
    );
    let busy = found[0].split("busy=").nth(1).unwrap().trim();
    assert!(busy.ends_with('s') && !busy.ends_with("µs"), "the duration, at least 100 ms: {found:?}");
}

fn the_threshold_can_be_set() {
    let mut runner = debugging("the touchy one");
    runner.get_loop().unwrap().set_slow_poll(Duration::from_millis(1));
    let info = runner.run(async {
        keep_busy(Duration::from_millis(1));
        tokio::task::yield_now().await;
        runward::runner::current_task().unwrap().info()
    });
    assert_eq!(info.unwrap().slow_polls, 1);
    assert_eq!(findings("the touchy one").len(), 1);
    runner.get_loop().unwrap().set_slow_poll(Duration::from_secs(3600));
    runner.run(async { keep_busy(Duration::from_millis(2)) }).unwrap();
    assert_eq!(findings("the touchy one").len(), 1);
}

fn without_debug_nothing_is_found() {
    let mut runner = debugging("the unwatched one");
    runner.get_loop().unwrap().set_debug(false);
    runner.get_loop().unwrap().set_slow_poll(Duration::from_millis(1));
    runner.run(async { keep_busy(Duration::from_millis(2)) }).unwrap();
    drop(runner.get_loop().unwrap().spawn(async {}).with_name("the unwatched one"));
    runner.close();
    assert_eq!(findings("the unwatched one"), [""; 0]);
}

fn a_task_never_polled_is_found() {
    let mut runner = debugging("x");
    // Nobody drives the loop of the calling thread, so it stays unpolled until the close.
    let line = line!() + 1;
    drop(runner.get_loop().unwrap().spawn(async {}).with_name("the lonely one"));
    runner.close();
    let found = findings("the lonely one");
    assert!(found.len() == 1 && found[0].contains("task was never polled"), "{found:?}");
    assert!(found[0].contains(&format!("{}:{line}:", file!())), "{found:?}");
}

/// The runtime goes away under its task.
fn a_task_dropped_while_pending_is_found() {
    let shared = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let factory = LoopFactory::shared(shared.handle().clone());
    let mut runner = Runner::builder().debug(true).loop_factory(factory).build_async();
    let event_loop = runner.get_loop().unwrap();
    let task = event_loop.spawn(std::future::pending::<()>()).with_name("dropped while pending");
    shared.block_on(async {
        while task.info().polls == 0 {
            tokio::task::yield_now().await;
        }
    });
    drop(shared);
    assert!(task.is_cancelled());
    let found = findings("dropped while pending");
    assert!(found.len() == 1 && found[0].contains("task was dropped while it was pending"), "{found:?}");
    assert_eq!(event_loop.live_tasks(), 0);
}

fn all_tasks_tells_what_each_does() {
    let factory = LoopFactory::current_thread();
    let mut runner = Runner::builder().loop_factory(factory).name("main").build();
    let line = line!() + 1;
    let tasks = runner.run_scoped(|scope| async move {
        let waiting = scope.spawn(std::future::pending::<()>()).with_name("waiting");
        scope.checkpoint().await?;
        scope.checkpoint().await?;
        let created = scope.spawn(async {}).with_name("created");
        let tasks = scope.event_loop().all_tasks();
        drop((waiting, created));
        Ok::<_, Cancelled>(tasks)
    });
    let tasks = tasks.unwrap().unwrap();
    let seen: Vec<_> = tasks.iter().map(|task| (task.name.as_str(), task.state, task.polls)).collect();
    let expected = [
        ("main", TaskState::Running, 3),
        ("waiting", TaskState::Waiting, 1),
        ("created", TaskState::Created, 0),
    ];
    assert_eq!(seen, expected);
    assert_eq!(
        (tasks[0].parent, tasks[1].parent, tasks[2].parent),
        (None, Some(tasks[0].id), Some(tasks[0].id))
    );
    assert_eq!((tasks[0].source.file(), tasks[0].source.line()), (file!(), line));
    assert!(tasks[0].busy > Duration::ZERO && tasks[0].age >= tasks[0].busy);
}

fn the_tree_shows_who_started_whom() {
    let mut runner = Runner::builder().loop_factory(LoopFactory::current_thread()).name("main").build();
    let tree = runner.run_scoped(|scope| async move {
        let first = scope.spawn_scoped(|scope| async move {
            drop(scope.spawn(std::future::pending::<()>()).with_name("grandchild"));
            scope.cancellable(std::future::pending::<()>()).await
        });
        drop(first.with_name("first"));
        drop(scope.spawn(std::future::pending::<()>()).with_name("second"));
        scope.checkpoint().await?;
        scope.checkpoint().await?;
        Ok::<_, Cancelled>(scope.event_loop().task_tree().to_string())
    });
    let tree = tree.unwrap().unwrap();
    let names: Vec<_> = tree.lines().map(|line| line.split(" [").next().unwrap()).collect();
    assert_eq!(names, ["main", "├── first", "│   └── grandchild", "└── second"], "{tree}");
}
