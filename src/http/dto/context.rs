//! The shared context, as the API shows it: a secret's value is in none of these.

use serde::Serialize;
use utoipa::ToSchema;

use super::time;
use crate::job::{self, ContextValue};

/// The shared context.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Context {
    /// Rises with each change; an attempt's `context_version` says which one it saw.
    version: u64,
    /// Its variables, by name.
    variables: Vec<Variable>,
}

/// A variable of the shared context.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Variable {
    /// Its name.
    name: String,
    /// Its value; `null` where it is a secret.
    value: Option<String>,
    /// Whether only jobs get to see its value.
    secret: bool,
    /// Where the value is: `inline`, `file`, `env` or `credential`.
    source: &'static str,
    /// The file's path, or the name of the environment variable or credential.
    from: Option<String>,
    /// The version of the context that it came with.
    version: u64,
    /// When it was set.
    set_at: String,
}

/// What the context is after a variable was unset.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Unset {
    /// The context's version now.
    pub version: u64,
}

/// What a variable is to hold: `value`, or `from`.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes what is read by hand")]
pub(crate) struct SetVariable {
    /// The value itself, 64 KiB at the most.
    value: Option<String>,
    /// Whether `value` is kept encrypted and never shown again.
    #[schema(default = false)]
    secret: Option<bool>,
    /// Where the value is read when a job starts. Always a secret.
    from: Option<ReadFrom>,
}

/// Where a value is read when a job starts: exactly one of these.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes what is read by hand")]
pub(crate) struct ReadFrom {
    /// The path of a file; a newline at its end is left out.
    file: Option<String>,
    /// A variable of the daemon's environment.
    env: Option<String>,
    /// A credential that systemd gave the daemon.
    credential: Option<String>,
}

impl From<&job::SharedContext> for Context {
    fn from(context: &job::SharedContext) -> Self {
        let variables = context.variables.iter().map(|(name, variable)| Variable::new(name, variable));
        Self { version: context.version, variables: variables.collect() }
    }
}

impl Variable {
    pub(crate) fn new(name: &str, variable: &job::Variable) -> Self {
        let (value, source, from) = match &variable.value {
            ContextValue::Plain(text) => (Some(text.clone()), "inline", None),
            ContextValue::Sealed(_) => (None, "inline", None),
            ContextValue::File(path) => (None, "file", Some(path.display().to_string())),
            ContextValue::Env(name) => (None, "env", Some(name.clone())),
            ContextValue::Credential(name) => (None, "credential", Some(name.clone())),
        };
        Self {
            name: name.to_owned(),
            secret: value.is_none(),
            value,
            source,
            from,
            version: variable.version,
            set_at: time(variable.set_at),
        }
    }
}
