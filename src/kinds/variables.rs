//! What an attempt sees of the context. Secrets are revealed when it starts, and gone when this is dropped.

use std::{collections::BTreeMap, fmt, ops::Deref, sync::Arc};

use crate::{
    job::{Failure, Record, SharedContext},
    secrets::{self, Vault},
};

/// The variables of an attempt, by name. Some may be secrets: only their names are ever shown.
#[derive(Clone, Default)]
pub struct Variables(BTreeMap<String, String>);

impl Deref for Variables {
    type Target = BTreeMap<String, String>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl fmt::Debug for Variables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// What variables are resolved from: the shared context as it was when the Runner started.
#[derive(Clone, Debug)]
pub(super) struct Context {
    shared: Arc<SharedContext>,
    vault: Arc<Vault>,
}

impl Context {
    pub(super) fn new(shared: Arc<SharedContext>, vault: Arc<Vault>) -> Self {
        Self { shared, vault }
    }

    /// The variables of the attempt under way: the shared ones, over them what was submitted, over that what earlier
    /// runs have set, as in a context that all runs of a Runner share.
    pub(super) async fn variables(&self, record: &Arc<Record>) -> Result<Variables, Failure> {
        if !self.blocks() {
            return self.variables_now(record);
        }
        let (context, record) = (self.clone(), Arc::clone(record));
        let resolved = tokio::task::spawn_blocking(move || context.variables_now(&record)).await;
        resolved.unwrap_or_else(|error| Err(Failure::new("internal", error.to_string())))
    }

    /// Whether resolving reads files.
    pub(super) fn blocks(&self) -> bool {
        self.shared.variables.values().any(|variable| secrets::reads_file(&variable.value))
    }

    /// The same, blocking.
    pub(super) fn variables_now(&self, record: &Record) -> Result<Variables, Failure> {
        let own = &record.spec.context;
        let mut variables = BTreeMap::new();
        for (name, variable) in &self.shared.variables {
            // What is not seen need not be there.
            if !own.contains_key(name) && !record.variables.contains_key(name) {
                let text = self.vault.reveal(name, &variable.value).map_err(|error| Failure {
                    stage: Some("context".into()),
                    ..Failure::new("start_failed", error.to_string())
                })?;
                variables.insert(name.clone(), text);
            }
        }
        variables.extend(own.iter().map(|(name, value)| (name.clone(), value.clone())));
        for (name, value) in &*record.variables {
            match value {
                Some(value) => drop(variables.insert(name.clone(), value.clone())),
                None => drop(variables.remove(name)),
            }
        }
        Ok(Variables(variables))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use jiff::Timestamp;

    use super::*;
    use crate::job::{self, Command, ContextValue, Event, EventKind, Job, RunnerId, Spec, Variable};

    fn record(context: &[(&str, &str)], set: &[(&str, Option<&str>)]) -> Record {
        let job = Job::Command(Command { argv: vec!["true".into()], ..Command::default() });
        let context = context.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        let context = context.collect::<BTreeMap<_, _>>().into();
        let spec = Arc::new(Spec { context, ..Spec::new(job, Duration::ZERO) });
        let kind = EventKind::Submitted { spec };
        let event = Event { seq: 1, runner: RunnerId::new(), at: Timestamp::UNIX_EPOCH, kind };
        let mut record = job::create(&event).expect("legal");
        let set = set.iter().map(|(name, value)| (name.to_string(), value.map(str::to_owned)));
        record.variables = set.collect::<BTreeMap<_, _>>().into();
        record
    }

    fn context(variables: &[(&str, ContextValue)]) -> Context {
        let dir = tempfile::tempdir().expect("a directory");
        let vault = Arc::new(Vault::open(dir.path(), None).expect("a key"));
        let variable = |value| Variable { value, version: 1, set_at: Timestamp::UNIX_EPOCH };
        let variables = variables.iter().map(|(name, value)| (name.to_string(), variable(value.clone())));
        let shared = SharedContext { version: 1, variables: variables.collect() };
        Context::new(Arc::new(shared), vault)
    }

    #[test]
    fn what_a_run_set_is_over_what_was_submitted_is_over_what_is_shared() {
        let plain = |text: &str| ContextValue::Plain(text.into());
        let context = context(&[
            ("A", plain("shared")),
            ("B", plain("shared")),
            ("C", plain("shared")),
            ("D", plain("shared")),
        ]);
        let record = record(&[("B", "own"), ("C", "own")], &[("C", Some("set")), ("D", None)]);
        let variables = context.variables_now(&record).expect("resolved");
        let pairs: Vec<_> = variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(pairs, [("A", "shared"), ("B", "own"), ("C", "set")]);
        assert_eq!(format!("{variables:?}"), r#"{"A", "B", "C"}"#, "names only");
    }

    #[test]
    fn one_that_is_not_to_be_had_fails_those_that_would_see_it() {
        let context = context(&[("GONE", ContextValue::File("/no/such/file".into()))]);
        assert!(context.blocks());
        let failure = context.variables_now(&record(&[], &[])).expect_err("it is gone");
        assert_eq!((failure.kind.as_str(), failure.stage.as_deref()), ("start_failed", Some("context")));
        assert!(failure.message.contains("`GONE`") && failure.message.contains("/no/such/file"));
        assert!(context.variables_now(&record(&[("GONE", "own")], &[])).is_ok());
        assert!(context.variables_now(&record(&[], &[("GONE", None)])).is_ok());
    }
}
