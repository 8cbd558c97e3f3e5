//! Looking at the tasks of a loop: snapshots, and the tree they make.

use std::collections::BTreeMap;
use std::fmt;
use std::panic::Location;
use std::time::Duration;

/// Where a task stands.
///
/// ```
/// assert_eq!(runward::runner::TaskState::Waiting.to_string(), "waiting");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TaskState {
    /// Not polled yet.
    Created,
    /// Being polled at this moment.
    Running,
    /// At an await.
    Waiting,
    /// Asked to end, and not ended yet.
    Cancelling,
    /// Ended with a value.
    Finished,
    /// Ended by a cancellation.
    Cancelled,
    /// Ended with an error or a panic.
    Failed,
}

impl fmt::Display for TaskState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            TaskState::Created => "created",
            TaskState::Running => "running",
            TaskState::Waiting => "waiting",
            TaskState::Cancelling => "cancelling",
            TaskState::Finished => "finished",
            TaskState::Cancelled => "cancelled",
            TaskState::Failed => "failed",
        })
    }
}

/// What is known of a task at one moment.
///
/// ```
/// # use runward::runner::{Cancelled, Runner};
/// # Runner::new().run_scoped(|scope| async move {
/// let me = scope.task().info();
/// assert!(me.source.file().ends_with(".rs"));
/// assert_eq!(me.parent, None);
/// # Ok::<_, Cancelled>(()) }).unwrap().unwrap();
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct TaskInfo {
    /// Unique in this process.
    pub id: u64,
    /// As given, or `Task-N`.
    pub name: String,
    /// Where it stands.
    pub state: TaskState,
    /// The line that started it.
    pub source: &'static Location<'static>,
    /// The task that started it.
    pub parent: Option<u64>,
    /// Since it was started.
    pub age: Duration,
    /// How often it was polled.
    pub polls: u64,
    /// The time spent in its polls.
    pub busy: Duration,
    /// Polls longer than the loop's threshold.
    pub slow_polls: u32,
}

/// The tasks of a loop as a tree, printable like `asyncio pstree`: who started whom.
///
/// A task whose parent has ended stands at the top.
///
/// ```
/// use runward::runner::{Cancelled, Runner};
///
/// let tree = Runner::new().run_scoped(|scope| async move {
///     scope.task().set_name("main");
///     let child = scope.spawn(std::future::pending::<()>()).with_name("child");
///     let tree = scope.event_loop().task_tree().to_string();
///     child.cancel(None);
///     Ok::<_, Cancelled>(tree)
/// }).unwrap().unwrap();
/// assert!(tree.starts_with("main "));
/// assert!(tree.contains("\n└── child "));
/// ```
#[derive(Debug, Clone)]
pub struct TaskTree {
    tasks: Vec<TaskInfo>,
}

impl TaskTree {
    pub(crate) fn new(tasks: Vec<TaskInfo>) -> Self {
        TaskTree { tasks }
    }

    /// The tasks, oldest first.
    ///
    /// ```
    /// # use runward::runner::Runner;
    /// let mut runner = Runner::new();
    /// assert!(runner.get_loop().unwrap().task_tree().tasks().is_empty());
    /// ```
    pub fn tasks(&self) -> &[TaskInfo] {
        &self.tasks
    }
}

impl fmt::Display for TaskTree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known: BTreeMap<u64, &TaskInfo> = self.tasks.iter().map(|task| (task.id, task)).collect();
        let mut children: BTreeMap<Option<u64>, Vec<&TaskInfo>> = BTreeMap::new();
        for task in &self.tasks {
            let parent = task.parent.filter(|parent| known.contains_key(parent));
            children.entry(parent).or_default().push(task);
        }
        // Depth first, without recursion: a chain of tasks may be longer than the stack.
        let mut open: Vec<(&TaskInfo, String, &str, &str)> = Vec::new();
        let push = |open: &mut Vec<_>, of: Option<u64>, indent: &str| {
            let under = children.get(&of).map_or(&[][..], Vec::as_slice);
            for (at, task) in under.iter().enumerate().rev() {
                let (branch, below) = match (of, at + 1 == under.len()) {
                    (None, _) => ("", ""),
                    (Some(_), true) => ("└── ", "    "),
                    (Some(_), false) => ("├── ", "│   "),
                };
                open.push((*task, indent.to_owned(), branch, below));
            }
        };
        push(&mut open, None, "");
        while let Some((task, indent, branch, below)) = open.pop() {
            writeln!(
                f,
                "{indent}{branch}{} [{}] {}:{} age {:.1?}, {} polls, busy {:.1?}{}",
                task.name,
                task.state,
                task.source.file(),
                task.source.line(),
                task.age,
                task.polls,
                task.busy,
                if task.slow_polls > 0 { format!(", {} slow", task.slow_polls) } else { String::new() },
            )?;
            push(&mut open, Some(task.id), &format!("{indent}{below}"));
        }
        Ok(())
    }
}
