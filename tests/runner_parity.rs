//! One test for each test of CPython's `Lib/test/test_asyncio/test_runners.py` (3.11 to 3.14), with
//! its name. Those that need a Ctrl-C get a real one, in a process of their own.

#[macro_use]
mod runner_support;

use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::signal::Signal;
use runner_support::{Child, Dropped, findings, say, wait_for_parent};
use runward::runner::{
    self, Cancelled, ContextVar, Exit, LoopFactory, RunError, Runner, Scope, copy_context, generator,
};

type Error = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    let trials = trials![
        // RunTests
        asyncio_run_return,
        asyncio_run_raises,
        asyncio_run_only_coro,
        asyncio_run_debug,
        asyncio_run_from_running_loop,
        asyncio_run_cancels_hanging_tasks,
        asyncio_run_reports_hanging_tasks_errors,
        asyncio_run_closes_gens_after_hanging_tasks_errors,
        asyncio_run_loop_factory,
        asyncio_run_no_repr_on_result,
        // RunnerTests
        non_debug,
        debug,
        custom_factory,
        run,
        run_non_coro,
        run_future,
        explicit_close,
        double_close,
        second_with_block_raises,
        run_keeps_context,
        recursive_run,
        interrupt_call_soon,
        interrupt_wait,
        interrupt_cancelled_task,
        signal_install_not_supported_ok,
        set_event_loop_called_once,
    ];
    runner_support::main(trials, scenario)
}

/// What runs in a process of its own, on its main thread.
fn scenario(name: &str) {
    match name {
        "debug" => say(runner::run(async { runward::runner::current_task().is_some() }).unwrap() && {
            Runner::new().get_loop().unwrap().debug()
        }),
        "debug off" => say(Runner::builder().debug(false).build().get_loop().unwrap().debug()),
        "call soon" => {
            let ended = Runner::new().run_scoped(|scope| async move {
                say("ready");
                while scope.checkpoint().await.is_ok() {}
                Err::<(), _>(Cancelled::new(None))
            });
            say(matches!(ended, Err(RunError::Interrupted)));
        }
        "wait" => {
            let dropped = Arc::new(AtomicUsize::new(0));
            let future = Dropped(dropped.clone());
            let ended = Runner::new().run_scoped(|scope| async move {
                let future = async move {
                    let _future = future;
                    say("ready");
                    std::future::pending::<()>().await;
                };
                let cancelled = scope.cancellable(future).await;
                say(cancelled.is_err());
                cancelled
            });
            say(matches!(ended, Err(RunError::Interrupted)));
            say(dropped.load(Ordering::SeqCst));
        }
        "cancelled task" => {
            let ended = Runner::new().run_scoped(|scope| async move {
                scope.task().cancel(None);
                let cancelled = scope.checkpoint().await;
                say("ready");
                // Until the interrupt has been counted, whoever hears of it.
                while scope.task().cancelling() < 2 {
                    tokio::task::yield_now().await;
                }
                cancelled
            });
            say(matches!(ended, Err(RunError::Cancelled(_))));
        }
        "no signals" => {
            let mut runner = Runner::new();
            runner.get_loop().unwrap();
            // Without a descriptor left the handler cannot be installed.
            let mut taken = Vec::new();
            while let Ok(file) = std::fs::File::open("/dev/null") {
                taken.push(file);
            }
            let ended = runner.run(async { 42 });
            drop(taken);
            say(ended.unwrap());
            say("ready");
            wait_for_parent();
        }
        _ => panic!("no scenario {name:?}"),
    }
}

fn asyncio_run_return() {
    let main = async {
        tokio::task::yield_now().await;
        42
    };
    assert_eq!(runner::run(main).unwrap(), 42);
}

fn asyncio_run_raises() {
    let main = async {
        tokio::task::yield_now().await;
        Err::<(), Error>("spam".into())
    };
    assert_eq!(runner::run(main).unwrap().unwrap_err().to_string(), "spam");
}

/// That `run(1)` does not compile is shown by a `compile_fail` test in the documentation of
/// `Runner`; here, that neither of the objects CPython tries is a future.
fn asyncio_run_only_coro() {
    trait NoFuture {
        fn is_future(&self) -> bool {
            false
        }
    }
    impl<T> NoFuture for &T {}
    struct Probe<T>(T);
    impl<T: Future> Probe<T> {
        fn is_future(&self) -> bool {
            let Probe(_) = self;
            true
        }
    }
    assert!(Probe(async {}).is_future());
    assert!(!(&Probe(1)).is_future());
    assert!(!(&Probe(|| ())).is_future());
}

