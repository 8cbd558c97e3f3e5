//! What differs between two settings, key by key.

use std::{collections::BTreeMap, time::Duration};

use super::{Listen, LogFormat, Retention, Settings};
use crate::job::QueueSettings;

/// A setting that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Which: `jobs.max_running`.
    pub key: String,
    /// What it was.
    pub from: String,
    /// What it is now.
    pub to: String,
    /// Whether it can only be taken over by another start of the daemon.
    pub needs_restart: bool,
}

/// Taken over while the daemon runs.
const LIVE: bool = false;
/// Taken over by another start.
const RESTART: bool = true;

impl Settings {
    /// What differs in `newer`. There are no secrets in settings.
    pub fn differences(&self, newer: &Self) -> Vec<Difference> {
        let (old, new) = (self.values(), newer.values());
        let keys: BTreeMap<&String, bool> =
            old.iter().chain(&new).map(|(key, (_, needs_restart))| (key, *needs_restart)).collect();
        let shown =
            |values: &Values, key| values.get(key).map_or_else(|| "unset".into(), |(shown, _)| shown.clone());
        keys.into_iter()
            .map(|(key, needs_restart)| {
                let (from, to) = (shown(&old, key), shown(&new, key));
                Difference { key: key.clone(), from, to, needs_restart }
            })
            .filter(|difference| difference.from != difference.to)
            .collect()
    }

    /// These settings but for what needs a restart, which stays as it is in `running`.
    #[must_use]
    pub fn without_restart(self, running: &Self) -> Self {
        Self {
            state_dir: running.state_dir.clone(),
            listen: running.listen.clone(),
            require_cgroup: running.require_cgroup,
            log_format: running.log_format,
            ..self
        }
    }

    fn values(&self) -> Values {
        let Self {
            state_dir,
            listen,
            max_running,
            max_in_process,
            queues,
            max_queued,
            cancel_grace,
            drain_timeout,
            shutdown_timeout,
            segment_bytes,
            max_bytes_per_attempt,
            require_cgroup,
            max_body_bytes,
            allowed_hosts,
            http_jobs_own_api,
            http_jobs_link_local,
            retention: Retention { max_age, max_records, max_log_bytes },
            log_filter,
            log_format,
        } = self;
        let mut values = Values::new();
        let mut set = |key: &str, value: String, needs_restart| {
            values.insert(key.into(), (value, needs_restart));
        };
        let listen: Vec<String> = listen.iter().map(shown).collect();
        set("state_dir", state_dir.display().to_string(), RESTART);
        set("listen", format!("{listen:?}"), RESTART);
        set("jobs.max_running", max_running.to_string(), LIVE);
        set("jobs.max_in_process", max_in_process.to_string(), LIVE);
        set("jobs.max_queued", max_queued.to_string(), LIVE);
        set("jobs.cancel_grace", time(*cancel_grace), LIVE);
        set("jobs.drain_timeout", time(*drain_timeout), LIVE);
        set("shutdown.timeout", time(*shutdown_timeout), LIVE);
        set("logs.segment_bytes", segment_bytes.to_string(), LIVE);
        set("logs.max_bytes_per_attempt", max_bytes_per_attempt.to_string(), LIVE);
        let containment = if *require_cgroup { "cgroup2" } else { "subreaper" };
        set("process.min_containment", containment.into(), RESTART);
        set("http.max_body_bytes", max_body_bytes.to_string(), LIVE);
        set("http.allowed_hosts", format!("{allowed_hosts:?}"), LIVE);
        set("http_jobs.allow_own_api", http_jobs_own_api.to_string(), LIVE);
        set("http_jobs.allow_link_local", http_jobs_link_local.to_string(), LIVE);
        set("retention.max_age", max_age.map_or_else(off, time), LIVE);
        set("retention.max_records", max_records.map_or_else(off, |max| max.to_string()), LIVE);
        set("retention.max_log_bytes", max_log_bytes.map_or_else(off, |max| max.to_string()), LIVE);
        set("telemetry.filter", log_filter.clone(), LIVE);
        let format = match log_format {
            LogFormat::Auto => "auto",
            LogFormat::Text => "text",
            LogFormat::Json => "json",
            LogFormat::Journald => "journald",
        };
        set("telemetry.format", format.into(), RESTART);
        for (name, QueueSettings { max_running, paused }) in queues {
            set(&format!("queues.{name}.paused"), paused.to_string(), LIVE);
            if let Some(max) = max_running {
                set(&format!("queues.{name}.max_running"), max.to_string(), LIVE);
            }
        }
        values
    }
}

/// By their keys: how they are shown, and whether they need a restart.
type Values = BTreeMap<String, (String, bool)>;

fn off() -> String {
    "off".into()
}

fn time(duration: Duration) -> String {
    format!("{duration:?}")
}

fn shown(listen: &Listen) -> String {
    match listen {
        Listen::Unix(path) => format!("unix:{}", path.display()),
        Listen::Tcp(address) => address.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{Flags, load};

    fn with(text: &str) -> Settings {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), text).expect("written");
        load(&Flags { config: Some(file.path().into()), state_dir: Some("/x".into()), ..Flags::default() })
            .expect(text)
    }

    #[test]
    fn what_differs_is_named_with_both_values() {
        let old = with("[jobs]\nmax_running = 3\n[queues.a]\nmax_running = 1\n");
        let new = with("listen = \"unix:x\"\n[jobs]\nmax_running = 4\n[retention]\nmax_age = \"off\"\n");
        let found: Vec<String> = (old.differences(&new).into_iter())
            .map(|Difference { key, from, to, needs_restart }| {
                format!("{key}: {from} → {to}, {needs_restart}")
            })
            .collect();
        let expected = [
            "jobs.max_running: 3 → 4, false",
            r#"listen: ["unix:api.sock", "127.0.0.1:7711"] → ["unix:x"], true"#,
            "queues.a.max_running: 1 → unset, false",
            "queues.a.paused: false → unset, false",
            "retention.max_age: 2592000s → off, false",
        ];
        assert_eq!(found, expected);
        let taken = new.clone().without_restart(&old);
        assert!(taken.differences(&new).iter().all(|difference| difference.needs_restart));
        assert!(old.differences(&taken).iter().all(|difference| !difference.needs_restart));
        assert_eq!(old.differences(&old), []);
    }
}
