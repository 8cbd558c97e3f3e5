//! Task groups: tasks that end together.

use std::fmt;
use std::panic::Location;

use tokio::sync::Notify;

use super::drive;
use super::sync::{Arc, Mutex, lock};
use super::task::{Cell, End, Style};
use super::{Cancelled, Scope, ScopeError, Task};

/// Starts tasks that end together: asyncio's `TaskGroup`. Given to the body of a
/// [`Scope::group`]; it dereferences to the [`Scope`] of that body.
///
/// ```
/// use runward::runner::{Cancelled, Runner, TaskGroup};
///
/// let sum = Runner::new().run_scoped(|scope| async move {
///     let sum = scope.group(|group: TaskGroup<Cancelled>| async move {
///         let mut one = group.spawn(|_| async { Ok(1) });
///         let mut two = group.spawn(|scope| async move { scope.checkpoint().await.map(|()| 2) });
///         Ok(group.join(&mut one).await.unwrap().unwrap() + group.join(&mut two).await.unwrap().unwrap())
///     });
///     sum.await.expect("no task failed")
/// });
/// assert_eq!(sum.unwrap(), Ok(3));
/// ```
pub struct TaskGroup<E> {
    scope: Scope,
    members: Arc<Members<E>>,
}

struct Members<E> {
    state: Mutex<State<E>>,
    failed: Notify,
}

struct State<E> {
    tasks: Vec<Arc<Cell>>,
    errors: Vec<E>,
    ending: bool,
}

impl<E> Members<E> {
    /// Cancels all members, those to come too.
    fn end(&self, error: Option<E>) {
        let mut state = lock(&self.state);
        state.errors.extend(error);
        state.ending = true;
        let tasks = state.tasks.clone();
        drop(state);
        for task in tasks {
            task.cancel(None);
        }
        // `notify_one` is remembered, should the body not listen yet.
        self.failed.notify_one();
    }
}

/// Ends the group when a member's body unwinds.
struct Watch<E> {
    members: Arc<Members<E>>,
}

impl<E> Drop for Watch<E> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.members.end(None);
        }
    }
}

impl<E: ScopeError + Send + 'static> TaskGroup<E> {
    /// Starts a member. Its error goes to the group, which then cancels the other members and the
    /// body; who awaits the task learns only that it [`Failed`]. A member started in a group that
    /// is ending is cancelled at once.
    ///
    /// ```
    /// # use runward::runner::{Cancelled, Runner, TaskGroup};
    /// # Runner::new().run_scoped(|scope| async move {
    /// scope.group(|group: TaskGroup<Cancelled>| async move {
    ///     group.spawn(|scope| async move { scope.checkpoint().await }).set_name("member");
    ///     Ok(())                                              // the group waits for it
    /// }).await.unwrap()
    /// # }).unwrap().unwrap();
    /// ```
    #[track_caller]
    pub fn spawn<B, F, T>(&self, body: B) -> Task<Result<T, Failed>>
    where
        B: FnOnce(Scope) -> F + Send + 'static,
        F: Future<Output = Result<T, E>> + Send + 'static,
        T: Send + 'static,
    {
        let event_loop = &self.scope.cell.event_loop;
        let style = Style::Scoped { grace: None };
        let cell = Cell::new(event_loop.clone(), super::copy_context(), style, Location::caller());
        let mut state = lock(&self.members.state);
        // The ended ones need no further care, unless they panicked.
        state.tasks.retain(|task| !matches!(task.end(), Some(End::Value | End::Cancelled | End::Error(_))));
        state.tasks.push(cell.clone());
        if state.ending {
            cell.cancel(None);
        }
        drop(state);
        let watch = Watch { members: self.members.clone() };
        let member = async move {
            Scope::enter(body).await.map_err(|error| {
                if error.is_cancelled() {
                    return Failed { text: None };
                }
                let text = Some(error.to_string());
                watch.members.end(Some(error));
                Failed { text }
            })
        };
        event_loop.spawn(cell, member, drive::scoped)
    }
}

impl<E> std::ops::Deref for TaskGroup<E> {
    type Target = Scope;

    fn deref(&self) -> &Scope {
        &self.scope
    }
}

impl<E> fmt::Debug for TaskGroup<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskGroup")
            .field("tasks", &lock(&self.members.state).tasks.len())
            .finish_non_exhaustive()
    }
}

/// A member of a [`TaskGroup`] ended with an error, which the group has.
///
/// ```
/// # use runward::runner::Failed;
/// fn is_error<T: std::error::Error>() {}
/// is_error::<Failed>();
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed {
    /// None where the error was a cancellation passed on.
    text: Option<String>,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text.as_deref().unwrap_or("cancelled"))
    }
}

impl std::error::Error for Failed {}

impl ScopeError for Failed {
    fn is_cancelled(&self) -> bool {
        self.text.is_none()
    }
}

