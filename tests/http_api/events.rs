//! What happened, in pages and streams.

use runward::job::State;

use crate::{client::Request, rig::Rig};

fn stream(target: &str) -> Request {
    Request::new("GET", target).header("accept", "text/event-stream")
}

#[test]
fn a_page_has_them_in_order() {
    let rig = Rig::start();
    let id = rig.running("true");
    rig.until(id, |record| record.state == State::Closed);
    let other = rig.running("hold");
    let page = rig.get(&format!("/v1/runners/{id}/events")).json();
    let kinds: Vec<_> =
        page["items"].as_array().expect("items").iter().map(|event| event["type"].clone()).collect();
    assert_eq!(kinds, ["submitted", "starting", "running", "attempt_ended", "draining", "closed"]);
    assert_eq!(page["next_cursor"], serde_json::Value::Null);
    let first = rig.get(&format!("/v1/runners/{id}/events?limit=2")).json();
    let cursor = first["next_cursor"].as_str().expect("a cursor");
    let rest = rig.get(&format!("/v1/runners/{id}/events?cursor={cursor}")).json();
    assert_eq!(rest["items"][0]["type"], "running");
    assert_eq!(rest["items"].as_array().map(Vec::len), Some(4));
    let all = rig.get("/v1/events?limit=1000").json();
    let runners: Vec<_> =
        all["items"].as_array().expect("items").iter().map(|event| event["runner"].clone()).collect();
    assert!(runners.contains(&id.to_string().into()) && runners.contains(&other.to_string().into()));
}

#[test]
fn a_stream_ends_with_its_runner_and_resumes() {
    let rig = Rig::start();
    let id = rig.running("hold");
    let target = format!("/v1/runners/{id}/events");
    let mut events = rig.unix().open(&stream(&target));
    assert_eq!(events.head.status, 200);
    assert_eq!(events.head.header("content-type"), Some("text/event-stream"));
    events.take_until("event: running\n");
    rig.jobs.exit(id, 3);
    events.take_until("event: closed\n");
    let rest = events.rest().text();
    assert!(rest.contains("\"outcome\":\"failed\""), "{rest}");

    let page = rig.get(&target).json();
    let seqs: Vec<u64> = page["items"]
        .as_array()
        .expect("items")
        .iter()
        .map(|event| event["seq"].as_u64().expect("a seq"))
        .collect();
    let resumed = rig.unix().send(&stream(&target).header("last-event-id", seqs[3].to_string())).text();
    let ids: Vec<u64> = resumed.lines().filter_map(|line| line.strip_prefix("id: ")?.parse().ok()).collect();
    assert_eq!(ids, seqs[4..]);
    let over =
        rig.unix().send(&stream(&target).header("last-event-id", seqs.last().expect("events").to_string()));
    assert_eq!(over.status, 204, "an EventSource would come again for ever");
}

#[test]
fn the_stream_of_all_begins_now_or_where_it_is_told() {
    let rig = Rig::start();
    let before = rig.running("hold");
    let mut now = rig.unix().open(&stream("/v1/events"));
    let mut from_the_first = rig.unix().open(&stream("/v1/events?cursor=0"));
    let after = rig.running("hold");
    now.take_until(&after.to_string());
    assert!(from_the_first.take_until("event: running\n").contains(&before.to_string()));
}

#[test]
fn streams_end_when_the_control_plane_stops() {
    let rig = Rig::start();
    let id = rig.running("hold");
    let streams = [
        rig.unix().open(&stream("/v1/events")),
        rig.unix().open(&stream(&format!("/v1/runners/{id}/events"))),
        rig.unix().open(&Request::new("GET", &format!("/v1/runners/{id}/logs?follow"))),
    ];
    let waits = std::thread::spawn({
        let client = rig.unix();
        move || {
            let request =
                Request::new("POST", "/v1/runners?wait=1h").header("content-type", "application/json");
            client.send(&request.body(r#"{"job": {"command": ["hold"]}, "name": "waits"}"#))
        }
    });
    let mut events = rig.unix().open(&stream("/v1/events?cursor=0"));
    events.take_until("\"name\":\"waits\"");
    drop(rig);
    for stream in streams {
        stream.rest();
    }
    assert_eq!(waits.join().expect("answered").status, 202);
}

#[test]
fn what_was_committed_before_the_control_plane_stops_is_told_before_the_streams_end() {
    let rig = Rig::start();
    let id = rig.running("hold");
    // Many: when the last of them is woken, the control plane is already about to stop.
    let streams: Vec<_> = (0..64)
        .map(|_| {
            let events = rig.unix().open(&stream(&format!("/v1/runners/{id}/events")));
            let output = rig.unix().open(&Request::new("GET", &format!("/v1/runners/{id}/logs?follow")));
            (events, output)
        })
        .collect();
    rig.end_and_stop(id, b"the last words");
    for (events, output) in streams {
        let events = events.rest().text();
        assert!(events.contains("event: closed\n"), "{events}");
        assert_eq!(output.rest().text(), "the last words");
    }
}
