//! Rows 18, 19, 21 to 23, 26, 27: what a cancellation is.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use libtest_mimic::Trial;
use runward::runner::{
    self, Cancelled, Exit, LoopFactory, RunError, Runner, Scope, ScopeError, TaskError, generator,
};

use crate::runner_support::Dropped;

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        every_scope_await_hears_of_it_once,
        a_standing_await_hears_of_it,
        every_standing_await_hears_of_it,
        the_inner_future_is_dropped,
        a_plain_task_is_dropped_at_its_await,
        a_task_cancelled_before_it_began_never_begins,
        join_passes_it_on_and_shield_does_not,
        a_swallowed_interrupt_gives_the_value,
        an_interrupt_alone_is_interrupted,
        an_interrupt_and_a_cancel_is_cancelled,
        a_cancelled_error_without_a_request_is_cancelled,
        an_error_of_the_clean_up_is_the_result,
        an_interrupt_leaves_background_tasks_alone,
        the_interrupt_count_starts_anew,
        a_second_interrupt_drops_the_main_task,
        an_interrupt_after_the_main_task_is_done_is_immediate,
        cancel_from_another_thread,
        the_grace_ends_a_main_task_that_does_not_listen,
        cancelling_counts_and_uncancel_takes_back,
    ]
}

fn paused() -> Runner {
    let factory = LoopFactory::from_fn(|| {
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build()
    });
    Runner::builder().loop_factory(factory).build()
}

const LONG: Duration = Duration::from_secs(3600);

/// Row 18.
fn every_scope_await_hears_of_it_once() {
    let main = |scope: Scope| async move {
        let task = scope.task();
        let mut forever = scope.spawn(std::future::pending::<()>());
        let mut values = generator(|y| async move {
            y.yield_(1).await?;
            y.yield_(2).await
        });
        let cancel = || task.cancel("why");

        cancel();
        assert_eq!(scope.sleep(LONG).await, Err(Cancelled::new("why")));
        scope.sleep(Duration::ZERO).await?;
        cancel();
        assert_eq!(scope.checkpoint().await, Err(Cancelled::new("why")));
        scope.checkpoint().await?;
        cancel();
        assert_eq!(scope.cancellable(async { 1 }).await, Err(Cancelled::new("why")));
        assert_eq!(scope.cancellable(async { 2 }).await?, 2);
        cancel();
        assert!(scope.join(&mut forever).await.is_err());
        assert_eq!(scope.join(&mut scope.spawn(async { 3 })).await?, 3);
        assert_eq!(values.next().await, Ok(Some(1)));
        cancel();
        assert_eq!(values.next().await, Err(Exit::Cancelled(Cancelled::new("why"))));
        assert_eq!(values.next().await, Ok(None));
        assert_eq!(task.cancelling(), 5);
        Ok::<_, TaskError>(())
    };
    paused().run_scoped(main).unwrap().unwrap();
    Runner::new().run_scoped(main).unwrap().unwrap();
}

/// Row 18: it comes while the await stands, from another task.
fn a_standing_await_hears_of_it() {
    let ended = Runner::new().run_scoped(|scope| async move {
        let main = scope.task();
        drop(scope.spawn(async move {
            while main.info().state != runner::TaskState::Waiting {
                tokio::task::yield_now().await;
            }
            main.cancel("now");
        }));
        let slept = scope.sleep(LONG).await;
        scope.sleep(Duration::ZERO).await?;
        slept
    });
    assert!(matches!(ended, Err(RunError::Cancelled(cancelled)) if cancelled.message() == Some("now")));
}

/// Row 18: a task may stand at several awaits at once.
fn every_standing_await_hears_of_it() {
    let heard = paused().run_scoped(|scope| async move {
        let canceller = async {
            tokio::task::yield_now().await;
            scope.task().cancel(None)
        };
        let (a, b, _) = tokio::join!(scope.sleep(LONG), scope.sleep(LONG), canceller);
        scope.checkpoint().await?;
        Ok::<_, Cancelled>((a, b))
    });
    assert_eq!(heard.unwrap(), Ok((Err(Cancelled::new(None)), Err(Cancelled::new(None)))));
}

/// Row 19.
fn the_inner_future_is_dropped() {
    let dropped = Arc::new(AtomicUsize::new(0));
    let guard = Dropped(dropped.clone());
    let counted = dropped.clone();
    let ended = Runner::new().run_scoped(|scope| async move {
        scope.task().cancel(None);
        let inner = async move {
            let _guard = guard;
            std::future::pending::<()>().await;
        };
        let cancelled = scope.cancellable(inner).await;
        assert_eq!(counted.load(SeqCst), 1);
        cancelled
    });
    assert!(matches!(ended, Err(RunError::Cancelled(_))));
}

