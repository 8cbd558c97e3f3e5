//! Reads the settings again while the daemon runs: on SIGHUP, and when a client asks.
//!
//! They are read and checked as a whole first. What is wrong changes nothing and is told by name. What differs is logged
//! key by key; what can't change while the daemon runs is named and stays as it was. No job is touched: limits hold for
//! what starts from then on.

use std::sync::Arc;

use tokio::{
    sync::{mpsc, watch},
    task::spawn_blocking,
};

use crate::{
    http::{self, AskedBy, Changed, ReloadRequest, Reloaded},
    kinds::{HttpRules, LogQuota},
    metrics::Metrics,
    settings::{self, Difference, Flags, Retention, Settings},
    supervisor::{Supervisor, core::Limits},
    telemetry,
};

/// Requests that wait. A signal that finds no room is not lost in effect: one of those before it reads the same.
pub const REQUESTS: usize = 4;

/// Where settings go that change while the daemon runs.
#[derive(Debug)]
pub struct Live {
    /// To the control plane.
    pub http: watch::Sender<Arc<http::Config>>,
    /// To what forgets.
    pub retention: watch::Sender<Retention>,
    /// To `http` jobs and webhooks.
    pub rules: watch::Sender<HttpRules>,
    /// To attempts that begin.
    pub quota: watch::Sender<LogQuota>,
    /// To the log.
    pub filter: telemetry::Filter,
}

impl Live {
    /// Takes over all that is not the supervisor's, but for what is logged.
    fn set(&self, settings: &Settings) {
        self.http.send_modify(|config| {
            let config = Arc::make_mut(config);
            config.max_body = settings.max_body_bytes;
            config.drain_timeout = settings.drain_timeout;
            config.hosts.clone_from(&settings.allowed_hosts);
            config.limits = limits(settings);
        });
        self.retention.send_if_modified(|kept| {
            let differs = *kept != settings.retention;
            *kept = settings.retention;
            differs
        });
        self.rules.send_modify(|rules| {
            rules.allow_own_api = settings.http_jobs_own_api;
            rules.allow_link_local = settings.http_jobs_link_local;
        });
        self.quota.send_replace(quota(settings));
    }
}

fn keys(list: &[Changed]) -> String {
    list.iter().map(|changed| changed.key.as_str()).collect::<Vec<_>>().join(", ")
}

/// What the settings say of limits.
pub fn limits(settings: &Settings) -> Limits {
    Limits {
        max_running: settings.max_running,
        max_in_process: settings.max_in_process,
        max_queued: settings.max_queued,
        cancel_grace: settings.cancel_grace,
        shutdown: settings.shutdown_timeout,
    }
}

/// What the settings say of output.
pub fn quota(settings: &Settings) -> LogQuota {
    LogQuota { segment_bytes: settings.segment_bytes, max_bytes: settings.max_bytes_per_attempt }
}

/// What reads the settings again.
pub struct Reloader {
    /// What the command line says, which stays.
    pub flags: Flags,
    /// What is in force.
    pub settings: Settings,
    /// What the machine allows: fewer jobs than the settings say, it may be.
    pub fit: fn(&mut Settings),
    /// Where they go.
    pub live: Live,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Told when reading begins (`true`) and when it is over: for whoever manages the daemon as a service.
    pub notify: Box<dyn Fn(bool) + Send + Sync>,
}

impl Reloader {
    /// Reads the settings, those of `supervisor` too, whenever it is asked to, until nobody can ask any more.
    pub async fn run(mut self, supervisor: Supervisor, mut requests: mpsc::Receiver<ReloadRequest>) {
        while let Some(ReloadRequest { by, answer }) = requests.recv().await {
            (self.notify)(true);
            let reloaded = self.reload(&supervisor, &by).await;
            (self.notify)(false);
            if let Some(answer) = answer {
                // The client may have gone.
                drop(answer.send(reloaded));
            }
        }
    }

    async fn reload(&mut self, supervisor: &Supervisor, by: &AskedBy) -> Result<Reloaded, String> {
        let by = match by {
            AskedBy::Signal => "SIGHUP",
            AskedBy::Client(client) => client,
        };
        let reloaded = self.read_and_set(supervisor).await;
        match &reloaded {
            Ok(Reloaded { changed, needs_restart }) => {
                self.metrics.reloads.taken.inc();
                for Changed { key, from, to } in changed {
                    tracing::info!(key, from, to, "a setting was changed");
                }
                for Changed { key, from, to } in needs_restart {
                    tracing::warn!(key, from, to, "a setting needs a restart, and stays as it was");
                }
                // Not before: what is logged from now on may be less. Or more, so the line after it names all keys.
                self.live.filter.set(&self.settings.log_filter);
                let (changed, needs_restart) = (keys(changed), keys(needs_restart));
                tracing::info!(by, changed, needs_restart, "the settings were read again");
            }
            Err(error) => {
                self.metrics.reloads.refused.inc();
                tracing::error!(by, error, "the settings were read again and are wrong: nothing was changed");
            }
        }
        reloaded
    }

    async fn read_and_set(&mut self, supervisor: &Supervisor) -> Result<Reloaded, String> {
        let (flags, fit) = (self.flags.clone(), self.fit);
        let read = spawn_blocking(move || {
            let mut settings = settings::load(&flags)?;
            fit(&mut settings);
            Ok(settings)
        });
        let read: Result<Settings, settings::SettingsError> =
            read.await.map_err(|error| error.to_string())?;
        let read = read.map_err(|error| error.to_string())?;
        let differences = self.settings.differences(&read);
        let settings = read.without_restart(&self.settings);
        // The only one that may still say no: it ends.
        let set = supervisor.set_settings(limits(&settings), settings.queues.clone()).await;
        set.map_err(|refusal| refusal.to_string())?;
        self.live.set(&settings);
        self.settings = settings;
        let (needs_restart, changed): (Vec<_>, Vec<_>) =
            differences.into_iter().partition(|difference| difference.needs_restart);
        let told = |differences: Vec<Difference>| {
            differences
                .into_iter()
                .map(|Difference { key, from, to, .. }| Changed { key, from, to })
                .collect()
        };
        Ok(Reloaded { changed: told(changed), needs_restart: told(needs_restart) })
    }
}
