//! What a job's environment starts from: a short allow-list, fresh for each attempt.

use std::{collections::BTreeMap, ffi::OsString};

use super::Variables;
use crate::{
    job::{AttemptKey, Record},
    process,
};

/// What passes from the daemon's environment to a job's. Everything else stays behind: `NOTIFY_SOCKET`,
/// tokens, credentials.
const ALLOWED: &[&str] = &["HOME", "LANG", "LC_ALL", "LOGNAME", "PATH", "SHELL", "TMPDIR", "TZ", "USER"];

/// Where programs are found if the daemon has no `PATH` itself.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The allow-listed variables, as the daemon was started with them.
#[derive(Clone, Debug)]
pub struct Environment(BTreeMap<OsString, OsString>);

impl Environment {
    /// From the daemon's own environment.
    pub fn inherit() -> Self {
        let mut variables: BTreeMap<OsString, OsString> =
            ALLOWED.iter().filter_map(|name| Some((OsString::from(name), std::env::var_os(name)?))).collect();
        variables.entry("PATH".into()).or_insert_with(|| PATH.into());
        Self(variables)
    }

    /// A job's environment: the allow-list, the user's, the context's variables, the job's own, and runward's marks.
    pub(super) fn of(
        &self,
        record: &Record,
        key: AttemptKey,
        user: Option<&nix::unistd::User>,
        context: &Variables,
        own: &BTreeMap<String, String>,
    ) -> Vec<(OsString, OsString)> {
        let mut variables = self.0.clone();
        if let Some(user) = user {
            variables.insert("HOME".into(), user.dir.clone().into());
            variables.insert("SHELL".into(), user.shell.clone().into());
            for name in ["USER", "LOGNAME"] {
                variables.insert(name.into(), user.name.clone().into());
            }
        }
        for (name, value) in context.iter().chain(own) {
            variables.insert(name.into(), value.into());
        }
        variables.insert("RUNWARD_RUNNER".into(), record.id.to_string().into());
        variables.extend([process::recovery::mark(key.as_u128())]);
        variables.into_iter().collect()
    }
}
