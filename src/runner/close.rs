//! The close of a loop, in asyncio's order: cancel what is left over, await it, close generators,
//! drain the executor.

use std::time::Duration;

use tokio::time::Instant;

use super::control::Control;
use super::event_loop::Shared;
use super::sync::Arc;
use super::task::{Cell, End};

/// What a close found and did.
///
/// ```
/// use runward::runner::{Cancelled, Runner};
///
/// let mut runner = Runner::new();
/// runner.run_scoped(|scope| async move {
///     drop(scope.spawn(std::future::pending::<()>()));
///     Ok::<_, Cancelled>(())
/// }).unwrap().unwrap();
/// let report = runner.close();
/// assert_eq!(report.tasks_cancelled, 1);
/// assert!(report.is_clean());
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CloseReport {
    /// Left-over tasks that were cancelled and awaited.
    pub tasks_cancelled: usize,
    /// Errors and panics of those tasks; the exception handler was told of each.
    pub task_errors: usize,
    /// Tasks that did not return to the loop when they were dropped by force, by name.
    pub tasks_abandoned: Vec<String>,
    /// Generators that stood half-way.
    pub generators_closed: usize,
    /// Blocking work that outlived the limit, by name. Empty: the executor is drained.
    pub executor_abandoned: Vec<String>,
    /// How long it took.
    pub elapsed: Duration,
}

impl CloseReport {
    /// Whether nothing of the Runner lives on.
    ///
    /// ```
    /// assert!(runward::runner::CloseReport::default().is_clean());
    /// ```
    pub fn is_clean(&self) -> bool {
        self.tasks_abandoned.is_empty() && self.executor_abandoned.is_empty()
    }
}

/// How long a task that is dropped by force has to return to the loop before it counts as stuck.
/// Half of the 100 ms in which a second interrupt must end a run.
pub(crate) const STUCK_AFTER: Duration = Duration::from_millis(50);

pub(crate) async fn close(
    event_loop: &Arc<Shared>,
    control: &Control,
    drain_timeout: Duration,
) -> CloseReport {
    let began = Instant::now();
    control.begin_close();
    let mut report = CloseReport::default();
    cancel_left_over(event_loop, control, &mut report).await;
    close_generators(event_loop, control, &mut report).await;
    drain_executor(event_loop, control, drain_timeout, &mut report).await;
    event_loop.shut();
    // What the clean-up itself has started is dropped with the loop, as in asyncio.
    let mut late = event_loop.alive();
    late.retain(|cell| !cell.is_dropping());
    drop_by_force(event_loop, &late).await;
    report.tasks_abandoned = event_loop.alive().iter().map(|cell| cell.name()).collect();
    report.elapsed = began.elapsed();
    if !report.is_clean() {
        tracing::warn!(
            tasks = ?report.tasks_abandoned,
            executor = ?report.executor_abandoned,
            "the event loop is closed, but work of it lives on"
        );
    }
    report
}

async fn cancel_left_over(event_loop: &Arc<Shared>, control: &Control, report: &mut CloseReport) {
    let left_over = event_loop.alive();
    for cell in &left_over {
        // The close gives its result to nobody: errors are reported below, once.
        cell.told();
        if !cell.was_polled() && event_loop.is_debug() {
            tracing::warn!(task = cell.name(), source = %cell.source, "task was never polled");
        }
        cell.cancel(None);
    }
    if !unless_forced(control, all_done(event_loop, &left_over)).await {
        drop_by_force(event_loop, &left_over).await;
    }
    for cell in left_over {
        let exception = match cell.end() {
            None => continue,
            Some(End::Value | End::Cancelled) => None,
            Some(End::Error(error)) => Some(error.into()),
            Some(End::Panicked(message)) => Some(format!("panicked: {message}")),
        };
        report.tasks_cancelled += 1;
        if let Some(exception) = exception {
            report.task_errors += 1;
            event_loop.call_exception_handler(
                "unhandled error during the close of a Runner",
                cell,
                exception,
            );
        }
    }
}

async fn close_generators(event_loop: &Arc<Shared>, control: &Control, report: &mut CloseReport) {
    let open = event_loop.take_generators();
    report.generators_closed = open.len();
    // All at once, as asyncio does; each in a task of its own, so that one that hangs holds up none.
    let closing = open.into_values().map(|generator| {
        event_loop.spawn_child(generator.close(event_loop.clone()), std::panic::Location::caller())
    });
    let closing: Vec<_> = closing.map(|task| task.handle().cell).collect();
    if !unless_forced(control, all_done(event_loop, &closing)).await {
        drop_by_force(event_loop, &closing).await;
    }
}

async fn drain_executor(
    event_loop: &Arc<Shared>,
    control: &Control,
    drain_timeout: Duration,
    report: &mut CloseReport,
) {
    let began = Instant::now();
    loop {
        let (ended, changed) = (event_loop.ended.notified(), control.changed.notified());
        if event_loop.executor.len() == 0 {
            return;
        }
        let deadline = control.drain_deadline().or_else(|| began.checked_add(drain_timeout));
        if control.is_forced() || deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            break;
        }
        tokio::select! {
            () = ended => {}
            () = changed => {}
            () = until(deadline) => {}
        }
    }
    report.executor_abandoned = event_loop.executor.names();
    tracing::warn!(
        waited = ?began.elapsed(),
        abandoned = ?report.executor_abandoned,
        "the executor did not finish in time"
    );
}

/// A limit too far for the clock is none.
async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

pub(crate) async fn all_done(event_loop: &Shared, cells: &[Arc<Cell>]) {
    loop {
        let ended = event_loop.ended.notified();
        if cells.iter().all(|cell| cell.is_done()) {
            return;
        }
        ended.await;
    }
}

/// False when an interrupt came first.
async fn unless_forced(control: &Control, work: impl Future<Output = ()>) -> bool {
    let mut work = std::pin::pin!(work);
    loop {
        let changed = control.changed.notified();
        if control.is_forced() {
            return false;
        }
        tokio::select! {
            biased;
            () = &mut work => return true,
            () = changed => {}
        }
    }
}

/// Drops what is not done, and gives it the time to return to the loop.
async fn drop_by_force(event_loop: &Shared, cells: &[Arc<Cell>]) {
    for cell in cells.iter().filter(|cell| !cell.is_done()) {
        event_loop.report_dropped(cell);
        cell.drop_now();
    }
    // Who is late is found among the living at the end of the close.
    drop(tokio::time::timeout(STUCK_AFTER, all_done(event_loop, cells)).await);
}
