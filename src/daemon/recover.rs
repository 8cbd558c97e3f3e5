//! What a start finds: the store, the evidence of what was executed, and what is left of an earlier daemon's jobs.

use std::{io, path::PathBuf, time::Duration};

use jiff::Timestamp;
use tokio::sync::watch;

use super::exit::{StartError, system};
use crate::{
    job::{EventKind, Record, RunnerId, SharedContext},
    kinds,
    metrics::Metrics,
    process::{
        self,
        containment::{self, Tier},
        spool::{self, Found, Slots},
    },
    reload::limits,
    secrets::{self, SecretsLost, Vault},
    settings::Settings,
    state_dir::StateDir,
    store::{self, Lookup, OpenError, Tally},
    supervisor::{
        self,
        core::{Core, Now},
        ports::{Batch, ContextChange, EventLog, Records},
        recovery::{self, Evidence},
    },
};

/// What recovery leaves for the supervisor.
pub(super) struct Recovered {
    pub(super) core: Core,
    pub(super) log: Box<dyn EventLog>,
    pub(super) lookup: Lookup,
    pub(super) last_seq: u64,
    pub(super) tally: watch::Receiver<Tally>,
}

/// Opens the store and has it say what became of the jobs of an earlier daemon.
///
/// # Errors
/// When the store can't be used or tells less than what was executed; nothing is changed then.
pub(super) fn recover(
    state: &StateDir,
    settings: &Settings,
    tier: &Tier,
    boot_id: &str,
    metrics: &Metrics,
    forget_secrets: bool,
) -> Result<Recovered, StartError> {
    let broken = |error| StartError::Store { path: state.database(), error };
    let sql = |error: rusqlite::Error| broken(OpenError::from(error));
    let mut log = store::open(&state.database(), state.was_used()).map_err(broken)?;
    let lookup = Lookup::open(&state.database()).map_err(broken)?;
    let executed = state.last_executed().map_err(system("the output of earlier jobs"))?;
    if let Some(id) = executed.and_then(|name| name.parse::<RunnerId>().ok())
        && lookup.load(id).map_err(|error| broken(OpenError::Damaged(error.0)))?.is_none()
    {
        return Err(broken(OpenError::Forgotten(id)));
    }
    let slots = Slots::read(&state.slots()).map_err(system("what an earlier daemon's jobs left"))?;
    if slots.latest > Some(log.last_seq().map_err(sql)?) {
        return Err(broken(OpenError::ForgottenStart));
    }
    // Before anything is changed: a start that is refused leaves all as it was.
    let vault = Vault::find(state.path(), credentials())?;
    let context = lookup.context().map_err(broken)?;
    match secrets::check_sealed(vault.as_ref(), &context) {
        Err(lost) if forget_secrets => forget(&mut log, &context, &lost)?,
        checked => checked?,
    }
    let under_way = lookup.under_way().map_err(broken)?;
    metrics.webhooks.pending.add(lookup.messages_left().map_err(broken)?);
    sweep(tier, &under_way).map_err(system("what an earlier daemon's jobs left"))?;
    let last_seq = log.last_seq().map_err(sql)?;
    let count = under_way.len();
    let now = Now { wall: Timestamp::now(), mono: Duration::ZERO, jitter: supervisor::jitter };
    let batch = recovery::plan(
        under_way,
        |record| evidence(state, &slots, boot_id, record, &lookup),
        last_seq + 1,
        now,
    )
    .map_err(|illegal| StartError::Recovery(illegal.to_string()))?;
    let last_seq = batch.events.last().map_or(last_seq, |event| event.seq);
    for event in &batch.events {
        if let EventKind::AttemptEnded { outcome, error, .. } = &event.kind {
            let error = error.as_ref().map(|error| error.message.as_str());
            tracing::warn!(runner = %event.runner, %outcome, error, "ended with the earlier daemon");
        }
    }
    if !batch.events.is_empty() {
        log.append(&batch).map_err(StartError::Append)?;
        supervisor::count_durable(metrics, &batch, &[]);
    }
    for error in &slots.damaged {
        tracing::warn!(%error, "how a job ended is not known");
    }
    slots.forget();
    state.clear_files().map_err(system("what an earlier daemon's jobs left"))?;
    let mut core = Core::new(limits(settings), boot_id.to_owned(), last_seq + 1);
    core.configure(settings.queues.clone(), lookup.queues().map_err(broken)?);
    core.set_context(lookup.context().map_err(broken)?);
    lookup.waiting(|restored| core.restore(restored, now)).map_err(broken)?;
    for record in lookup.idle().map_err(broken)? {
        core.restore_idle(record, now);
    }
    let queued = core.counts().queued;
    if count + queued > 0 {
        tracing::info!(queued, under_way = count, "recovered what an earlier daemon left");
    }
    Ok(Recovered { core, tally: log.tally(), log: Box::new(log), lookup, last_seq })
}

/// Unsets secrets that nobody can have any more.
fn forget(log: &mut impl EventLog, context: &SharedContext, lost: &SecretsLost) -> Result<(), StartError> {
    let unset =
        |(version, name): (u64, &String)| ContextChange { version, name: name.clone(), variable: None };
    let changes = (context.version + 1..).zip(&lost.names).map(unset).collect();
    log.append(&Batch { context: changes, ..Batch::default() }).map_err(StartError::Append)?;
    tracing::warn!(names = lost.names.join(", "), "secrets whose key is lost were unset: set them again");
    Ok(())
}

/// Where systemd puts credentials.
pub(super) fn credentials() -> Option<PathBuf> {
    std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from)
}

/// Kills what may be left when daemon, keeper and shims were killed at once. Shims do it otherwise.
fn sweep(tier: &Tier, under_way: &[Record]) -> io::Result<()> {
    if let Tier::Cgroup { base } = tier {
        containment::sweep_leftovers(base)?;
    }
    let marks: Vec<u128> =
        under_way.iter().filter_map(|record| Some(record.attempt()?.key.as_u128())).collect();
    if !marks.is_empty() {
        let killed = process::recovery::sweep_marked(&marks)?;
        if killed > 0 {
            tracing::warn!(killed, "processes of an earlier daemon's jobs were killed");
        }
    }
    Ok(())
}

fn evidence(state: &StateDir, slots: &Slots, boot_id: &str, record: &Record, lookup: &Lookup) -> Evidence {
    let (Some(attempt), Some((run, number))) = (record.attempt(), record.position()) else {
        return Evidence::Unknown;
    };
    if record.job().process().is_none() {
        // No shim vouches for it. *Go* follows the commit of its start, so it may have been given.
        return Evidence::Unknown;
    }
    let found = match slots.find(attempt.key.as_u128()) {
        Found::NeverStarted => {
            let dir = crate::supervisor::attempt_dir(&state.logs(), record.id, run, number);
            spool::find_in_attempt(&dir)
        }
        found => found,
    };
    match found {
        // After a power loss its absence proves nothing: no slot is ever synced. Nor does it where there were none.
        Found::NeverStarted if *attempt.boot_id == *boot_id && state.had_slots() => Evidence::NotExecuted,
        Found::NeverStarted | Found::Unknown => Evidence::Unknown,
        Found::Ended(spooled) => {
            let mut end = kinds::end_of_spooled(&spooled, record.job());
            // The shim knew of it before the daemon recorded what came before it.
            end.at = end.at.max(end.at.and(lookup.at(record.last_seq)));
            Evidence::Ended(end)
        }
    }
}
