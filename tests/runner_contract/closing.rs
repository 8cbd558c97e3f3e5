//! Rows 11 to 13: the order of a close, and what it reports.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use libtest_mimic::Trial;
use runward::runner::{
    AsyncRunner, Builder, Cancelled, Exit, Generator, LoopFactory, Runner, ScopeError, generator, run,
};

use crate::runner_support::{Dropped, expect_panics, findings};

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        the_order_is_that_of_asyncio,
        a_second_close_waits_for_nothing_and_reports_the_same,
        closed_even_if_a_step_failed,
        a_generator_cleans_up_with_awaits,
        an_error_of_a_generator_goes_to_the_handler,
        a_generator_that_ignores_its_close_is_reported,
        a_generator_in_the_middle_of_an_await_is_dropped,
        a_generator_that_was_dropped_half_way_is_closed,
        an_unseen_panic_goes_to_the_handler,
        what_the_clean_up_starts_is_dropped,
        an_interrupt_ends_a_close,
    ]
}

/// A loop that goes on between the runs.
fn working() -> Builder {
    Runner::builder().loop_factory(LoopFactory::multi_thread(1))
}

type Log = Arc<Mutex<Vec<&'static str>>>;

fn ticks(log: &Log) -> Generator<u32, Exit> {
    let log = log.clone();
    generator(move |y| async move {
        let exit = y.yield_(1).await;
        log.lock().unwrap().push("generator told");
        tokio::time::sleep(Duration::from_millis(1)).await;
        log.lock().unwrap().push("generator cleaned up");
        exit
    })
}

/// Row 11.
fn the_order_is_that_of_asyncio() {
    let log = Log::default();
    // In another order the executor would never be drained.
    let mut runner = Runner::builder().drain_timeout(Duration::from_secs(20)).build();
    let event_loop = runner.get_loop().unwrap();
    let (release, released) = std::sync::mpsc::channel::<()>();
    let main_log = log.clone();
    let values = runner.run_scoped(|scope| async move {
        let mut values = ticks(&main_log);
        values.next().await.unwrap();
        let task_log = main_log.clone();
        let left_over = scope.spawn_scoped(|scope| async move {
            let cancelled = scope.sleep(Duration::from_secs(3600)).await;
            task_log.lock().unwrap().push("task told");
            scope.sleep(Duration::from_millis(1)).await?;
            task_log.lock().unwrap().push("task cleaned up");
            drop(release);
            cancelled
        });
        while left_over.info().polls == 0 {
            scope.checkpoint().await?;
        }
        let work_log = main_log.clone();
        drop(scope.spawn_blocking(move || {
            // Ends after the tasks: nothing else can release it.
            released.recv().unwrap_err();
            while !work_log.lock().unwrap().contains(&"generator cleaned up") {
                std::thread::yield_now();
            }
            work_log.lock().unwrap().push("executor drained");
        }));
        Ok::<_, Cancelled>(values)
    });
    let values = values.unwrap().unwrap();
    let report = runner.close();
    let order =
        ["task told", "task cleaned up", "generator told", "generator cleaned up", "executor drained"];
    assert_eq!(*log.lock().unwrap(), order);
    assert!(event_loop.is_closed() && report.is_clean());
    assert_eq!((report.tasks_cancelled, report.task_errors, report.generators_closed), (1, 0, 1));
    assert!(report.elapsed >= Duration::from_millis(2));
    drop(values);
}

/// Row 11.
fn a_second_close_waits_for_nothing_and_reports_the_same() {
    let mut runner = Runner::builder().drain_timeout(Duration::ZERO).build();
    let (release, released) = std::sync::mpsc::channel::<()>();
    let work = runner.get_loop().unwrap().spawn_blocking(move || released.recv()).with_name("stuck");
    let first = runner.close();
    assert_eq!(first.executor_abandoned, ["stuck"]);
    assert_eq!(runner.close(), first);
    drop((release, work));
}

/// Row 11.
fn closed_even_if_a_step_failed() {
    expect_panics();
    let mut runner = Runner::new();
    let event_loop = runner.get_loop().unwrap();
    event_loop.set_exception_handler(|_| panic!("on purpose: the handler"));
    let values = runner.run(async {
        let mut values = generator(|y| async move {
            let exit = y.yield_(1).await;
            assert!(exit.is_ok(), "on purpose: the clean-up");
            exit
        });
        values.next().await.unwrap();
        values
    });
    assert_eq!(runner.close().generators_closed, 1);
    assert!(event_loop.is_closed() && runner.get_loop().is_err());
    drop(values);
}

/// Row 13.
fn a_generator_cleans_up_with_awaits() {
    let log = Log::default();
    let mut runner = Runner::new();
    let mut values = ticks(&log);
    let values = runner.run(async move {
        values.next().await.unwrap();
        values
    });
    assert!(log.lock().unwrap().is_empty());
    assert_eq!(runner.close().generators_closed, 1);
    assert_eq!(*log.lock().unwrap(), ["generator told", "generator cleaned up"]);
    drop(values);
}

struct Spam;

impl std::fmt::Display for Spam {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("spam")
    }
}

impl ScopeError for Spam {
    fn is_cancelled(&self) -> bool {
        false
    }
}

fn reported(runner: &mut Runner) -> Arc<Mutex<Vec<String>>> {
    let log = Arc::new(Mutex::new(Vec::new()));
    let handler = log.clone();
    runner.get_loop().unwrap().set_exception_handler(move |context| {
        handler.lock().unwrap().push(format!("{}: {}", context.message, context.exception));
    });
    log
}

