//! `handler`: async functions of the program that embeds the daemon.

use std::{any::Any, collections::BTreeMap, fmt, pin::Pin, sync::Arc, time::Duration};

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use super::{Attempt, MAX_RESULT, Stopped, Variables, http::chain, output::Output};
use crate::{
    job::{Failure, Handler, Job, RunnerId},
    process::log::Stream,
    runner::{Cancelled, Scope, TaskError},
    supervisor::ports::End,
};

/// The result of a handler. Its value is the job's result: JSON of 64 KiB at the most.
pub type HandlerResult = Result<Value, HandlerError>;

type Called = Pin<Box<dyn Future<Output = HandlerResult> + Send>>;
type Function = Arc<dyn Fn(Call) -> Called + Send + Sync>;

/// The functions that jobs can name, with `echo` and `sleep` among them from the start.
///
/// ```
/// use runward::kinds::{Call, Handlers};
/// use serde_json::json;
///
/// let handlers = Handlers::new().register("greet", |call: Call| async move {
///     let name: String = call.args()?;
///     call.print(&format!("greeting {name}")).await;
///     Ok(json!({"greeting": format!("hello, {name}")}))
/// });
/// assert_eq!(handlers.names(), ["echo", "greet", "sleep"]);
/// ```
#[derive(Clone)]
pub struct Handlers(BTreeMap<String, (Function, Style)>);

/// What a cancellation does to it.
#[derive(Clone, Copy)]
enum Style {
    /// It is dropped at its await.
    Dropped,
    /// Its scope tells it.
    Told,
}

impl Handlers {
    /// `echo` and `sleep`, for trying things out.
    #[expect(clippy::new_without_default, reason = "it is not empty")]
    pub fn new() -> Self {
        Self(BTreeMap::new()).register("echo", |call| async move { call.args() }).register(
            "sleep",
            |call| async move {
                let Sleep(duration) = call.args()?;
                call.scope().sleep(duration).await?;
                Ok(Value::Null)
            },
        )
    }

    /// Adds a function. A cancellation drops it at the await where it stands. Another one of the same name is
    /// replaced.
    #[must_use]
    pub fn register<F, Fut>(self, name: &str, function: F) -> Self
    where
        F: Fn(Call) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = HandlerResult> + Send + 'static,
    {
        self.add(name, function, Style::Dropped)
    }

    /// Adds a function that is told of its cancellation: the awaits of [`Call::scope`] then fail once with
    /// [`Cancelled`], to be passed on with `?`, and clean-up may await again. Only these: any other await goes on,
    /// until the grace is over. What it returns after a cancellation counts: a value means that it succeeded.
    #[must_use]
    pub fn register_scoped<F, Fut>(self, name: &str, function: F) -> Self
    where
        F: Fn(Call) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = HandlerResult> + Send + 'static,
    {
        self.add(name, function, Style::Told)
    }

    fn add<F, Fut>(mut self, name: &str, function: F, style: Style) -> Self
    where
        F: Fn(Call) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = HandlerResult> + Send + 'static,
    {
        self.0.insert(name.to_owned(), (Arc::new(move |call| Box::pin(function(call))), style));
        self
    }

    /// The names, in their order.
    pub fn names(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }
}

impl fmt::Debug for Handlers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.names()).finish()
    }
}

/// One call of a handler.
#[derive(Clone, Debug)]
pub struct Call {
    attempt: Arc<Attempt>,
    /// `None`: there are no variables.
    context: Option<Arc<Variables>>,
    scope: Scope,
    output: Output,
}

impl Call {
    pub(super) fn new(attempt: Arc<Attempt>, context: Variables, scope: Scope, output: Output) -> Self {
        let context = (!context.is_empty()).then(|| Arc::new(context));
        Self { attempt, context, scope, output }
    }

    /// The arguments, as whatever they are to be; [`Value`] takes all.
    ///
    /// # Errors
    /// `invalid_args`: they are something else.
    pub fn args<T: DeserializeOwned>(&self) -> Result<T, HandlerError> {
        let args = match self.attempt.job() {
            Job::Handler(handler) => handler.args.value(),
            Job::Command(_) | Job::Script(_) | Job::Python(_) | Job::Http(_) => Value::Null,
        };
        T::deserialize(args)
            .map_err(|error| HandlerError::new("invalid_args", format!("`job.handler.args`: {error}")))
    }

