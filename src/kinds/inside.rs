//! Jobs that run in the daemon itself: `http` and `handler`, on a loop that all of them share.
//!
//! They can't be killed: by force their main task is dropped where it stands, and what does not even return to the
//! loop, or blocks a thread, is named in the record as abandoned.

use std::{io, path::PathBuf, sync::Arc};

use tokio::{runtime::Handle, sync::watch};

use super::{
    Attempt, Call, Context, Done, Handlers, Link, LogQuota, Main, Reporter, Stopped, Variables, handler, http,
    output::{Output, Outputs},
};
use crate::{
    job::{Failure, Job},
    runner::{AsyncRunner, Scope},
    supervisor::ports::{End, News},
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
    context: Context,
    output: Output,
}

/// Starts the main task of an in-process job on its Runner.
pub(super) fn start(
    runner: &mut AsyncRunner,
    inside: Arc<Inside>,
    attempt: Arc<Attempt>,
    context: Context,
    output: Output,
) -> Main {
    runner.start_scoped(move |scope| run(Work { scope, inside, attempt, context, output }))
}

/// Boxed, all but the job itself: there may be tens of thousands of others, which need less.
fn run(work: Work) -> impl Future<Output = Result<Done, Stopped>> {
    async move {
        let variables = match Box::pin(work.begin()).await? {
            Ok(variables) => variables,
            Err(failure) => return Ok(failed(failure)),
        };
        let Work { scope, inside, attempt, context, output } = work;
        drop(context);
        let end = match attempt.record.job() {
            Job::Http(job) => {
                let done = attempt.told(Box::pin(inside.http.run(job, &variables, &output)));
                scope.cancellable(done).await?
            }
            Job::Handler(job) => {
                let call = Call::new(Arc::clone(&attempt.record), variables, scope, output);
                attempt.told(handler::run(&inside.handlers, job, call)).await?
            }
            Job::Command(_) | Job::Script(_) | Job::Python(_) => {
                return Ok(failed(Failure::new("internal", "a job of processes was given to the daemon itself")));
            }
        };
        Ok(Done { end, hold: None })
    }
}

fn failed(failure: Failure) -> Done {
    Done { end: End { error: Some(failure), ..End::default() }, hold: None }
}

impl Work {
    /// Waits until the start is durable, and tells that it runs.
    async fn begin(&self) -> Result<Result<Variables, Failure>, Stopped> {
        let mut link = Link(Arc::clone(&self.attempt));
        let go = self.scope.cancellable(link.until(|orders| orders.go)).await?;
        go.map_err(|_| Stopped::Aborted)?;
        let variables = self.scope.cancellable(self.context.variables(&self.attempt.record)).await?;
        if variables.is_ok() {
            Reporter(Arc::clone(&self.attempt)).send(News::Running { pid: None, start_time: None }).await;
        }
        Ok(variables)
    }
}
