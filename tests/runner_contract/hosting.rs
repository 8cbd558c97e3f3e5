//! The async forms: many Runners on one loop.

use std::time::Duration;

use libtest_mimic::Trial;
use runward::runner::{AsyncRunner, Cancelled, ContextVar, LoopFactory, RunError, Runner, RunnerHandle};

use crate::runner_support::expect_panics;

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        it_is_send_and_small,
        runs_share_a_context_and_follow_each_other,
        a_scoped_main_task_cleans_up_and_returns_a_value,
        a_close_cancels_the_main_task,
        the_second_interrupt_ends_the_wait_at_once,
        a_factory_of_its_own_is_refused,
        a_panic_is_the_result,
        ten_thousand_on_one_loop,
    ]
}

fn host<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(test)
}

fn it_is_send_and_small() {
    fn send<T: Send>() {}
    fn send_and_sync<T: Send + Sync + Clone>() {}
    send::<AsyncRunner>();
    send::<Runner>();
    send_and_sync::<RunnerHandle>();
    assert!(size_of::<AsyncRunner>() <= 512, "{}", size_of::<AsyncRunner>());
}

fn runs_share_a_context_and_follow_each_other() {
    static COUNT: ContextVar<u32> = ContextVar::with_default("count", 0);
    host(async {
        let mut runner = AsyncRunner::new();
        for expected in 0..3 {
            let main = runner.start(async { COUNT.set(COUNT.get().unwrap() + 1).old_value().unwrap_or(0) });
            assert_eq!(main.unwrap().await.unwrap(), expected);
        }
        let forever = runner.start(std::future::pending::<()>()).unwrap();
        assert!(matches!(runner.start(async {}), Err(RunError::LoopRunning)), "one at a time");
        assert!(runner.handle().cancel_with("next"));
        assert!(matches!(forever.await, Err(RunError::Cancelled(c)) if c.message() == Some("next")));
        assert_eq!(runner.start(async { 1 }).unwrap().await.unwrap(), 1);
        assert!(runner.close().await.is_clean());
        assert!(matches!(runner.start(async {}), Err(RunError::Closed)));
        assert!(matches!(runner.get_loop(), Err(RunError::Closed)));
    });
}

/// What a job of a daemon does.
fn a_scoped_main_task_cleans_up_and_returns_a_value() {
    host(async {
        let mut runner = AsyncRunner::new();
        let main = runner.start_scoped(|scope| async move {
            let steps = match scope.cancellable(std::future::pending::<()>()).await {
                Ok(()) => 0,
                Err(_) => {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    scope.sleep(Duration::from_millis(1)).await?;
                    2
                }
            };
            Ok::<_, Cancelled>(steps)
        });
        let main = main.unwrap();
        while main.task().info().polls == 0 {
            tokio::task::yield_now().await;
        }
        assert!(runner.handle().cancel());
        assert_eq!(main.await.unwrap(), Ok(2));
        assert!(!runner.handle().cancel());
    });
}

fn a_close_cancels_the_main_task() {
    host(async {
        let mut runner = AsyncRunner::new();
        let main = runner.start(std::future::pending::<()>()).unwrap();
        let report = runner.close().await;
        assert_eq!(report.tasks_cancelled, 1);
        assert!(matches!(main.await, Err(RunError::Cancelled(_))));
        assert_eq!(runner.close().await, report);
    });
}

fn the_second_interrupt_ends_the_wait_at_once() {
    host(async {
        let mut runner = Runner::builder().build_async();
        let (release, released) = std::sync::mpsc::channel::<()>();
        let main = runner.start(async move { released.recv() }).unwrap();
        main.task().set_name("stuck");
        let handle = runner.handle();
        while main.task().info().polls == 0 {
            tokio::task::yield_now().await;
        }
        handle.interrupt();
        handle.interrupt();
        assert!(matches!(main.await, Err(RunError::Interrupted)));
        assert!(handle.is_running(), "it holds its thread, and that is not hidden");
        let mut close = std::pin::pin!(runner.close());
        tokio::select! {
            biased;
            _ = &mut close => panic!("the main task is still there"),
            () = tokio::task::yield_now() => {}
        }
        handle.interrupt();
        assert_eq!(close.await.tasks_abandoned, ["stuck"]);
        drop(release);
    });
}

fn a_factory_of_its_own_is_refused() {
    host(async {
        let mut runner = Runner::builder().loop_factory(LoopFactory::current_thread()).build_async();
        assert!(matches!(runner.start(async {}), Err(RunError::Loop(_))));
    });
    assert!(
        matches!(AsyncRunner::new().get_loop(), Err(RunError::Loop(_))),
        "there is no loop here to share"
    );
}

fn a_panic_is_the_result() {
    expect_panics();
    host(async {
        let mut runner = AsyncRunner::new();
        let main = runner.start(async { panic!("on purpose") }).unwrap();
        assert!(matches!(main.await, Err::<(), _>(RunError::Panicked(_))));
        assert!(runner.close().await.is_clean());
    });
}

fn ten_thousand_on_one_loop() {
    host(async {
        let mut runners: Vec<_> = (0..10_000).map(|_| AsyncRunner::new()).collect();
        let mut mains = Vec::new();
        for (n, runner) in runners.iter_mut().enumerate() {
            mains.push(
                runner
                    .start_scoped(move |scope| async move {
                        let cancelled = scope.cancellable(std::future::pending::<()>()).await;
                        assert!(cancelled.is_err());
                        Ok::<_, Cancelled>(n)
                    })
                    .unwrap(),
            );
        }
        for (runner, main) in runners.iter().zip(&mains) {
            while main.task().info().polls == 0 {
                tokio::task::yield_now().await;
            }
            runner.handle().cancel();
        }
        for (n, main) in mains.into_iter().enumerate() {
            assert_eq!(main.await.unwrap(), Ok(n));
        }
        for mut runner in runners {
            assert!(runner.close().await.is_clean());
        }
    });
}
