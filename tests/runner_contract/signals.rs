//! Rows 15 to 17, 20, 24, 25, 30, 31: real processes that get real signals.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use nix::sys::signal::Signal::{self, SIGINT, SIGTERM, SIGUSR1};
use nix::sys::signal::kill;
use nix::unistd::Pid;
use runward::runner::{Cancelled, LoopFactory, RunError, Runner, Scope};

use crate::runner_support::{Child, say, wait_for_parent};

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        an_interrupt_cancels_while_the_loop_sleeps,
        an_interrupt_drops_a_plain_main_task,
        a_swallowed_interrupt_gives_the_value,
        the_second_interrupt_leaves_a_tight_loop,
        the_second_interrupt_leaves_a_hanging_clean_up,
        on_the_calling_thread_one_more_interrupt_ends_the_process,
        after_run_an_interrupt_kills_again,
        between_runs_an_interrupt_kills,
        an_interrupt_during_close_kills,
        an_interrupt_during_the_drain_kills,
        an_interrupt_after_the_main_task_is_not_lost,
        each_run_takes_the_signal_again,
        an_ignored_signal_stays_ignored,
        a_handler_of_the_program_stays,
        another_thread_takes_no_signals,
        no_signals_means_none,
        other_signals_can_be_taken,
        the_handler_is_there_before_user_code,
    ]
}

async fn forever(scope: Scope) -> Result<(), Cancelled> {
    say("ready");
    let cancelled = scope.cancellable(std::future::pending::<()>()).await;
    say("cancelled");
    scope.sleep(Duration::from_millis(1)).await?;
    say("cleaned up");
    cancelled
}

fn tight() -> ! {
    let main = runward::runner::current_task().unwrap();
    say("ready");
    while main.cancelling() == 0 {
        std::hint::spin_loop();
    }
    say("first");
    loop {
        std::hint::spin_loop();
    }
}

fn end<T>(ended: Result<T, RunError>) -> &'static str {
    match ended {
        Ok(_) => "value",
        Err(RunError::Interrupted) => "interrupted",
        Err(RunError::Cancelled(_)) => "cancelled by somebody",
        Err(_) => "other",
    }
}

/// A thread interrupts when it sees that the main task is done, while `run` is about to return.
fn after_the_main_task(mut runner: Runner) {
    let ended = runner.run(async {
        let main = runward::runner::current_task().unwrap();
        let (watching, watches) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            watching.send(()).unwrap();
            while !main.is_done() {
                std::hint::spin_loop();
            }
            kill(Pid::this(), SIGINT).unwrap();
        });
        watches.recv().unwrap();
    });
    match end(ended) {
        // It came too late for the run, so it ends the process.
        "value" => {
            let (_never, nothing) = std::sync::mpsc::channel::<()>();
            say(nothing.recv_timeout(Duration::from_secs(20)).map_or("lost", |()| "never"));
        }
        other => say(other),
    }
}

/// After this only a signal ends the process, or the parent.
fn linger() {
    say("over");
    wait_for_parent();
}

