//! Rows 1, 2, 4, 5, 7, 9, 10, 21, 28, 29, 31, and panics.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use libtest_mimic::Trial;
use runward::runner::{self, Context, ContextVar, LoopFactory, RunError, Runner};

use crate::runner_support::{Dropped, expect_panics, findings};

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        run_closes_on_success_error_and_panic,
        a_refused_future_is_dropped_unpolled_and_nothing_is_made,
        every_factory_makes_its_loop,
        a_failing_factory_is_an_error_and_is_asked_again,
        drop_closes_also_on_unwind,
        drop_closes_also_inside_an_async_context,
        drop_of_a_shared_one_inside_its_loop_does_not_block_it,
        run_in_uses_that_context_instead,
        use_after_close_is_refused,
        close_of_an_unused_one_leaves_it_usable,
        a_panic_is_an_error_and_the_runner_goes_on,
        run_local_borrows,
        run_from_another_thread,
        run_from_blocking_work,
    ]
}

fn left_over(ended: &Arc<AtomicUsize>) -> impl Future<Output = ()> + Send + use<> {
    let guard = Dropped(ended.clone());
    async move {
        let _guard = guard;
        std::future::pending::<()>().await;
    }
}

/// Row 1.
fn run_closes_on_success_error_and_panic() {
    expect_panics();
    let ended = Arc::new(AtomicUsize::new(0));
    let spawn = |ended: &Arc<AtomicUsize>| {
        let task = left_over(ended);
        async move { drop(runner::current_task().unwrap().event_loop().spawn(task)) }
    };
    let spawned = spawn(&ended);
    runner::run(spawned).unwrap();
    assert_eq!(ended.load(SeqCst), 1);
    let spawned = spawn(&ended);
    runner::run(async {
        spawned.await;
        Err::<(), _>("spam")
    })
    .unwrap()
    .unwrap_err();
    assert_eq!(ended.load(SeqCst), 2);
    let spawned = spawn(&ended);
    let panicked = runner::run(async {
        spawned.await;
        panic!("on purpose");
    });
    assert!(matches!(panicked, Err::<(), _>(RunError::Panicked(_))));
    assert_eq!(ended.load(SeqCst), 3);
}

/// Row 2.
fn a_refused_future_is_dropped_unpolled_and_nothing_is_made() {
    let (polled, dropped, made) = <(Arc<AtomicUsize>, Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
    let (was_polled, guard, counted) = (polled.clone(), Dropped(dropped.clone()), made.clone());
    let (nested, line) = runner::run(async move {
        let factory = LoopFactory::from_fn(move || {
            counted.fetch_add(1, SeqCst);
            tokio::runtime::Builder::new_current_thread().build()
        });
        let refused = async move {
            let _guard = guard;
            was_polled.fetch_add(1, SeqCst);
        };
        let mut inner = Runner::builder().loop_factory(factory).build();
        (inner.run(refused), line!())
    })
    .unwrap();
    assert!(matches!(nested, Err(RunError::LoopRunning)));
    assert_eq!((polled.load(SeqCst), dropped.load(SeqCst), made.load(SeqCst)), (0, 1, 0));
    let warned = findings(&format!("{}:{line}:", file!()));
    assert!(warned.len() == 1 && warned[0].contains("never ran"), "{warned:?}");
}

/// Row 4; what each is, not only that it works.
fn every_factory_makes_its_loop() {
    let here = std::thread::current().id();
    let thread = |factory| {
        let mut runner = Runner::builder().loop_factory(factory).build();
        let thread = runner.run(async { std::thread::current().id() }).unwrap();
        (thread, runner.get_loop().unwrap().runtime().metrics().num_workers())
    };
    assert_eq!(thread(LoopFactory::current_thread()), (here, 1));
    assert_ne!(Runner::new().run(async { std::thread::current().id() }).unwrap(), here);
    let (other, workers) = thread(LoopFactory::multi_thread(3));
    assert!(other != here && workers == 3);
    let shared = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (other, workers) = thread(LoopFactory::shared(shared.handle().clone()));
    assert!(other != here && workers == 2);
    assert_eq!(shared.block_on(async { 42 }), 42, "a shared loop outlives the Runner");
    let custom = LoopFactory::from_fn(|| tokio::runtime::Builder::new_current_thread().enable_all().build());
    assert_eq!(thread(custom), (here, 1));
}

/// Row 4.
fn a_failing_factory_is_an_error_and_is_asked_again() {
    let mut calls = 0;
    let factory = LoopFactory::from_fn(move || {
        calls += 1;
        if calls == 1 {
            return Err(std::io::Error::other("not today"));
        }
        tokio::runtime::Builder::new_current_thread().enable_all().build()
    });
    let mut runner = Runner::builder().loop_factory(factory).build();
    let failed = runner.run(async { 1 });
    assert!(matches!(&failed, Err(RunError::Loop(error)) if error.to_string() == "not today"));
    assert_eq!(runner.run(async { 2 }).unwrap(), 2);
}

/// Row 5.
fn drop_closes_also_on_unwind() {
    expect_panics();
    let ended = Arc::new(AtomicUsize::new(0));
    let task = left_over(&ended);
    let unwound = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        let mut runner = Runner::new();
        drop(runner.get_loop().unwrap().spawn(task));
        panic!("on purpose");
    }));
    assert!(unwound.is_err());
    assert_eq!(ended.load(SeqCst), 1);
}