/// Row 18: `Drop` is its `finally`.
fn a_plain_task_is_dropped_at_its_await() {
    let dropped = Arc::new(AtomicUsize::new(0));
    let guard = Dropped(dropped.clone());
    let ended = Runner::new().run(async move {
        let _guard = guard;
        runner::current_task().unwrap().cancel("enough");
        std::future::pending::<()>().await;
    });
    assert!(matches!(ended, Err(RunError::Cancelled(cancelled)) if cancelled.message() == Some("enough")));
    assert_eq!(dropped.load(SeqCst), 1);
}

fn a_task_cancelled_before_it_began_never_begins() {
    let began = Arc::new(AtomicUsize::new(0));
    let counted = began.clone();
    paused()
        .run_scoped(|scope| async move {
            let mut child = scope.spawn_scoped(move |_| async move {
                counted.fetch_add(1, SeqCst);
                Ok::<_, Cancelled>(())
            });
            child.cancel("too late");
            let ended = (&mut child).await;
            assert!(matches!(ended, Err(TaskError::Cancelled(c)) if c.message() == Some("too late")));
            Ok::<_, Cancelled>(())
        })
        .unwrap()
        .unwrap();
    assert_eq!(began.load(SeqCst), 0);
}

/// Row 19: asyncio's `await task` and `await shield(task)`.
fn join_passes_it_on_and_shield_does_not() {
    paused()
        .run_scoped(|scope| async move {
            let stubborn = |scope: Scope| async move {
                assert!(scope.sleep(LONG).await.is_err());
                Ok::<_, Cancelled>("swallowed")
            };
            let mut child = scope.spawn_scoped(stubborn);
            scope.checkpoint().await?;
            scope.task().cancel(None);
            assert_eq!(scope.join(&mut child).await?, Ok("swallowed"), "what the task makes of it counts");

            let mut child = scope.spawn(tokio::time::sleep(LONG));
            scope.task().cancel(None);
            assert!(scope.shield(&mut child).await.is_err());
            assert_eq!(child.cancelling(), 0);
            scope.join(&mut child).await?;
            Ok::<_, TaskError>(())
        })
        .unwrap()
        .unwrap();
}

/// Row 21.
fn a_swallowed_interrupt_gives_the_value() {
    let mut runner = Runner::new();
    let handle = runner.handle();
    let value = runner.run_scoped(|scope| async move {
        handle.interrupt();
        assert!(scope.sleep(LONG).await.is_err());
        scope.sleep(Duration::ZERO).await?;
        Ok::<_, Cancelled>(42)
    });
    assert_eq!(value.unwrap(), Ok(42));
}

/// Row 20.
fn an_interrupt_alone_is_interrupted() {
    for factory in [LoopFactory::current_thread, || LoopFactory::multi_thread(1)] {
        let mut runner = Runner::builder().loop_factory(factory()).build();
        let handle = runner.handle();
        let main = async move {
            handle.interrupt();
            std::future::pending::<()>().await;
        };
        assert!(matches!(runner.run(main), Err(RunError::Interrupted)));
        assert_eq!(runner.run(async { 1 }).unwrap(), 1, "the Runner goes on");
    }
}

/// Row 22.
fn an_interrupt_and_a_cancel_is_cancelled() {
    let mut runner = Runner::new();
    let handle = runner.handle();
    let ended = runner.run_scoped(|scope| async move {
        handle.interrupt();
        scope.task().cancel(None);
        scope.checkpoint().await
    });
    assert!(matches!(ended, Err(RunError::Cancelled(_))));

    let handle = runner.handle();
    let ended = runner.run_scoped(|scope| async move {
        handle.interrupt();
        scope.task().cancel(None);
        scope.task().uncancel();
        scope.checkpoint().await
    });
    assert!(matches!(ended, Err(RunError::Interrupted)), "the other one was taken back");
}

/// Row 23.
fn a_cancelled_error_without_a_request_is_cancelled() {
    let ended = Runner::new().run_scoped(|_| async { Err::<(), _>(Cancelled::new("by itself")) });
    assert!(matches!(ended, Err(RunError::Cancelled(_))));
}

fn an_error_of_the_clean_up_is_the_result() {
    #[derive(Debug)]
    struct CleanUp;
    impl std::fmt::Display for CleanUp {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("clean-up")
        }
    }
    impl ScopeError for CleanUp {
        fn is_cancelled(&self) -> bool {
            false
        }
    }
    let mut runner = Runner::new();
    let handle = runner.handle();
    let ended = runner.run_scoped(|scope| async move {
        handle.interrupt();
        scope.checkpoint().await.map_err(|_| CleanUp)
    });
    assert!(matches!(ended, Ok(Err(CleanUp))));
}

