//! Threads on which a loop runs while its Runner runs. They are kept for the next run, for making
//! one costs more than all the rest of a Runner.

use std::io;
use std::sync::mpsc;
use std::task::{Context, Poll, Wake};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use super::sync::{Arc, Mutex, lock};

/// Gives back how to tell its end.
type Job = Box<dyn FnOnce() -> Told + Send>;
type Told = Box<dyn FnOnce()>;

static IDLE: Mutex<Vec<mpsc::Sender<Job>>> = Mutex::new(Vec::new());

/// Programs run one Runner at a time, or a few; more threads than this are not worth keeping.
const KEPT: usize = 4;

/// Calls `job` on a loop thread. It must not panic. A thread that it holds for ever is lost, and
/// the next run gets another one.
pub(crate) fn call(job: Job) -> io::Result<()> {
    let mut job = job;
    // The lock is let go before anything is done with the thread.
    while let Some(thread) = { lock(&IDLE).pop() } {
        match thread.send(job) {
            Ok(()) => return Ok(()),
            Err(mpsc::SendError(refused)) => job = refused,
        }
    }
    thread::Builder::new().name("runward-loop".into()).spawn(move || {
        let (sender, jobs) = mpsc::channel::<Job>();
        let mut next = Some(job);
        while let Some(job) = next {
            let tell = job();
            // Idle first: who is told may run again at once, and shall find this thread.
            let kept = keep(&sender);
            tell();
            next = if kept { jobs.recv().ok() } else { None };
        }
    })?;
    Ok(())
}

fn keep(thread: &mpsc::Sender<Job>) -> bool {
    let mut idle = lock(&IDLE);
    let keep = idle.len() < KEPT;
    if keep {
        idle.push(thread.clone());
    }
    keep
}

/// Awaits `future` in this thread without a loop; none when the time is up.
pub(crate) fn wait<F: Future + Unpin>(mut future: F, limit: Option<Duration>) -> Option<F::Output> {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Arc::new(Unpark(thread::current())).into();
    let began = Instant::now();
    loop {
        if let Poll::Ready(value) = std::pin::Pin::new(&mut future).poll(&mut Context::from_waker(&waker)) {
            return Some(value);
        }
        match limit.map(|limit| limit.saturating_sub(began.elapsed())) {
            None => thread::park(),
            Some(Duration::ZERO) => return None,
            Some(left) => thread::park_timeout(left),
        }
    }
}