pub(crate) fn scenario(name: &str) -> bool {
    match name {
        "scoped" => say(end(Runner::new().run_scoped(forever))),
        "scoped here" => {
            let factory = LoopFactory::current_thread();
            say(end(Runner::builder().loop_factory(factory).build().run_scoped(forever)));
        }
        "plain" => {
            struct Told;
            impl Drop for Told {
                fn drop(&mut self) {
                    say("dropped");
                }
            }
            let main = async {
                let _told = Told;
                say("ready");
                std::future::pending::<()>().await;
            };
            say(end(Runner::new().run(main)));
        }
        "swallow" => {
            let main = |scope| async move { forever(scope).await.or(Ok::<_, Cancelled>(())) };
            say(end(Runner::new().run_scoped(main)));
        }
        "tight" => {
            let mut runner = Runner::builder().name("the stuck one").build();
            say(end(runner.run(async { tight() })));
            say(matches!(runner.run(async {}), Err(RunError::Closed)));
            say(runner.close().tasks_abandoned.join(","));
            linger();
        }
        "tight here" => say(end(Runner::new().run_local(async { tight() }))),
        "hanging clean-up" => {
            let mut runner = Runner::new();
            let ended = runner.run_scoped(|scope| async move {
                drop(forever(scope.clone()).await);
                std::future::pending::<Result<(), Cancelled>>().await
            });
            say(end(ended));
            say(runner.run(async { "goes on" }).unwrap());
            say(runner.close().is_clean());
        }
        "after run" => {
            say(end(Runner::new().run(async {})));
            linger();
        }
        "between runs" => {
            let mut runner = Runner::new();
            say(end(runner.run(async {})));
            linger();
        }
        "during close" => {
            let mut runner = Runner::new();
            let value = runner.run_scoped(|scope| async move {
                let left_over = scope.spawn_scoped(|scope| async move {
                    let cancelled = scope.cancellable(std::future::pending::<()>()).await;
                    say("ready");
                    // As long as the parent wants: a signal that does not kill shall fail, not hang.
                    drop(tokio::task::spawn_blocking(wait_for_parent).await);
                    cancelled
                });
                while left_over.info().polls == 0 {
                    scope.checkpoint().await?;
                }
                Ok::<_, Cancelled>(())
            });
            say(end(value));
            runner.close();
        }
        "during the drain" => {
            struct Closing;
            impl Drop for Closing {
                fn drop(&mut self) {
                    say("closing");
                }
            }
            let value = Runner::new().run_scoped(|scope| async move {
                drop(scope.spawn_blocking(wait_for_parent));
                let closing = Closing;
                let left_over = scope.spawn(async move {
                    let _closing = closing;
                    std::future::pending::<()>().await;
                });
                while left_over.info().polls == 0 {
                    scope.checkpoint().await?;
                }
                say("main is done");
                Ok::<_, Cancelled>(())
            });
            say(end(value));
        }
        "done" => after_the_main_task(Runner::new()),
        "done on a worker" => {
            let factory = LoopFactory::multi_thread(1);
            after_the_main_task(Runner::builder().loop_factory(factory).build());
        }
        "twice" => {
            let mut runner = Runner::new();
            say(end(runner.run_scoped(forever)));
            say(end(runner.run_scoped(forever)));
            linger();
        }
        "until told" => {
            say(end(Runner::new().run(async {
                say("ready");
                tokio::task::spawn_blocking(wait_for_parent).await.unwrap();
            })));
        }
        "own handler" => {
            let came = Arc::new(AtomicBool::new(false));
            signal_hook::flag::register(signal_hook::consts::SIGINT, came.clone()).unwrap();
            say(end(Runner::new().run(async {
                say("ready");
                tokio::task::spawn_blocking(wait_for_parent).await.unwrap();
            })));
            while !came.load(SeqCst) {
                std::thread::yield_now();
            }
            say("it came");
        }
        "thread" => {
            let thread = std::thread::spawn(|| say(end(Runner::new().run_scoped(forever))));
            thread.join().unwrap();
        }
        "none" => say(end(Runner::builder().signals(&[]).build().run_scoped(forever))),
        "others" => {
            let signals = [SIGTERM as i32, SIGUSR1 as i32];
            say(end(Runner::builder().signals(&signals).build().run_scoped(forever)));
            say(end(Runner::builder().signals(&signals).build().run_scoped(forever)));
            linger();
        }
        "at once" => {
            let ended = Runner::new().run(async {
                // Delivered to this thread before the call returns.
                signal_hook::low_level::raise(SIGINT as i32).unwrap();
                std::future::pending::<()>().await;
            });
            say(end(ended));
        }
        _ => return false,
    }
    true
}

fn said(lines: &[&str]) -> Vec<String> {
    lines.iter().map(|line| (*line).to_owned()).collect()
}

/// Rows 17, 18, 20, on both kinds of loop; there is no timer anywhere.
fn an_interrupt_cancels_while_the_loop_sleeps() {
    for scenario in ["scoped", "scoped here"] {
        let mut child = Child::start(scenario);
        child.says("ready").sleeps().send(SIGINT);
        assert_eq!(child.ends(), (Ok(0), said(&["ready", "cancelled", "cleaned up", "interrupted"])));
    }
}

fn an_interrupt_drops_a_plain_main_task() {
    let mut child = Child::start("plain");
    child.says("ready").sleeps().send(SIGINT);
    assert_eq!(child.ends(), (Ok(0), said(&["ready", "dropped", "interrupted"])));
}

/// Row 21.
fn a_swallowed_interrupt_gives_the_value() {
    let mut child = Child::start("swallow");
    child.says("ready").send(SIGINT);
    assert_eq!(child.ends(), (Ok(0), said(&["ready", "cancelled", "cleaned up", "value"])));
}

/// Row 24, with its time: 100 ms from the second signal to the return of `run`.
fn the_second_interrupt_leaves_a_tight_loop() {
    let mut child = Child::start("tight");
    child.says("ready").send(SIGINT);
    // Two that come before the first is taken are one.
    child.says("first").send(SIGINT);
    let began = Instant::now();
    child.says("interrupted");
    let took = began.elapsed();
    assert!(took < Duration::from_millis(100), "{took:?}");
    child.says("true").says("the stuck one").says("over").send(SIGINT);
    assert_eq!(child.ends().0, Err(SIGINT), "and Ctrl-C does again what it did");
}