/// What went wrong in a task group: asyncio's `ExceptionGroup`.
///
/// ```
/// # use runward::runner::{GroupError, Runner, TaskGroup};
/// # type Error = Box<dyn std::error::Error + Send + Sync>;
/// # Runner::new().run_scoped(|scope| async move {
/// let failed: Result<Result<(), Error>, GroupError<Error>> = scope.group(|group| async move {
///     group.spawn(|_| async { Err::<(), Error>("spam".into()) });
///     Ok(group.sleep(std::time::Duration::from_secs(3600)).await?)
/// }).await;
/// let error = failed.unwrap_err();
/// assert_eq!(error.errors[0].to_string(), "spam");
/// assert_eq!(error.to_string(), "1 error in a task group: spam");
/// # Ok::<_, Error>(()) }).unwrap().unwrap();
/// ```
#[derive(Debug)]
pub struct GroupError<E> {
    /// The errors of the members in the order they came; the body's own is the last.
    pub errors: Vec<E>,
    /// The texts of the panics of members.
    pub panics: Vec<String>,
}

impl<E: fmt::Display> fmt::Display for GroupError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.errors.len() + self.panics.len();
        write!(f, "{count} error{} in a task group", if count == 1 { "" } else { "s" })?;
        let mut separator = ": ";
        for error in &self.errors {
            write!(f, "{separator}{error}")?;
            separator = "; ";
        }
        for panic in &self.panics {
            write!(f, "{separator}panicked: {panic}")?;
            separator = "; ";
        }
        Ok(())
    }
}

impl<E: fmt::Display + fmt::Debug> std::error::Error for GroupError<E> {}

impl Scope {
    /// Runs `body`, which may start members, and waits until all of them have ended. The first
    /// member that fails, and a failing body, cancels all the others; a body that stands at an await
    /// that cannot hear a cancellation is dropped there. A cancellation of this task reaches body
    /// and members alike.
    ///
    /// # Errors
    ///
    /// [`GroupError`] with everything that failed. The inner result is the body's own; its error is
    /// a cancellation passed on.
    ///
    /// ```
    /// # use runward::runner::{Cancelled, Runner, TaskGroup};
    /// # use std::time::Duration;
    /// # Runner::new().run_scoped(|scope| async move {
    /// let ended = scope.group(|group: TaskGroup<Cancelled>| async move {
    ///     group.spawn(|scope| async move { scope.sleep(Duration::from_secs(3600)).await });
    ///     group.task().cancel(None);
    ///     group.checkpoint().await
    /// }).await;
    /// assert_eq!(ended.unwrap(), Err(Cancelled::new(None)));   // and the member has ended too
    /// assert_eq!(scope.event_loop().live_tasks(), 1);
    /// # Ok::<_, Cancelled>(()) }).unwrap().unwrap();
    /// ```
    pub async fn group<B, F, T, E>(&self, body: B) -> Result<Result<T, E>, GroupError<E>>
    where
        B: FnOnce(TaskGroup<E>) -> F,
        F: Future<Output = Result<T, E>>,
        E: ScopeError + From<Cancelled> + Send + 'static,
    {
        let inner = self.inner();
        let members = Arc::new(Members {
            state: Mutex::new(State { tasks: Vec::new(), errors: Vec::new(), ending: false }),
            failed: Notify::new(),
        });
        // Dropped with this future, should the whole task be dropped: then nobody waits for them.
        let _leaving = CancelOnDrop(&members);
        let group = TaskGroup { scope: inner.clone(), members: members.clone() };
        let mut end = match inner.confine(body(group), members.failed.notified()).await {
            Some(end) => end,
            None => Err(Cancelled::new("a task of the group failed").into()),
        };
        match end {
            Err(error) if !error.is_cancelled() => {
                members.end(Some(error));
                end = Err(Cancelled::new("the task group failed").into());
            }
            Err(_) => members.end(None),
            Ok(_) => {}
        }
        loop {
            match self.cancellable(self.all_ended(&members)).await {
                Ok(()) => break,
                Err(cancelled) => {
                    members.end(None);
                    end = Err(cancelled.into());
                }
            }
        }
        let mut state = lock(&members.state);
        let panics: Vec<_> = state
            .tasks
            .iter()
            .filter_map(|task| match task.end() {
                Some(End::Panicked(message)) => {
                    task.told();
                    Some(message.into())
                }
                Some(End::Value | End::Cancelled | End::Error(_)) | None => None,
            })
            .collect();
        let errors = std::mem::take(&mut state.errors);
        if errors.is_empty() && panics.is_empty() { Ok(end) } else { Err(GroupError { errors, panics }) }
    }

    async fn all_ended<E>(&self, members: &Members<E>) {
        loop {
            let ended = self.cell.event_loop.ended.notified();
            if lock(&members.state).tasks.iter().all(|task| task.is_done()) {
                return;
            }
            ended.await;
        }
    }
}

struct CancelOnDrop<'a, E>(&'a Members<E>);

impl<E> Drop for CancelOnDrop<'_, E> {
    fn drop(&mut self) {
        self.0.end(None);
    }
}