/// Row 5, on every kind of loop of its own.
fn drop_closes_also_inside_an_async_context() {
    for factory in [LoopFactory::current_thread, || LoopFactory::multi_thread(1)] {
        let ended = Arc::new(AtomicUsize::new(0));
        let mut inner = Runner::builder().loop_factory(factory()).build();
        inner.run(async {}).unwrap();
        let event_loop = inner.get_loop().unwrap();
        drop(event_loop.spawn(left_over(&ended)));
        runner::run(async move { drop(inner) }).unwrap();
        assert_eq!(ended.load(SeqCst), 1);
        assert!(event_loop.is_closed());
    }
}

/// Row 5: blocking there would wait for itself.
fn drop_of_a_shared_one_inside_its_loop_does_not_block_it() {
    let shared = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut inner = Runner::builder().loop_factory(LoopFactory::shared(shared.handle().clone())).build();
    let event_loop = inner.get_loop().unwrap();
    let ended = Arc::new(AtomicUsize::new(0));
    drop(event_loop.spawn(left_over(&ended)));
    shared.block_on(async {
        drop(inner);
        while !event_loop.is_closed() {
            tokio::task::yield_now().await;
        }
    });
    assert_eq!(ended.load(SeqCst), 1);
}

/// Row 7.
fn run_in_uses_that_context_instead() {
    static VAR: ContextVar<u8> = ContextVar::with_default("var", 0);
    let mut runner = Runner::new();
    let other = Context::new();
    runner.run(async { VAR.set(1) }).unwrap();
    assert_eq!(runner.run_in(other.clone(), async { VAR.set(2).old_value() }).unwrap(), None);
    assert_eq!(other.get(&VAR), Some(2));
    assert_eq!(runner.run(async { VAR.get() }).unwrap(), Some(1));
    assert_eq!(VAR.get(), Some(0), "the caller's own context is untouched");
}

/// Row 9.
fn use_after_close_is_refused() {
    let mut runner = Runner::new();
    runner.run(async {}).unwrap();
    let event_loop = runner.get_loop().unwrap();
    runner.close();
    let dropped = Arc::new(AtomicUsize::new(0));
    assert!(matches!(runner.run(left_over(&dropped)), Err(RunError::Closed)));
    assert_eq!(dropped.load(SeqCst), 1);
    assert!(matches!(runner.run_local(async {}), Err(RunError::Closed)));
    assert!(matches!(runner.get_loop(), Err(RunError::Closed)));
    let refused = event_loop.spawn(left_over(&dropped));
    assert!(refused.is_cancelled() && dropped.load(SeqCst) == 2);
    assert!(runner::run(refused).unwrap().is_err());
}

/// Row 10.
fn close_of_an_unused_one_leaves_it_usable() {
    let mut runner = Runner::new();
    runner.close();
    assert_eq!(runner.run(async { 42 }).unwrap(), 42);
}

/// The last paragraph of the contract.
fn a_panic_is_an_error_and_the_runner_goes_on() {
    expect_panics();
    let mut runner = Runner::new();
    let ended = Arc::new(AtomicUsize::new(0));
    drop(runner.get_loop().unwrap().spawn(left_over(&ended)));
    let panicked = runner.run(async { std::panic::panic_any(("on purpose", 42)) });
    let Err::<(), _>(RunError::Panicked(panic)) = panicked else { panic!("{panicked:?}") };
    assert_eq!(panic.into_payload().downcast_ref(), Some(&("on purpose", 42)));
    assert_eq!(ended.load(SeqCst), 0, "other tasks go on");
    assert_eq!(runner.run(async { 1 }).unwrap(), 1);
    assert_eq!(runner.close().tasks_cancelled, 1);
    assert_eq!(ended.load(SeqCst), 1);
}

fn run_local_borrows() {
    let mut not_send = std::rc::Rc::new(1);
    let mut runner = Runner::new();
    runner.run_local(async { *std::rc::Rc::get_mut(&mut not_send).unwrap() += 1 }).unwrap();
    assert_eq!(*not_send, 2);
}

/// Row 31.
fn run_from_another_thread() {
    let value = std::thread::spawn(|| runner::run(async { 42 }).unwrap()).join();
    assert_eq!(value.unwrap(), 42);
}

/// A thread of the executor runs no loop, as in Python; one that runs a Runner does.
fn run_from_blocking_work() {
    let nested = runner::run(async {
        let event_loop = runner::current_task().unwrap().event_loop();
        event_loop
            .spawn_blocking(|| {
                let mut inner = Runner::builder().loop_factory(LoopFactory::current_thread()).build();
                inner.run(async { runner::run(async {}) })
            })
            .await
    });
    let inner = nested.unwrap().unwrap().unwrap();
    assert!(matches!(inner, Err(RunError::LoopRunning)));
}
