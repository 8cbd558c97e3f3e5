//! What a person sees while nothing else is to be seen: one line, on a terminal only.

use std::time::Duration;

use hyper::Method;
use jiff::Timestamp;
use serde_json::Value;

use super::{
    client::{Ask, Client},
    record::{self, text},
};

/// How often it changes. There is no event for the time that passes.
pub(super) const TICK: Duration = Duration::from_secs(1);

/// Cells of a bar.
const BAR: usize = 20;

/// What a runner is at. `None`: it runs, or there is no answer, and nothing to say of it.
pub(super) async fn status(client: &Client, id: &str) -> Option<String> {
    let explained = client.get(&format!("/v1/runners/{id}/explain")).await.ok()?;
    if text(&explained, "/facts/cancel_reason") == "shutdown" && text(&explained, "/state") != "closed" {
        let ready = client.send(Ask::new(Method::GET, "/readyz")).await.ok()?.json().await.ok()?;
        return of_drain(&ready);
    }
    of_run(&explained)
}

/// A bar for a part of something.
fn bar(done: f64) -> String {
    let full = ((done.clamp(0.0, 1.0)) * BAR as f64).round() as usize;
    format!("{}{}", "█".repeat(full), "░".repeat(BAR - full))
}

/// What a runner is at, from its explanation. `None`: it runs, and there is nothing to wait for but its end.
fn of_run(explained: &Value) -> Option<String> {
    let now = Timestamp::now();
    match text(explained, "/state") {
        "running" | "closed" => None,
        "cancelling" | "draining" | "queued" => Some(wait(explained, now)),
        state => Some(format!("{state} …")),
    }
}

/// What it waits for, with a bar if it is known until when.
fn wait(explained: &Value, now: Timestamp) -> String {
    let at = |pointer| text(explained, pointer).parse::<Timestamp>().ok();
    let sentence = text(explained, "/sentence");
    match (at("/facts/since"), at("/facts/until")) {
        (Some(since), Some(until)) if until > now && until > since => {
            let part = (now.duration_since(since).as_secs_f64()) / until.duration_since(since).as_secs_f64();
            let left = Duration::try_from(until.duration_since(now)).unwrap_or_default();
            format!("{} {} left. {sentence}", bar(part), record::span(left))
        }
        (Some(since), _) => {
            let since = Duration::try_from(now.duration_since(since)).unwrap_or_default();
            format!("{}. {sentence}", record::span(since))
        }
        (None, _) => sentence.to_owned(),
    }
}

/// How far the stop of the daemon is, from its answer to `/readyz`.
fn of_drain(ready: &Value) -> Option<String> {
    let number = |name: &str| ready.get(name).and_then(Value::as_u64);
    let active = number("active")?;
    let left = Duration::from_secs(number("seconds_left")?);
    Some(format!("the daemon is stopping: {active} jobs still run, {} left", record::span(left)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_bar_stands_where_the_time_is() {
        let now: Timestamp = "2026-01-01T00:00:15Z".parse().expect("a time");
        let explained = json!({"state": "cancelling", "sentence": "It cleans up.",
            "facts": {"since": "2026-01-01T00:00:00Z", "until": "2026-01-01T00:00:30Z"}});
        assert_eq!(wait(&explained, now), "██████████░░░░░░░░░░ 15 s left. It cleans up.");
        let open = json!({"sentence": "It waits.", "facts": {"since": "2026-01-01T00:00:00Z"}});
        assert_eq!(wait(&open, now), "15 s. It waits.");
        assert_eq!(of_run(&json!({"state": "running"})), None);
    }

    #[test]
    fn a_drain_is_told_in_jobs_and_time() {
        let ready = json!({"status": "draining", "active": 2, "queued": 1, "seconds_left": 61});
        assert_eq!(
            of_drain(&ready).as_deref(),
            Some("the daemon is stopping: 2 jobs still run, 1 min 1 s left")
        );
        assert_eq!(of_drain(&json!({"status": "ready"})), None);
    }
}
