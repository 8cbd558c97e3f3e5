//! Everything that is counted, in the text that Prometheus reads.

use std::{
    cmp::Reverse,
    time::{Duration, Instant},
};

use axum::{
    extract::State,
    http::{Uri, header},
    response::{IntoResponse, Response},
};
use tokio::{runtime::Handle, task::JoinSet, time::timeout};

use super::no_parameters;
use crate::{
    http::{Shared, problem::Problem},
    metrics::{Process, Text, Type},
    supervisor::{Stage, core::QueueStatus},
};

/// Queues with samples of their own. Their names are the users': beyond these, which are those that were configured or
/// changed and then those with most jobs, all others are one.
const QUEUES: usize = 100;

/// What the others are: no name of a queue.
const OTHERS: &str = "(others)";

/// How long a loop is waited for. Who scrapes gives up after ten seconds, mostly, and the rest is told without it.
const LOOP: Duration = Duration::from_secs(2);

/// What is counted and measured, for Prometheus; `docs/metrics.md` has the names.
#[utoipa::path(get, path = "/metrics", tag = "about",
    responses((status = 200, description = "Prometheus' text format, version 0.0.4", body = String)))]
pub(super) async fn metrics(State(shared): State<Shared>, uri: Uri) -> Result<Response, Problem> {
    no_parameters(&uri)?;
    let metrics = &shared.api.metrics;
    let asked = Instant::now();
    let (queues, in_process) =
        tokio::join!(timeout(LOOP, shared.api.supervisor.queues()), lag_of(metrics.in_process.as_ref()),);
    let round_trip = asked.elapsed();
    let mut text = Text::default();
    daemon(&shared, &mut text);
    by_queue(&queues.ok().and_then(Result::ok).unwrap_or_default(), &mut text);
    metrics.write(&mut text);
    let seconds = |time: Duration| time.as_secs_f64();
    let help = "How long the supervisor took to answer this scrape's question, 2 s at the most.";
    text.gauge("runward_core_round_trip_seconds", help, seconds(round_trip.min(LOOP)));
    let help =
        "How long a new task waited for the loop of in-process jobs during this scrape, 2 s at the most.";
    text.gauge("runward_in_process_loop_lag_seconds", help, seconds(in_process));
    shared.requests.write(&mut text);
    let process = tokio::task::spawn_blocking(Process::read).await.unwrap_or_default();
    process.write(&mut text, shared.api.info.started_at.as_millisecond() as f64 / 1e3);
    Ok(([(header::CONTENT_TYPE, Text::CONTENT_TYPE)], text.into_string()).into_response())
}

/// How long something new waits for a loop.
async fn lag_of(runtime: Option<&Handle>) -> Duration {
    let Some(runtime) = runtime else { return Duration::ZERO };
    let mut probe = JoinSet::new();
    let asked = Instant::now();
    probe.spawn_on(async move { asked.elapsed() }, runtime);
    match timeout(LOOP, probe.join_next()).await {
        Ok(Some(Ok(lag))) => lag,
        Ok(Some(Err(_)) | None) | Err(_) => LOOP,
    }
}

/// Where the daemon is.
fn daemon(shared: &Shared, text: &mut Text) {
    let name = "runward_build_info";
    text.family(name, Type::Gauge, "Always 1; its labels tell what runs.");
    let (version, tier) = (&*shared.api.info.version, &*shared.api.info.containment.tier);
    text.sample(name, &[("version", version), ("containment", tier)], 1);
    let (stage, counts) = {
        let status = shared.api.supervisor.status();
        let status = status.borrow();
        (status.stage.clone(), status.counts)
    };
    let (ready, failing, left) = match stage {
        Stage::Ready => (1, 0, None),
        Stage::Recovering | Stage::Ended => (0, 0, None),
        Stage::StoreFailing { reason: _ } => (0, 1, None),
        Stage::Draining { deadline } => (0, 0, Some(deadline.saturating_duration_since(Instant::now()))),
    };
    text.gauge("runward_ready", "1 while the daemon takes jobs, else 0.", ready);
    text.gauge("runward_store_failing", "1 while the store takes nothing, else 0.", failing);
    text.gauge("runward_draining", "1 while the daemon stops, else 0.", u8::from(left.is_some()));
    let help = "While the daemon stops: the time until what still runs is killed; else 0.";
    text.gauge("runward_drain_left_seconds", help, left.unwrap_or_default().as_secs_f64());
    text.gauge("runward_runners_queued", "Runners that wait for their turn.", counts.queued);
    text.gauge("runward_runners_active", "Runners from their start to their close.", counts.active);
    let limits = shared.config().limits;
    text.gauge("runward_max_running", "Slots for jobs that are processes.", limits.max_running);
    text.gauge("runward_max_in_process", "Slots for jobs that run in the daemon.", limits.max_in_process);
    text.gauge("runward_max_queued", "Runners that may wait.", limits.max_queued);
    let last = *shared.api.supervisor.last_event().borrow();
    text.gauge("runward_events_last_seq", "The place of the last event on record.", last);
}

fn by_queue(queues: &[QueueStatus], text: &mut Text) {
    let mut queues: Vec<&QueueStatus> = queues.iter().collect();
    let decided = |queue: &QueueStatus| queue.changed || queue.settings != Default::default();
    queues.sort_by_key(|queue| Reverse((decided(queue), queue.queued + queue.running)));
    let (own, others) = queues.split_at(queues.len().min(QUEUES));
    let mut family = |name: &str, help: &str, of: fn(&QueueStatus) -> usize| {
        text.family(name, Type::Gauge, help);
        for queue in own {
            text.sample(name, &[("queue", &queue.name)], of(queue));
        }
        if !others.is_empty() {
            text.sample(name, &[("queue", OTHERS)], others.iter().map(|queue| of(queue)).sum::<usize>());
        }
    };
    family("runward_queue_queued", "Runners that wait, by queue.", |queue| queue.queued);
    family("runward_queue_running", "Runners that run, by queue.", |queue| queue.running);
    family("runward_queue_paused", "Queues that are paused.", |queue| usize::from(queue.settings.paused));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::QueueSettings;

    #[test]
    fn the_queues_with_samples_of_their_own_are_so_many_and_the_others_are_one() {
        let queue = |number: usize| QueueStatus {
            name: format!("q{number}"),
            settings: QueueSettings { paused: number == 0, max_running: None },
            changed: false,
            queued: number,
            ready: 0,
            running: 1,
            slots: 1,
        };
        let queues: Vec<_> = (0..QUEUES + 50).map(queue).collect();
        let mut text = Text::default();
        by_queue(&queues, &mut text);
        let text = text.into_string();
        let samples = |name: &str| text.lines().filter(|line| line.starts_with(name)).count();
        assert_eq!(samples("runward_queue_queued{"), QUEUES + 1);
        assert!(text.contains("runward_queue_paused{queue=\"q0\"} 1"), "what was decided of is there");
        assert!(text.contains("runward_queue_running{queue=\"(others)\"} 50\n"));
        let left_out: usize = (1..=50).sum();
        assert!(text.contains(&format!("runward_queue_queued{{queue=\"(others)\"}} {left_out}\n")), "{text}");
    }
}