    /// The scope of the job's main task: to sleep, to start tasks, to do blocking work on the Runner's executor.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// A context variable.
    pub fn context(&self, name: &str) -> Option<&str> {
        self.context.as_ref()?.get(name).map(String::as_str)
    }

    /// The job's Runner.
    pub fn runner(&self) -> RunnerId {
        self.attempt.runner
    }

    /// Writes a line to the job's standard output. Waits while the disk is behind.
    pub async fn print(&self, line: &str) {
        self.output.write(Stream::Stdout, format!("{line}\n").as_bytes()).await;
    }

    /// Writes a line to its standard error.
    pub async fn eprint(&self, line: &str) {
        self.output.write(Stream::Stderr, format!("{line}\n").as_bytes()).await;
    }
}

/// Why a handler has no value to return. Every error becomes one with `?`; [`Cancelled`] stays a cancellation.
#[derive(Debug)]
pub struct HandlerError {
    kind: String,
    message: String,
    cancelled: bool,
}

impl HandlerError {
    /// A failure with a stable word of one's own for its kind, and a sentence for people.
    pub fn new(kind: &str, message: impl Into<String>) -> Self {
        Self { kind: kind.into(), message: message.into(), cancelled: false }
    }
}

impl<E: std::error::Error + Send + Sync + 'static> From<E> for HandlerError {
    fn from(error: E) -> Self {
        let any: &dyn Any = &error;
        let cancelled = any.is::<Cancelled>() || matches!(any.downcast_ref(), Some(TaskError::Cancelled(_)));
        Self { kind: "handler_failed".into(), message: chain(&error), cancelled }
    }
}

/// Calls the handler.
#[expect(clippy::manual_async_fn, reason = "an async function would keep what it is given twice")]
pub(super) fn run(
    handlers: &Handlers,
    Handler { name, args: _ }: &Handler,
    call: Call,
) -> impl Future<Output = Result<End, Stopped>> {
    async move {
        let Some((function, style)) = handlers.0.get(name) else { return Ok(unknown(handlers, name)) };
        let scope = call.scope.clone();
        let returned = match style {
            Style::Dropped => scope.cancellable(function(call)).await?,
            Style::Told => function(call).await,
        };
        match returned {
            Ok(value) => Ok(checked(value)),
            Err(error) if error.cancelled && scope.task().cancelling() > 0 => {
                Err(Cancelled::default().into())
            }
            Err(error) if error.cancelled => {
                let message = "the handler ended with a cancellation that nobody had asked for";
                Ok(failed(Failure::new("cancelled_itself", message)))
            }
            Err(HandlerError { kind, message, cancelled: _ }) => Ok(failed(Failure::new(&kind, message))),
        }
    }
}

fn unknown(handlers: &Handlers, name: &str) -> End {
    let known = handlers.names().join("`, `");
    let message =
        format!("this daemon has no handler `{name}` any more, only `{known}`; start one that registers it");
    failed(Failure::new("unknown_handler", message))
}

fn failed(failure: Failure) -> End {
    End { error: Some(failure), ..End::default() }
}

fn checked(value: Value) -> End {
    // A value without maps of odd keys: it can't fail.
    let size = serde_json::to_vec(&value).map_or(0, |json| json.len());
    if size > MAX_RESULT {
        let message = format!(
            "the handler returned {size} bytes of JSON, and a result may have {MAX_RESULT}; write more to a file or \
             print it"
        );
        return failed(Failure::new("result_too_large", message));
    }
    End { result: Some(value), ..End::default() }
}

/// `{"for": "10s"}`, `"10s"` or a number of seconds.
#[derive(Deserialize)]
#[serde(try_from = "Value")]
struct Sleep(Duration);

impl TryFrom<Value> for Sleep {
    type Error = &'static str;

    fn try_from(args: Value) -> Result<Self, &'static str> {
        let time = match &args {
            Value::Object(fields) if fields.len() == 1 => fields.get("for"),
            Value::Null | Value::Bool(_) | Value::Object(_) | Value::Array(_) => None,
            Value::Number(_) | Value::String(_) => Some(&args),
        };
        let duration = match time {
            Some(Value::Number(seconds)) => {
                seconds.as_f64().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
            }
            Some(Value::String(text)) => {
                text.parse::<jiff::SignedDuration>().ok().and_then(|duration| duration.try_into().ok())
            }
            Some(Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_)) | None => None,
        };
        duration
            .map(Self)
            .ok_or(r#"must be {"for": "10s"}, a duration such as "10s", or a number of seconds"#)
    }
}