fn asyncio_run_debug() {
    assert!(!runner::run(debug_of_the_loop()).unwrap());
    assert!(Runner::builder().debug(true).build().run(debug_of_the_loop()).unwrap());
    // With the global debug mode on: a process with the variable set.
    for (scenario, expected) in [("debug", "true"), ("debug off", "false")] {
        let mut command = Child::command(scenario);
        command.env("RUNWARD_DEBUG", "1");
        assert_eq!(Child::spawn(command).ends(), (Ok(0), vec![expected.to_owned()]));
    }
}

async fn debug_of_the_loop() -> bool {
    runward::runner::current_task().unwrap().event_loop().debug()
}

fn asyncio_run_from_running_loop() {
    let nested = runner::run(async { runner::run(async {}) }).unwrap();
    assert!(nested.unwrap_err().to_string().contains("cannot run from a running event loop"));
}

fn asyncio_run_cancels_hanging_tasks() {
    let value = run_scoped(|scope| async move {
        let left_over = scope.spawn(tokio::time::sleep(Duration::from_secs(3600)));
        Ok::<_, Cancelled>((123, left_over.handle()))
    });
    let (value, left_over) = value.unwrap().unwrap();
    assert_eq!(value, 123);
    assert!(left_over.is_done() && left_over.is_cancelled());
}

fn run_scoped<F, Fut, T, E>(main: F) -> Result<Result<T, E>, RunError>
where
    F: FnOnce(Scope) -> Fut + Send + 'static,
    Fut: Future<Output = Result<T, E>> + Send + 'static,
    T: Send + 'static,
    E: runward::runner::ScopeError + Send + 'static,
{
    Runner::new().run_scoped(main)
}

fn asyncio_run_reports_hanging_tasks_errors() {
    let reported = Arc::new(Mutex::new(Vec::new()));
    let log = reported.clone();
    let value = run_scoped(|scope| async move {
        scope.event_loop().set_exception_handler(move |context| log.lock().unwrap().push(context.clone()));
        let left_over = scope.spawn_scoped(|scope| async move {
            match scope.sleep(Duration::from_secs(3600)).await {
                Err(Cancelled { .. }) => Err::<(), Error>("division by zero".into()),
                Ok(()) => Ok(()),
            }
        });
        while left_over.info().polls == 0 {
            scope.checkpoint().await?;
        }
        Ok::<_, Error>((123, left_over.handle()))
    });
    let (value, left_over) = value.unwrap().unwrap();
    assert_eq!(value, 123);
    assert!(left_over.is_done());
    let reported = reported.lock().unwrap();
    assert_eq!(reported.len(), 1);
    assert!(reported[0].message.contains("close of a Runner"));
    assert_eq!(reported[0].exception, "division by zero");
    assert_eq!(reported[0].task.as_ref().unwrap().name(), left_over.name());
}

fn asyncio_run_closes_gens_after_hanging_tasks_errors() {
    let generator_ended = Arc::new(AtomicUsize::new(0));
    let guard = Dropped(generator_ended.clone());
    let ended = run_scoped(|scope| async move {
        scope.event_loop().set_exception_handler(|_| {});
        let lazyboy = scope.spawn_scoped(|scope| async move {
            let mut spinner = generator(move |y| async move {
                let _guard = guard;
                loop {
                    y.yield_(1).await?;
                    tokio::time::sleep(Duration::from_secs(3600)).await;
                }
                #[expect(unreachable_code, reason = "gives the body its type")]
                Ok::<(), Exit>(())
            });
            while scope.cancellable(spinner.next()).await.is_ok() {}
            Err::<(), Error>("division by zero".into())
        });
        while lazyboy.info().polls == 0 {
            scope.checkpoint().await?;
        }
        Err::<(), Error>("fancy exit".into())
    });
    assert_eq!(ended.unwrap().unwrap_err().to_string(), "fancy exit");
    assert_eq!(generator_ended.load(Ordering::SeqCst), 1);
}

fn counting_factory(calls: &Arc<AtomicUsize>) -> LoopFactory {
    let calls = calls.clone();
    LoopFactory::from_fn(move || {
        calls.fetch_add(1, Ordering::SeqCst);
        tokio::runtime::Builder::new_current_thread().enable_all().build()
    })
}

fn asyncio_run_loop_factory() {
    let calls = Arc::new(AtomicUsize::new(0));
    let mut runner = Runner::builder().loop_factory(counting_factory(&calls)).build();
    assert_eq!(runner.run(async { 42 }).unwrap(), 42);
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

fn asyncio_run_no_repr_on_result() {
    struct Silent;
    let Silent = runner::run(async { Silent }).unwrap_or_else(|error| panic!("{error}"));
}

fn non_debug() {
    assert!(!Runner::builder().debug(false).build().get_loop().unwrap().debug());
}

fn debug() {
    assert!(Runner::builder().debug(true).build().get_loop().unwrap().debug());
}

fn custom_factory() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let id = runtime.handle().id();
    let mut made = Some(runtime);
    let factory = LoopFactory::from_fn(move || Ok(made.take().expect("called once")));
    let mut runner = Runner::builder().loop_factory(factory).build();
    assert_eq!(runner.get_loop().unwrap().runtime().id(), id);
}

