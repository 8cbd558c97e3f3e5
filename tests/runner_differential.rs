//! The same scenarios for Python's `asyncio.Runner` (`runner_differential.py`) and for this one,
//! each in a process of its own on its main thread; their traces must be equal, but for the
//! differences that are listed here with their reason.

#[macro_use]
mod runner_support;

use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use runner_support::{Child, findings, say};
use runward::runner::{
    self, Cancelled, Context, ContextVar, Exit, RunError, Runner, Scope, ScopeError, generator,
};

/// Scenario, Python's line, this library's line, why.
const DIFFERENCES: &[(&str, &str, &str, &str)] = &[(
    "second_interrupt_in_a_tight_loop",
    "value again",
    "closed",
    "Python can raise KeyboardInterrupt inside of the loop; a Rust thread cannot be stopped from outside, so it is \
     abandoned and the Runner that it belonged to is closed",
)];

const MISSING: &str =
    "python3, version 3.11 or later, is needed to compare with: install the package python3";

fn main() -> ExitCode {
    let trials = trials![
        return_,
        raise,
        cancel_during_sleep,
        swallow,
        interrupt_and_cancel,
        error_in_clean_up,
        second_interrupt_in_a_tight_loop,
        left_over_tasks,
        generator_left_open,
        nested_run,
        use_after_close,
        context_across_runs,
        debug_slow_task,
    ];
    runner_support::main(trials, scenario)
}

macro_rules! compared {
    ($($name:ident),* $(,)?) => { $(fn $name() { compare(stringify!($name).trim_end_matches('_')); })* };
}

compared![
    return_,
    raise,
    cancel_during_sleep,
    swallow,
    interrupt_and_cancel,
    error_in_clean_up,
    second_interrupt_in_a_tight_loop,
    left_over_tasks,
    generator_left_open,
    nested_run,
    use_after_close,
    context_across_runs,
    debug_slow_task,
];

fn compare(name: &str) {
    let supported = Command::new("python3")
        .args(["-c", "import sys; sys.exit(sys.version_info < (3, 11))"])
        .status()
        .is_ok_and(|status| status.success());
    assert!(supported, "{MISSING}");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/runner_differential.py");
    let python = Command::new("python3").args([script, name]).stderr(Stdio::null()).output().expect(MISSING);
    let python: Vec<_> = String::from_utf8(python.stdout).unwrap().lines().map(str::to_owned).collect();
    let (end, ours) = Child::start(name).ends();
    assert_eq!(end, Ok(0));
    assert!(!python.is_empty());
    let mut expected = python.clone();
    for (_, theirs, differs, why) in DIFFERENCES.iter().filter(|difference| difference.0 == name) {
        let line = expected.iter_mut().find(|line| line == theirs);
        *line.unwrap_or_else(|| panic!("a listed difference is none any more: {why}")) =
            (*differs).to_owned();
    }
    assert_eq!(ours, expected, "Python: {python:?}");
}

type Error = Box<dyn std::error::Error + Send + Sync>;

fn ended<T: std::fmt::Display>(end: Result<T, RunError>) {
    match end {
        Ok(value) => say(format!("value {value}")),
        Err(RunError::Interrupted) => say("interrupted"),
        Err(RunError::Cancelled(_)) => say("cancelled"),
        Err(RunError::Closed) => say("closed"),
        Err(RunError::LoopRunning) => say("loop running"),
        Err(error) => say(format!("unexpected {error}")),
    }
}

/// asyncio raises the main task's error out of `run`; here it is the value.
fn ended_scoped<T: std::fmt::Display, E: std::fmt::Display>(end: Result<Result<T, E>, RunError>) {
    match end {
        Ok(Err(error)) => say(format!("error {error}")),
        Ok(Ok(value)) => ended(Ok(value)),
        Err(error) => ended(Err::<T, _>(error)),
    }
}

fn interrupt_when(condition: impl Fn() -> bool + Send + 'static) {
    std::thread::spawn(move || {
        while !condition() {
            std::thread::yield_now();
        }
        nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::SIGINT).unwrap();
    });
}

/// Runs `body`, and interrupts it once it waits.
fn waiting<B, F, E>(body: B)
where
    B: FnOnce(Scope, Mark) -> F + Send + 'static,
    F: Future<Output = Result<&'static str, E>> + Send + 'static,
    E: ScopeError + Send + 'static,
{
    let mark = Mark::default();
    let waits = mark.0.clone();
    interrupt_when(move || waits.load(SeqCst));
    let mut runner = Runner::new();
    ended_scoped(runner.run_scoped(|scope| body(scope, mark)));
    ended(runner.run(async { "again" }));
}

#[derive(Default)]
struct Mark(Arc<AtomicBool>);

impl Mark {
    fn set(&self) {
        self.0.store(true, SeqCst);
    }
}

