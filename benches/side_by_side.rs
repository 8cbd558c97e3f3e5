//! The goals of the Runner, measured against bare tokio and Python's `asyncio.Runner` in one run:
//! `cargo bench --bench side_by_side --no-default-features`.
//!
//! The three take turns in small batches, so that what else the machine does hits all of them, and
//! the medians are compared. It runs on the main thread, where a Runner takes SIGINT.

use std::hint::black_box;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use runward::runner::{Cancelled, LoopFactory, Runner};
use tokio::runtime::Runtime;

const ROUNDS: usize = 31;

#[derive(Clone, Copy)]
enum Flavour {
    /// The default of a Runner. tokio's flavour with the loop in another thread is the second one.
    LoopThread,
    CurrentThread,
    MultiThread1,
}

fn runner(flavour: Flavour) -> Runner {
    let factory = match flavour {
        Flavour::LoopThread => return Runner::new(),
        Flavour::CurrentThread => LoopFactory::current_thread(),
        Flavour::MultiThread1 => LoopFactory::multi_thread(1),
    };
    Runner::builder().loop_factory(factory).build()
}

fn bare(flavour: Flavour) -> Runtime {
    match flavour {
        Flavour::CurrentThread => tokio::runtime::Builder::new_current_thread(),
        Flavour::LoopThread | Flavour::MultiThread1 => tokio::runtime::Builder::new_multi_thread(),
    }
    .worker_threads(1)
    .enable_all()
    .build()
    .unwrap()
}

fn each(times: u32, mut work: impl FnMut()) -> Duration {
    let began = Instant::now();
    (0..times).for_each(|_| work());
    began.elapsed() / times
}

fn median(mut samples: Vec<Duration>) -> Duration {
    samples.sort();
    samples[samples.len() / 2]
}

/// Python, asked for one sample at a time.
struct Python {
    process: Child,
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Python {
    fn start() -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/side_by_side.py");
        let mut process = Command::new("python3")
            .arg(script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3, 3.11 or later, is needed to compare with");
        let ask = process.stdin.take().unwrap();
        let answers = BufReader::new(process.stdout.take().unwrap());
        Python { process, ask, answers }
    }

    fn measure(&mut self, what: &str) -> Duration {
        writeln!(self.ask, "{what}").unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        Duration::from_secs_f64(line.trim().parse().expect("python3 3.11 or later"))
    }
}

fn compare(
    what: &str,
    against: &str,
    goal: f64,
    mut runward: impl FnMut() -> Duration,
    mut tokio: impl FnMut() -> Option<Duration>,
    python: &mut Python,
) {
    let (mut ours, mut bare, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        ours.push(runward());
        bare.extend(tokio());
        theirs.push(python.measure(what));
    }
    let (ours, theirs) = (median(ours), median(theirs));
    print!(
        "{what:20} {against:14} runward {ours:>9.1?}   python {theirs:>9.1?} ({:.1}x)",
        theirs.div_duration_f64(ours)
    );
    if bare.is_empty() {
        println!();
    } else {
        let bare = median(bare);
        let ratio = ours.div_duration_f64(bare);
        println!("   tokio {bare:>9.1?}: ratio {ratio:.2}, goal {goal}");
    }
}

/// From the kill in another thread to the `Err(Cancelled)` in the main task.
fn signal_to_cancelled() -> Duration {
    let ended = Runner::new().run_scoped(|scope| async move {
        let main = scope.task();
        let sender = std::thread::spawn(move || {
            while main.info().state != runward::runner::TaskState::Waiting {
                std::thread::yield_now();
            }
            // Until the loop sleeps.
            std::thread::sleep(Duration::from_millis(5));
            let sent = Instant::now();
            nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::SIGINT).unwrap();
            sent
        });
        let cancelled = scope.cancellable(std::future::pending::<()>()).await;
        let heard = Instant::now();
        assert!(cancelled.is_err());
        Ok::<_, Cancelled>(heard - sender.join().unwrap())
    });
    ended.unwrap().unwrap()
}

fn main() {
    let mut python = Python::start();
    for (flavour, name) in [
        (Flavour::LoopThread, "loop thread"),
        (Flavour::CurrentThread, "current-thread"),
        (Flavour::MultiThread1, "multi-thread 1"),
    ] {
        compare(
            "new+run+close",
            name,
            1.3,
            || {
                each(50, || {
                    let mut runner = runner(flavour);
                    black_box(runner.run(async { black_box(42) }).unwrap());
                    runner.close();
                })
            },
            || {
                Some(each(50, || {
                    let runtime = bare(flavour);
                    black_box(runtime.block_on(runtime.spawn(async { black_box(42) })).unwrap());
                }))
            },
            &mut python,
        );
        let (mut open, runtime) = (runner(flavour), bare(flavour));
        compare(
            "run on an open one",
            name,
            2.0,
            || each(500, || drop(black_box(open.run(async { black_box(42) })))),
            || Some(each(500, || drop(black_box(runtime.block_on(runtime.spawn(async { black_box(42) })))))),
            &mut python,
        );
    }
    compare("signal to Cancelled", "loop thread", 1.0, signal_to_cancelled, || None, &mut python);
    drop(python.ask);
    python.process.wait().unwrap();
}