/// Row 13.
fn an_error_of_a_generator_goes_to_the_handler() {
    let mut runner = Runner::new();
    let log = reported(&mut runner);
    let values = runner.run(async {
        let mut values = generator(|y| async move { y.yield_(1).await.map_err(|_| Spam) });
        assert!(values.next().await.is_ok());
        values
    });
    runner.close();
    let log = log.lock().unwrap();
    assert!(log.len() == 1 && log[0].contains("generator") && log[0].ends_with("spam"), "{log:?}");
    drop(values);
}

fn a_generator_that_ignores_its_close_is_reported() {
    let mut runner = Runner::new();
    let log = reported(&mut runner);
    let values = runner.run(async {
        let mut values = generator(|y| async move {
            let told = y.yield_(1).await;
            drop(y.yield_(2).await);
            told
        });
        values.next().await.unwrap();
        values
    });
    runner.close();
    assert!(log.lock().unwrap()[0].ends_with("the generator ignored its close"));
    drop(values);
}

fn a_generator_in_the_middle_of_an_await_is_dropped() {
    let dropped = Arc::new(AtomicUsize::new(0));
    let guard = Dropped(dropped.clone());
    let mut runner = Runner::new();
    let values = runner.run_scoped(|scope| async move {
        let mut values = generator(|y| async move {
            let _guard = guard;
            std::future::pending::<()>().await;
            y.yield_(1).await
        });
        // Begins, and is given up.
        let given_up = tokio::select! {
            biased;
            next = values.next() => Some(next),
            () = async {} => None,
        };
        assert_eq!(given_up, None);
        scope.checkpoint().await?;
        Ok::<_, Cancelled>(values)
    });
    assert_eq!(dropped.load(SeqCst), 0);
    runner.close();
    assert_eq!(dropped.load(SeqCst), 1);
    drop(values);
}

/// asyncio's finalizer hook.
fn a_generator_that_was_dropped_half_way_is_closed() {
    let log = Log::default();
    let mut values = ticks(&log);
    run(async move {
        values.next().await.unwrap();
        drop(values);
        while log.lock().unwrap().len() < 2 {
            tokio::task::yield_now().await;
        }
    })
    .unwrap();
}

fn an_unseen_panic_goes_to_the_handler() {
    expect_panics();
    let mut runner = working().build();
    let log = reported(&mut runner);
    let event_loop = runner.get_loop().unwrap();
    let seen = event_loop.spawn(async { panic!("on purpose: seen") });
    assert!(runner.run(seen).unwrap().is_err());
    assert!(log.lock().unwrap().is_empty());
    drop(event_loop.spawn(async { panic!("on purpose: unseen") }));
    while event_loop.live_tasks() > 0 {
        std::thread::yield_now();
    }
    runner.close();
    let log = log.lock().unwrap();
    assert!(log.len() == 1 && log[0].contains("never retrieved") && log[0].ends_with("unseen"), "{log:?}");
}

/// As in asyncio, whose close cancels what is there when it begins.
fn what_the_clean_up_starts_is_dropped() {
    let dropped = Arc::new(AtomicUsize::new(0));
    let guard = Dropped(dropped.clone());
    let mut runner = working().debug(true).build();
    let report = {
        let event_loop = runner.get_loop().unwrap();
        let cleaner = event_loop.spawn({
            let event_loop = event_loop.clone();
            async move {
                struct Starts(Option<(runward::runner::EventLoop, Dropped)>);
                impl Drop for Starts {
                    fn drop(&mut self) {
                        let (event_loop, guard) = self.0.take().unwrap();
                        let late = event_loop.spawn(async move {
                            let _guard = guard;
                            std::future::pending::<()>().await;
                        });
                        drop(late.with_name("started by the clean-up"));
                    }
                }
                let _starts = Starts(Some((event_loop, guard)));
                std::future::pending::<()>().await;
            }
        });
        while cleaner.info().polls == 0 {
            std::thread::yield_now();
        }
        runner.close()
    };
    assert_eq!((report.tasks_cancelled, report.is_clean()), (1, true));
    assert_eq!(dropped.load(SeqCst), 1);
    assert_eq!(findings("started by the clean-up").len(), 1);
}

fn an_interrupt_ends_a_close() {
    let shared = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let factory = LoopFactory::shared(shared.handle().clone());
    let mut hosted: AsyncRunner = Runner::builder().loop_factory(factory).build_async();
    let (release, released) = std::sync::mpsc::channel::<()>();
    let handle = hosted.handle();
    let (report, ()) = shared.block_on(async {
        let event_loop = hosted.get_loop().unwrap();
        drop(event_loop.spawn_blocking(move || released.recv()).with_name("stuck"));
        let main = hosted.start_scoped(|_| async {
            std::future::pending::<()>().await;
            Ok::<_, Cancelled>(())
        });
        let main = main.unwrap();
        while main.task().info().polls == 0 {
            tokio::task::yield_now().await;
        }
        tokio::join!(hosted.close(), async {
            while main.task().cancelling() == 0 {
                tokio::task::yield_now().await;
            }
            handle.interrupt();
        })
    });
    assert_eq!(report.executor_abandoned, ["stuck"]);
    assert!(report.tasks_abandoned.is_empty(), "the task was dropped");
    drop(release);
}
