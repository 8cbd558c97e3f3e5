//! Where a Runner's blocking work runs: a bounded number of threads of the runtime's blocking pool,
//! with a queue in front.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::panic::{AssertUnwindSafe, Location, catch_unwind};
use std::pin::Pin;
use std::task::Poll;

use tokio::sync::oneshot;

use super::event_loop::Shared;
use super::sync::{Arc, Mutex, lock};
use super::{Cancelled, Panic, TaskError, current};

type Work = Box<dyn FnOnce() + Send>;

pub(crate) struct Executor {
    limit: u32,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Made with the first piece of work: most Runners have none.
    given: Option<Box<Given>>,
    shut: bool,
}

#[derive(Default)]
struct Given {
    next: u64,
    threads: u32,
    queue: VecDeque<Work>,
    /// Queued and running work, by number.
    names: BTreeMap<u64, Box<str>>,
}

impl Executor {
    pub(crate) fn new(limit: u32) -> Self {
        Executor { limit: limit.max(1), state: Mutex::default() }
    }

    pub(crate) fn len(&self) -> usize {
        lock(&self.state).given.as_ref().map_or(0, |given| given.names.len())
    }

    pub(crate) fn names(&self) -> Vec<String> {
        let state = lock(&self.state);
        state.given.iter().flat_map(|given| given.names.values()).map(|name| name.to_string()).collect()
    }

    /// What is still queued will never run.
    pub(crate) fn shut(&self) {
        let mut state = lock(&self.state);
        state.shut = true;
        let queue = state.given.as_mut().map(|given| std::mem::take(&mut given.queue));
        drop(state);
        drop(queue);
    }

    pub(crate) fn submit<T: Send + 'static>(
        event_loop: &Arc<Shared>,
        source: &'static Location<'static>,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Blocking<T> {
        let (sender, result) = oneshot::channel();
        let context = super::copy_context();
        let this = &event_loop.executor;
        let mut state = lock(&this.state);
        if state.shut {
            return Blocking { id: u64::MAX, event_loop: event_loop.clone(), result };
        }
        let given = state.given.get_or_insert_default();
        let id = given.next;
        given.next += 1;
        given.names.insert(id, format!("blocking work of {source}").into());
        let listed = Listed { id, event_loop: event_loop.clone() };
        let job: Work = Box::new(move || {
            let end = {
                let _entered = current::enter(None, context);
                let _may_run = current::allow_run();
                catch_unwind(AssertUnwindSafe(work))
                    .map_err(|payload| TaskError::Panicked(Panic::new(payload)))
            };
            drop(listed);
            // Whoever awaited it may be gone.
            drop(sender.send(end));
        });
        if given.threads < this.limit {
            given.threads += 1;
            drop(state);
            let event_loop = event_loop.clone();
            let runtime = event_loop.runtime.clone();
            drop(runtime.spawn_blocking(move || event_loop.executor.work(job)));
        } else {
            given.queue.push_back(job);
        }
        Blocking { id, event_loop: event_loop.clone(), result }
    }

    /// One thread's turn: the job it was started for, then what has queued up meanwhile.
    fn work(&self, first: Work) {
        let mut job = Some(first);
        while let Some(work) = job {
            work();
            let mut state = lock(&self.state);
            let given = state.given.get_or_insert_default();
            job = given.queue.pop_front();
            if job.is_none() {
                given.threads -= 1;
            }
        }
    }
}

/// Takes the work off the list when it has ended, and also when it was dropped unrun.
struct Listed {
    id: u64,
    event_loop: Arc<Shared>,
}

impl Drop for Listed {
    fn drop(&mut self) {
        let executor = &self.event_loop.executor;
        if let Some(given) = &mut lock(&executor.state).given {
            given.names.remove(&self.id);
        }
        self.event_loop.ended.notify_waiters();
    }
}

/// Blocking work that was given to the executor. Awaiting it gives its result; dropping it lets the
/// work go on: a thread cannot be stopped from outside.
///
/// Cancel safe: awaiting `&mut work` and giving up loses nothing.
///
/// ```
/// use runward::runner::{Runner, TaskError};
///
/// let sum = Runner::new().run_scoped(|scope| async move {
///     let sum = scope.spawn_blocking(|| (1..=10).sum::<u32>()).with_name("sum").await?;
///     Ok::<_, TaskError>(sum)
/// });
/// assert_eq!(sum.unwrap().unwrap(), 55);
/// ```
pub struct Blocking<T> {
    id: u64,
    event_loop: Arc<Shared>,
    result: oneshot::Receiver<Result<T, TaskError>>,
}

impl<T> Blocking<T> {
    /// The name under which a [`CloseReport`](super::CloseReport) lists it if it is abandoned.
    ///
    /// ```
    /// # use runward::runner::{Runner, TaskError};
    /// # Runner::new().run_scoped(|scope| async move {
    /// scope.spawn_blocking(|| ()).with_name("checksum").await
    /// # }).unwrap().unwrap();
    /// ```
    pub fn with_name(self, name: &str) -> Self {
        let mut state = lock(&self.event_loop.executor.state);
        if let Some(known) = state.given.as_mut().and_then(|given| given.names.get_mut(&self.id)) {
            *known = name.into();
        }
        drop(state);
        self
    }
}

impl<T> Future for Blocking<T> {
    type Output = Result<T, TaskError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.result)
            .poll(cx)
            .map(|sent| sent.unwrap_or_else(|_| Err(Cancelled::new("the executor is shut down").into())))
    }
}

impl<T> fmt::Debug for Blocking<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Blocking").finish_non_exhaustive()
    }
}
