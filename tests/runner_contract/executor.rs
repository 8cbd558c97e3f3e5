//! Row 11: the executor, its bound and its drain.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use libtest_mimic::Trial;
use runward::runner::{AsyncRunner, Cancelled, Runner, TaskError};
use tokio::time::{Instant, advance};

use crate::runner_support::{expect_panics, findings};

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        it_drains_for_five_minutes_then_warns_and_goes_on,
        a_short_limit_in_real_time,
        it_waits_for_queued_work_too,
        it_is_bounded,
        the_deadline_can_be_moved_late,
        a_panic_of_blocking_work_is_an_error,
        abandoned_executors_are_counted,
    ]
}

/// A loop with an injected clock.
fn paused<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap()
        .block_on(test)
}

fn stuck(runner: &mut AsyncRunner, name: &str) -> mpsc::Sender<()> {
    let (release, released) = mpsc::channel();
    drop(runner.get_loop().unwrap().spawn_blocking(move || released.recv()).with_name(name));
    release
}

fn it_drains_for_five_minutes_then_warns_and_goes_on() {
    paused(async {
        let mut runner = AsyncRunner::new();
        let release = stuck(&mut runner, "five minutes of it");
        let mut close = std::pin::pin!(runner.close());
        assert!(futures_poll(close.as_mut()).await.is_none());
        advance(Duration::from_millis(299_990)).await;
        assert!(futures_poll(close.as_mut()).await.is_none());
        advance(Duration::from_millis(20)).await;
        let report = close.await;
        assert_eq!(report.executor_abandoned, ["five minutes of it"]);
        assert!(!report.is_clean() && report.elapsed >= Duration::from_secs(300));
        let warned = findings("five minutes of it");
        assert!(
            warned.iter().any(|w| w.starts_with("WARN") && w.contains("did not finish in time")),
            "{warned:?}"
        );
        drop(release);
    });
}

/// One poll.
async fn futures_poll<F: Future>(mut future: std::pin::Pin<&mut F>) -> Option<F::Output> {
    std::future::poll_fn(|cx| match future.as_mut().poll(cx) {
        std::task::Poll::Ready(value) => std::task::Poll::Ready(Some(value)),
        std::task::Poll::Pending => std::task::Poll::Ready(None),
    })
    .await
}

fn a_short_limit_in_real_time() {
    let mut runner = Runner::builder().drain_timeout(Duration::from_millis(20)).build();
    let (release, released) = mpsc::channel::<()>();
    drop(runner.get_loop().unwrap().spawn_blocking(move || released.recv()).with_name("slow"));
    let report = runner.close();
    assert_eq!(report.executor_abandoned, ["slow"]);
    assert!(report.elapsed >= Duration::from_millis(20));
    drop(release);
}

fn it_waits_for_queued_work_too() {
    let done = Arc::new(AtomicUsize::new(0));
    let mut runner = Runner::builder().max_blocking(1).build();
    let event_loop = runner.get_loop().unwrap();
    for _ in 0..10 {
        let done = done.clone();
        drop(event_loop.spawn_blocking(move || done.fetch_add(1, SeqCst)));
    }
    assert!(runner.close().is_clean());
    assert_eq!((done.load(SeqCst), event_loop.blocking_tasks()), (10, 0));
}

fn it_is_bounded() {
    let (running, most) = <(Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
    let both = Arc::new(std::sync::Barrier::new(2));
    let mut runner = Runner::builder().max_blocking(2).build();
    let event_loop = runner.get_loop().unwrap();
    for _ in 0..20 {
        let (running, most, both) = (running.clone(), most.clone(), both.clone());
        drop(event_loop.spawn_blocking(move || {
            most.fetch_max(running.fetch_add(1, SeqCst) + 1, SeqCst);
            both.wait();
            running.fetch_sub(1, SeqCst);
        }));
    }
    runner.close();
    assert_eq!(most.load(SeqCst), 2);
}

fn the_deadline_can_be_moved_late() {
    paused(async {
        let mut runner = AsyncRunner::new();
        let handle = runner.handle();
        let release = stuck(&mut runner, "moved");
        let began = Instant::now();
        let mut close = std::pin::pin!(runner.close());
        assert!(futures_poll(close.as_mut()).await.is_none());
        handle.set_drain_deadline(began + Duration::from_secs(10));
        assert!(futures_poll(close.as_mut()).await.is_none());
        advance(Duration::from_secs(11)).await;
        assert_eq!(close.await.executor_abandoned, ["moved"]);
        assert!(began.elapsed() < Duration::from_secs(20));
        drop(release);
    });
}

fn a_panic_of_blocking_work_is_an_error() {
    expect_panics();
    let mut runner = Runner::new();
    let work = runner.get_loop().unwrap().spawn_blocking(|| panic!("on purpose"));
    let ended: Result<(), TaskError> = runner.run(work).unwrap();
    assert!(matches!(ended, Err(TaskError::Panicked(panic)) if panic.message() == "on purpose"));
    assert!(runner.close().is_clean());
}

/// Each says how many it left behind, and they end when they can.
fn abandoned_executors_are_counted() {
    let (ended, released) = (Arc::new(AtomicUsize::new(0)), Arc::new(std::sync::Barrier::new(101)));
    let mut abandoned = 0;
    for n in 0..100 {
        let mut runner = Runner::builder().drain_timeout(Duration::ZERO).build();
        let (ended, released) = (ended.clone(), released.clone());
        let value = runner.run_scoped(move |scope| async move {
            let (begun, began) = tokio::sync::oneshot::channel();
            drop(
                scope
                    .spawn_blocking(move || {
                        begun.send(()).unwrap();
                        released.wait();
                        ended.fetch_add(1, SeqCst);
                    })
                    .with_name(&format!("executor {n}")),
            );
            began.await.unwrap();
            Ok::<_, Cancelled>(())
        });
        value.unwrap().unwrap();
        let report = runner.close();
        assert_eq!(report.executor_abandoned, [format!("executor {n}")]);
        abandoned += report.executor_abandoned.len();
    }
    assert_eq!((abandoned, ended.load(SeqCst)), (100, 0));
    released.wait();
    while ended.load(SeqCst) < 100 {
        std::thread::yield_now();
    }
}
