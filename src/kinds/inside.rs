//! Jobs that run in the daemon itself: `http` and `handler`, on a loop that all of them share.
//!
//! They can't be killed: by force their main task is dropped where it stands, and what does not even return to the
//! loop, or blocks a thread, is named in the record as abandoned.

use std::{io, path::PathBuf, sync::Arc};

use tokio::{runtime::Handle, sync::watch};
use tracing::{Instrument, Span};

use super::{
    Call, Context, Done, Handlers, Link, LogQuota, Main, Reporter, Stopped, handler, http,
    output::{Output, Outputs},
};
use crate::{
    job::{Failure, Job, Record},
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

/// Starts the main task of an in-process job on its Runner.
pub(super) fn start(
    runner: &mut AsyncRunner,
    inside: Arc<Inside>,
    record: Arc<Record>,
    context: Context,
    link: Link,
    reporter: Reporter,
    output: Output,
) -> Main {
    let span = Span::current();
    runner.start_scoped(move |scope| {
        run(scope, inside, record, context, link, reporter, output).instrument(span)
    })
}

async fn run(
    scope: Scope,
    inside: Arc<Inside>,
    record: Arc<Record>,
    context: Context,
    mut link: Link,
    reporter: Reporter,
    output: Output,
) -> Result<Done, Stopped> {
    scope.cancellable(link.until(|orders| orders.go)).await?.map_err(|_| Stopped::Aborted)?;
    drop(link);
    // Boxed, like what follows: there may be tens of thousands of others, which need less.
    let variables = match scope.cancellable(Box::pin(context.variables(&record))).await? {
        Ok(variables) => variables,
        Err(failure) => return Ok(Done { end: End { error: Some(failure), ..End::default() }, hold: None }),
    };
    drop(context);
    Box::pin(reporter.send(News::Running { pid: None, start_time: None })).await;
    drop(reporter);
    let end = match record.job() {
        Job::Http(job) => scope.cancellable(Box::pin(inside.http.run(job, &variables, &output))).await?,
        Job::Handler(job) => {
            handler::run(&inside.handlers, job, Call::new(record.clone(), variables, scope, output)).await?
        }
        Job::Command(_) | Job::Script(_) | Job::Python(_) => {
            let failure = Failure::new("internal", "a job of processes was given to the daemon itself");
            End { error: Some(failure), ..End::default() }
        }
    };
    Ok(Done { end, hold: None })
}
