//! Jobs that run in the daemon itself: `http` and `handler`, on a loop that all of them share.
//!
//! They can't be killed: by force their main task is dropped where it stands, and what does not even return to the
//! loop, or blocks a thread, is named in the record as abandoned.

use std::{io, path::PathBuf, sync::Arc};

use tokio::{runtime::Handle, sync::watch};

use super::{
    Attempt, Call, Context, Done, Ended, Handlers, Link, LogQuota, Main, Reporter, Stopped, Variables,
    handler, http,
    output::{Output, Outputs},
};
use crate::{
    job::{Failure, Job, Record},
    runner::{AsyncRunner, RunError, Scope},
    supervisor::ports::News,
};

/// What all in-process jobs share.
#[derive(Debug)]
pub struct Inside {
    pub(super) runtime: Handle,
    pub(super) outputs: Arc<Outputs>,
    handlers: Handlers,
    http: Arc<http::Client>,
}

impl Inside {
    /// In-process jobs on `runtime`, whose logs are kept in `log_root` within these sizes.
    ///
    /// # Errors
    /// The system gives no thread to write their logs.
    pub fn new(
        runtime: Handle,
        handlers: Handlers,
        http: Arc<http::Client>,
        log_root: PathBuf,
        quota: watch::Receiver<LogQuota>,
    ) -> io::Result<Self> {
        let outputs = Outputs::start(log_root, quota)?;
        Ok(Self { runtime, outputs, handlers, http })
    }
}

/// What the main task of an in-process job works with.
struct Work {
    scope: Scope,
    inside: Arc<Inside>,
    attempt: Arc<Attempt>,
    output: Output,
}

/// What its variables are made from, in a box of its own: it goes when the job begins.
struct Origin {
    record: Arc<Record>,
    context: Context,
}

/// Starts the main task of an in-process job on its Runner.
pub(super) fn start(
    runner: &mut AsyncRunner,
    inside: Arc<Inside>,
    record: Arc<Record>,
    attempt: Arc<Attempt>,
    context: Context,
    output: Output,
) -> Result<impl Main + use<>, RunError> {
    let origin = Box::new(Origin { record, context });
    runner.start_scoped(move |scope| run(Work { scope, inside, attempt, output }, origin))
}

/// Boxed, all but the job itself: there may be tens of thousands of others, which need less.
#[expect(clippy::manual_async_fn, reason = "an async function would keep what it is given twice")]
fn run(work: Work, origin: Box<Origin>) -> impl Future<Output = Ended> {
    async move {
        let variables = match Box::pin(work.begin(origin)).await? {
            Ok(variables) => variables,
            Err(failure) => return Ok(Done::failed(failure)),
        };
        let end = match work.attempt.job() {
            Job::Http(job) => {
                let done = Box::pin(work.inside.http.run(job, &variables, &work.output));
                work.scope.cancellable(work.attempt.told(done)).await?
            }
            Job::Handler(job) => {
                let call = Call::new(Arc::clone(&work.attempt), variables, work.scope, work.output);
                work.attempt.told(handler::run(&work.inside.handlers, job, call)).await?
            }
            Job::Command(_) | Job::Script(_) | Job::Python(_) => {
                let failure = Failure::new("internal", "a job of processes was given to the daemon itself");
                return Ok(Done::failed(failure));
            }
        };
        Ok(Box::new(Done { end, hold: None }))
    }
}

impl Work {
    /// Waits until the start is durable, and tells that it runs.
    async fn begin(&self, origin: Box<Origin>) -> Result<Result<Variables, Failure>, Stopped> {
        let mut link = Link(Arc::clone(&self.attempt));
        let go = self.scope.cancellable(link.until(|orders| orders.go)).await?;
        go.map_err(|_| Stopped::Aborted)?;
        let variables = self.scope.cancellable(origin.context.variables(&origin.record)).await?;
        // Before it is told: what runs has another record.
        drop(origin);
        if variables.is_ok() {
            Reporter(Arc::clone(&self.attempt)).send(News::Running { pid: None, start_time: None }).await;
        }
        Ok(variables)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size<T>(_: fn(Work, Box<Origin>) -> T) -> usize {
        size_of::<T>()
    }

    #[test]
    fn the_main_task_of_a_job_that_waits_is_small() {
        assert!(size(run) <= 272);
    }
}