fn run() {
    let mut runner = Runner::new();
    let main = async {
        tokio::task::yield_now().await;
        "done"
    };
    assert_eq!(runner.run(main).unwrap(), "done");
    let event_loop = runner.get_loop().unwrap();
    runner.close();
    assert_eq!(runner.get_loop().unwrap_err().to_string(), "Runner is closed");
    assert!(event_loop.is_closed());
}

/// See [`asyncio_run_only_coro`]: the type system refuses it. The Runner of the refused call in the
/// `compile_fail` test would be the same method as here.
fn run_non_coro() {
    asyncio_run_only_coro();
}

/// Python 3.14 takes any awaitable, and so does this.
fn run_future() {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    sender.send(42).unwrap();
    assert_eq!(Runner::new().run(receiver).unwrap(), Ok(42));
}

fn explicit_close() {
    let mut runner = Runner::new();
    let event_loop = runner.get_loop().unwrap();
    runner.close();
    assert!(matches!(runner.get_loop(), Err(RunError::Closed)));
    assert!(event_loop.is_closed());
}

fn double_close() {
    let mut runner = Runner::new();
    let event_loop = runner.get_loop().unwrap();
    let first = runner.close();
    assert!(event_loop.is_closed());
    assert_eq!(runner.close(), first);
    assert!(event_loop.is_closed());
}

/// A closed Runner is what a second `with` would enter.
fn second_with_block_raises() {
    let mut runner = Runner::new();
    let ran = Arc::new(Mutex::new(Vec::new()));
    let push = |n: i32| {
        let ran = ran.clone();
        async move { ran.lock().unwrap().push(n) }
    };
    runner.run(push(1)).unwrap();
    runner.close();
    assert!(matches!(runner.run(push(2)), Err(RunError::Closed)));
    assert_eq!(*ran.lock().unwrap(), [1]);
}

fn run_keeps_context() {
    static CVAR: ContextVar<i32> = ContextVar::with_default("cvar", -1);
    async fn f(value: i32) -> Option<i32> {
        let old = CVAR.get();
        tokio::task::yield_now().await;
        CVAR.set(value);
        old
    }
    let mut runner = Runner::new();
    assert_eq!(runner.run(f(1)).unwrap(), Some(-1));
    assert_eq!(runner.run(f(2)).unwrap(), Some(1));
    assert_eq!(runner.run(async { copy_context() }).unwrap().get(&CVAR), Some(2));
}

fn recursive_run() {
    let mut runner = Runner::new();
    let line = Arc::new(AtomicUsize::new(0));
    let at = line.clone();
    let nested = runner.run(async move {
        at.store(line!() as usize + 1, Ordering::SeqCst);
        Runner::new().run(async {})
    });
    assert!(matches!(nested.unwrap(), Err(RunError::LoopRunning)));
    let place = format!("{}:{}:", file!(), line.load(Ordering::SeqCst));
    let warned = findings(&place);
    assert_eq!(warned.len(), 1, "{warned:?}");
    assert!(warned[0].contains("never ran") && warned[0].starts_with("WARN"));
}

fn interrupt_call_soon() {
    let mut child = Child::start("call soon");
    child.says("ready").send(Signal::SIGINT);
    assert_eq!(child.ends(), (Ok(0), vec!["ready".into(), "true".into()]));
}

fn interrupt_wait() {
    let mut child = Child::start("wait");
    child.says("ready").sleeps().send(Signal::SIGINT);
    let said = ["ready", "true", "true", "1"].map(String::from).to_vec();
    assert_eq!(child.ends(), (Ok(0), said));
}

fn interrupt_cancelled_task() {
    let mut child = Child::start("cancelled task");
    child.says("ready").send(Signal::SIGINT);
    assert_eq!(child.ends(), (Ok(0), vec!["ready".into(), "true".into()]));
}

fn signal_install_not_supported_ok() {
    let mut child = Child::start("no signals");
    child.says("42").says("ready").send(Signal::SIGINT);
    assert_eq!(child.ends().0, Err(Signal::SIGINT), "the disposition is untouched");
}

fn set_event_loop_called_once() {
    let calls = Arc::new(AtomicUsize::new(0));
    let mut runner = Runner::builder().loop_factory(counting_factory(&calls)).build();
    for _ in 0..3 {
        runner.run(async {}).unwrap();
    }
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}