/// Row 24, where the main task can be dropped: then the Runner goes on.
fn the_second_interrupt_leaves_a_hanging_clean_up() {
    let mut child = Child::start("hanging clean-up");
    child.says("ready").send(SIGINT);
    child.says("cleaned up").send(SIGINT);
    let lines = said(&["ready", "cancelled", "cleaned up", "interrupted", "goes on", "true"]);
    assert_eq!(child.ends(), (Ok(0), lines));
}

/// The price of running in the calling thread.
fn on_the_calling_thread_one_more_interrupt_ends_the_process() {
    let mut child = Child::start("tight here");
    child.says("ready").send(SIGINT);
    child.says("first").send_until_it_ends(SIGINT);
    assert_eq!(child.ends(), (Err(SIGINT), said(&["ready", "first"])));
}

/// Row 15.
fn after_run_an_interrupt_kills_again() {
    let mut child = Child::start("after run");
    child.says("over").send(SIGINT);
    assert_eq!(child.ends(), (Err(SIGINT), said(&["value", "over"])));
}

fn between_runs_an_interrupt_kills() {
    let mut child = Child::start("between runs");
    child.says("over").send(SIGINT);
    assert_eq!(child.ends().0, Err(SIGINT));
}

/// As in asyncio, where the handler is gone before the close.
fn an_interrupt_during_close_kills() {
    let mut child = Child::start("during close");
    child.says("ready").send(SIGINT);
    assert_eq!(child.ends(), (Err(SIGINT), said(&["value", "ready"])));
}

/// Row 25: nothing holds it up, neither left-over tasks nor blocking work that does not end.
fn an_interrupt_during_the_drain_kills() {
    let mut child = Child::start("during the drain");
    child.says("main is done").says("closing").sleeps().send(SIGINT);
    assert_eq!(child.ends(), (Err(SIGINT), said(&["main is done", "closing"])));
}

/// Row 25, between the end of the main task and the return of `run`. No code of the user runs
/// there, so nothing can hold it open; one that comes a little later ends the process.
fn an_interrupt_after_the_main_task_is_not_lost() {
    for scenario in ["done", "done on a worker"] {
        let in_time = (0..500).find(|_| match Child::start(scenario).ends() {
            (Ok(0), lines) => {
                assert_eq!(lines, said(&["interrupted"]));
                true
            }
            (end, lines) => {
                assert_eq!((end, lines), (Err(SIGINT), vec![]));
                false
            }
        });
        assert!(in_time.is_some(), "{scenario}: none of the interrupts came before the return");
    }
}

/// Rows 15, 27.
fn each_run_takes_the_signal_again() {
    let mut child = Child::start("twice");
    child.says("ready").send(SIGINT);
    child.says("interrupted").says("ready").send(SIGINT);
    child.says("interrupted").says("over").send(SIGINT);
    assert_eq!(child.ends().0, Err(SIGINT));
}

/// Row 16.
fn an_ignored_signal_stays_ignored() {
    let child = Child::command("until told");
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", "trap '' INT; exec \"$@\"", "sh"]).arg(child.get_program()).args(child.get_args());
    let mut child = Child::spawn(shell);
    child.says("ready").send(SIGINT).go_on();
    assert_eq!(child.ends(), (Ok(0), said(&["ready", "value"])));
}

/// Row 16.
fn a_handler_of_the_program_stays() {
    let mut child = Child::start("own handler");
    child.says("ready").send(SIGINT).go_on();
    assert_eq!(child.ends(), (Ok(0), said(&["ready", "value", "it came"])));
}

/// Rows 16, 31.
fn another_thread_takes_no_signals() {
    let mut child = Child::start("thread");
    child.says("ready").send(SIGINT);
    assert_eq!(child.ends(), (Err(SIGINT), said(&["ready"])));
}

fn no_signals_means_none() {
    let mut child = Child::start("none");
    child.says("ready").send(SIGINT);
    assert_eq!(child.ends(), (Err(SIGINT), said(&["ready"])));
}

/// Row 30.
fn other_signals_can_be_taken() {
    for last in [SIGTERM, SIGUSR1, Signal::SIGINT] {
        let mut child = Child::start("others");
        child.says("ready").send(SIGTERM);
        child.says("interrupted").says("ready").send(SIGUSR1);
        child.says("interrupted").says("over").send(last);
        assert_eq!(child.ends().0, Err(last));
    }
}

/// Row 15.
fn the_handler_is_there_before_user_code() {
    assert_eq!(Child::start("at once").ends(), (Ok(0), said(&["interrupted"])));
}