const LONG: Duration = Duration::from_secs(3600);
const SHORT: Duration = Duration::from_millis(1);

fn scenario(name: &str) {
    match name {
        "return" => ended(runner::run(async {
            tokio::task::yield_now().await;
            42
        })),
        "raise" => ended_scoped(runner::run(async {
            tokio::task::yield_now().await;
            Err::<u8, Error>("spam".into())
        })),
        "cancel_during_sleep" => waiting(|scope, mark| async move {
            mark.set();
            let slept = scope.sleep(LONG).await;
            say("told");
            scope.sleep(SHORT).await?;
            say("cleaned up");
            slept.map(|()| "slept")
        }),
        "swallow" => waiting(|scope, mark| async move {
            mark.set();
            if scope.sleep(LONG).await.is_err() {
                say("told");
            }
            Ok::<_, Cancelled>("swallowed")
        }),
        "interrupt_and_cancel" => waiting(|scope, mark| async move {
            mark.set();
            let slept = scope.sleep(LONG).await;
            scope.task().cancel(None);
            slept.map(|()| "slept")
        }),
        "error_in_clean_up" => waiting(|scope, mark| async move {
            mark.set();
            drop(scope.sleep(LONG).await);
            Err::<_, Error>("clean-up".into())
        }),
        "second_interrupt_in_a_tight_loop" => waiting(|scope, mark| async move {
            mark.set();
            while scope.task().cancelling() == 0 {}
            say("first");
            interrupt_when(|| true);
            loop {
                std::hint::spin_loop();
            }
            #[expect(unreachable_code, reason = "gives the body its type")]
            Ok::<_, Cancelled>("left")
        }),
        "left_over_tasks" => leave_tasks(),
        "generator_left_open" => {
            let mut runner = Runner::new();
            let kept = runner.run(async {
                let mut numbers = generator(|y| async move {
                    let exit = y.yield_(1).await;
                    say("generator told");
                    tokio::time::sleep(SHORT).await;
                    say("generator cleaned up");
                    exit as Result<(), Exit>
                });
                say(format!("value {}", numbers.next().await.unwrap().unwrap()));
                numbers
            });
            say("closing");
            runner.close();
            say("closed");
            drop(kept);
        }
        "nested_run" => ended(runner::run(async {
            ended(runner::run(async { "inner" }));
            "outer"
        })),
        "use_after_close" => {
            let mut runner = Runner::new();
            runner.close();
            say("closed unused");
            ended(runner.run(async { "again" }));
            runner.close();
            runner.close();
            ended(runner.run(async { "again" }));
            ended(runner.get_loop().map(|_| "a loop"));
        }
        "context_across_runs" => keep_context(),
        "debug_slow_task" => {
            for debug in [true, false] {
                let mut runner = Runner::builder().debug(debug).build();
                runner.get_loop().unwrap().set_slow_poll(Duration::from_millis(50));
                let done = runner.run(async {
                    let began = Instant::now();
                    while began.elapsed() < Duration::from_millis(60) {}
                    "done"
                });
                if debug {
                    findings("slow poll").iter().for_each(|_| say("slow"));
                }
                ended(done);
            }
            assert_eq!(findings("slow poll").len(), 1);
        }
        _ => panic!("no scenario {name:?}"),
    }
}

fn leave_tasks() {
    let mut runner = Runner::new();
    ended_scoped(runner.run_scoped(|scope| async move {
        scope.event_loop().set_exception_handler(|context| say(format!("handler {}", context.exception)));
        let task = scope.spawn_scoped(|scope| async move {
            drop(scope.sleep(LONG).await);
            say("left over told");
            scope.sleep(SHORT).await?;
            say("left over cleaned up");
            Err::<(), Error>("left over".into())
        });
        scope.checkpoint().await?;
        scope.checkpoint().await?;
        say("main returns");
        Ok::<_, Cancelled>(task.is_done())
    }));
    say("closing");
    runner.close();
    say("closed");
}

fn keep_context() {
    static VAR: ContextVar<i32> = ContextVar::with_default("var", 0);
    let main = |value: i32| async move {
        let old = VAR.get().unwrap();
        VAR.set(value);
        let event_loop = runner::current_task().unwrap().event_loop();
        let child = event_loop.spawn(async {
            VAR.set(VAR.get().unwrap() + 100);
            VAR.get().unwrap()
        });
        say(format!("child {}", child.await.unwrap()));
        old
    };
    let mut runner = Runner::new();
    ended(runner.run(main(1)));
    ended(runner.run(main(2)));
    let other = Context::new();
    ended(runner.run_in(other.clone(), main(3)));
    say(format!("other {}", other.get(&VAR).unwrap()));
    ended(runner.run(main(4)));
    drop(runner);
    say(format!("outside {}", VAR.get().unwrap()));
}
