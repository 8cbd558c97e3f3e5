//! Which task and which context the running code belongs to.

use std::cell::RefCell;

use super::Context;
use super::sync::Arc;
use super::task::Cell;

struct Frame {
    task: Option<Arc<Cell>>,
    context: Option<Context>,
}

thread_local! {
    static CURRENT: RefCell<Frame> = const { RefCell::new(Frame { task: None, context: None }) };
}

/// Puts the outer frame back.
pub(crate) struct Entered(Option<Frame>);

/// Makes `task` and `context` the current ones of this thread until the guard is dropped.
pub(crate) fn enter(task: Option<Arc<Cell>>, context: Context) -> Entered {
    let inner = Frame { task, context: Some(context) };
    Entered(CURRENT.try_with(|current| current.replace(inner)).ok())
}

impl Drop for Entered {
    fn drop(&mut self) {
        if let Some(outer) = self.0.take() {
            // The thread may be past its thread-locals; then there is nobody left to see a frame.
            // The inner frame is dropped outside of the borrow: a value's destructor may look here.
            drop(CURRENT.try_with(|current| current.replace(outer)));
        }
    }
}

/// The current context; a thread that never entered one has one of its own, as in Python.
pub(crate) fn with_context<R>(f: impl FnOnce(&Context) -> R) -> R {
    let context = CURRENT
        .try_with(|current| current.borrow_mut().context.get_or_insert_default().clone())
        .unwrap_or_default();
    f(&context)
}

pub(crate) fn task() -> Option<Arc<Cell>> {
    CURRENT.try_with(|current| current.borrow().task.clone()).ok().flatten()
}

thread_local! {
    static MAY_RUN: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Puts back what held before.
pub(crate) struct MayRun(bool);

/// Marks this thread as one that may block, though it belongs to a runtime.
pub(crate) fn allow_run() -> MayRun {
    MayRun(MAY_RUN.replace(true))
}

/// Marks this thread as one that runs a loop.
pub(crate) fn forbid_run() -> MayRun {
    MayRun(MAY_RUN.replace(false))
}

impl Drop for MayRun {
    fn drop(&mut self) {
        MAY_RUN.set(self.0);
    }
}

/// Whether a loop runs in this thread, so that another one must not. A thread that has entered a
/// tokio runtime counts, for tokio does not tell apart who merely entered it.
pub(crate) fn loop_runs_here() -> bool {
    tokio::runtime::Handle::try_current().is_ok() && !MAY_RUN.get()
}