/// Row 26.
fn an_interrupt_leaves_background_tasks_alone() {
    let mut runner = Runner::new();
    let handle = runner.handle();
    let background = runner.get_loop().unwrap().spawn(std::future::pending::<()>());
    let main = async move {
        handle.interrupt();
        std::future::pending::<()>().await;
    };
    assert!(matches!(runner.run(main), Err(RunError::Interrupted)));
    assert_eq!((background.is_done(), background.cancelling()), (false, 0));
    assert_eq!(runner.close().tasks_cancelled, 1);
    assert!(background.is_cancelled());
}

/// Row 27.
fn the_interrupt_count_starts_anew() {
    let mut runner = Runner::new();
    for _ in 0..3 {
        let handle = runner.handle();
        let value = runner.run_scoped(|scope| async move {
            handle.interrupt();
            assert!(scope.checkpoint().await.is_err());
            Ok::<_, Cancelled>(1)
        });
        assert_eq!(value.unwrap(), Ok(1), "each is the first of its run");
    }
}

/// Row 24, where the main task does come back to its loop.
fn a_second_interrupt_drops_the_main_task() {
    for factory in [LoopFactory::current_thread, || LoopFactory::multi_thread(1)] {
        let dropped = Arc::new(AtomicUsize::new(0));
        let guard = Dropped(dropped.clone());
        let mut runner = Runner::builder().loop_factory(factory()).build();
        let handle = runner.handle();
        let ended = runner.run_scoped(|scope| async move {
            let _guard = guard;
            handle.interrupt();
            assert!(scope.checkpoint().await.is_err());
            handle.interrupt();
            std::future::pending::<()>().await;
            Ok::<_, Cancelled>(())
        });
        assert!(matches!(ended, Err(RunError::Interrupted)));
        assert_eq!(dropped.load(SeqCst), 1);
        assert_eq!(runner.run(async { 1 }).unwrap(), 1, "the Runner goes on");
    }
}

/// Row 25.
fn an_interrupt_after_the_main_task_is_done_is_immediate() {
    runner::run(async {
        let mut hosted = runner::AsyncRunner::new();
        let main = hosted.start(async { 42 }).unwrap();
        while !main.task().is_done() {
            tokio::task::yield_now().await;
        }
        hosted.handle().interrupt();
        assert!(matches!(main.await, Err(RunError::Interrupted)));
    })
    .unwrap();
}

fn cancel_from_another_thread() {
    for factory in [LoopFactory::current_thread, || LoopFactory::multi_thread(1)] {
        let mut runner = Runner::builder().loop_factory(factory()).build();
        let handle = runner.handle();
        let canceller = std::thread::spawn(move || {
            while !handle.cancel() {
                std::thread::yield_now();
            }
        });
        let ended = runner.run_scoped(|scope| async move { scope.sleep(LONG).await });
        assert!(matches!(ended, Err(RunError::Cancelled(_))));
        canceller.join().unwrap();
    }
}

/// Beyond asyncio: `cancel_grace`.
fn the_grace_ends_a_main_task_that_does_not_listen() {
    let grace = Duration::from_secs(30);
    let factory = LoopFactory::from_fn(|| {
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build()
    });
    let mut runner = Runner::builder().loop_factory(factory).cancel_grace(grace).build();
    let runtime = runner.get_loop().unwrap().runtime();
    let began = {
        let _entered = runtime.enter();
        tokio::time::Instant::now()
    };
    let handle = runner.handle();
    let ended = runner.run_scoped(move |_| async move {
        handle.interrupt();
        // It does not listen, but would end: a grace that never comes shall fail, not hang.
        tokio::time::sleep(2 * grace).await;
        Ok::<_, Cancelled>(())
    });
    assert!(matches!(ended, Err(RunError::Interrupted)));
    let took = {
        let _entered = runtime.enter();
        began.elapsed()
    };
    assert!(took >= grace && took < grace + Duration::from_millis(10), "{took:?}");
}

/// Row 22.
fn cancelling_counts_and_uncancel_takes_back() {
    let ended = paused().run_scoped(|scope| async move {
        let task = scope.task();
        assert!(task.cancel(None) && task.cancel(None));
        assert_eq!((task.cancelling(), task.uncancel(), task.cancelling()), (2, 1, 1));
        assert!(scope.checkpoint().await.is_err(), "one is left");
        scope.checkpoint().await?;
        assert_eq!(task.uncancel(), 0);
        Ok::<_, Cancelled>(task)
    });
    let task = ended.unwrap().unwrap();
    assert!(!task.cancel(None), "it is done");
}
