//! Many who follow one log: each gets all of it, in order, whenever it comes and however slow it is.

use std::fs;

use runward::job::{RunnerId, State};
use serde_json::{Value, json};

use crate::{
    client::{Request, Streaming},
    rig::Rig,
};

const OUT: u8 = 1;
const ERR: u8 = 2;
/// Bytes of a frame before its data.
const HEADER: usize = 16;

fn follow(rig: &Rig, id: RunnerId, query: &str) -> Streaming {
    rig.unix().open(&Request::new("GET", &format!("/v1/runners/{id}/logs?follow{query}")))
}

/// The next line of ndjson.
fn line(follower: &mut Streaming) -> Value {
    serde_json::from_str(&follower.take_until("\n")).expect("a line of JSON")
}

#[test]
fn all_who_follow_one_log_get_all_of_it() {
    let rig = Rig::start();
    let id = rig.running("hold");
    // More than are served without any pause.
    let mut early: Vec<_> = (0..40).map(|_| follow(&rig, id, "")).collect();
    let mut errors = follow(&rig, id, "&stream=stderr");
    let mut text = String::new();
    for round in 0..50 {
        let (out, err) = (format!("out {round}\n"), format!("err {round}\n"));
        rig.write_output(id, &[(OUT, out.as_bytes()), (ERR, err.as_bytes())]);
        text += &(out + &err);
        if round == 25 {
            early.extend((0..5).map(|_| follow(&rig, id, "")));
        }
    }
    for follower in &mut early {
        assert_eq!(String::from_utf8_lossy(&follower.take(text.len())), text);
    }
    let of_stderr: String = text.split_inclusive('\n').filter(|line| line.starts_with("err")).collect();
    assert_eq!(String::from_utf8_lossy(&errors.take(of_stderr.len())), of_stderr);
    rig.jobs.exit(id, 0);
    for follower in early {
        assert_eq!(follower.rest().text(), "");
    }
}

#[test]
fn who_reconnects_by_offset_goes_on_where_it_was() {
    let rig = Rig::start();
    let id = rig.running("hold");
    let mut other = follow(&rig, id, "");
    let mut follower = follow(&rig, id, "&format=ndjson");
    let mut next = json!(0);
    for round in 0..20 {
        let data = format!("{round:02}\n");
        rig.write_output(id, &[(OUT, data.as_bytes())]);
        let line = line(&mut follower);
        assert_eq!((&line["offset"], &line["text"]), (&next, &json!(data)));
        next = line["next"].clone();
        if round % 3 == 0 {
            follower = follow(&rig, id, &format!("&format=ndjson&offset={next}"));
        }
    }
    assert_eq!(other.take(60).len(), 60);
}

#[test]
fn nobody_is_misled_by_where_another_begins() {
    let rig = Rig::start();
    let id = rig.running("hold");
    rig.write_output(id, &[(OUT, b"one\n")]);
    // In the middle of a piece, and where there is nothing yet for long.
    let mut middle = follow(&rig, id, "&offset=3");
    let far = follow(&rig, id, "&offset=1000000000000");
    let mut all = follow(&rig, id, "");
    let mut last = follow(&rig, id, "&tail=0");
    rig.write_output(id, &[(OUT, b"two\n")]);
    assert_eq!(middle.take(4), b"two\n");
    assert_eq!(last.take(4), b"two\n");
    assert_eq!(all.take(8), b"one\ntwo\n");
    rig.jobs.exit(id, 0);
    assert_eq!(far.rest().text(), "");
}

#[test]
fn who_is_slow_is_told_of_every_hole() {
    let rig = Rig::start();
    let id = rig.running("hold");
    let mut fast = follow(&rig, id, "");
    let mut slow = follow(&rig, id, "&format=ndjson");
    let twin = follow(&rig, id, "&format=ndjson");
    let (data, segments, frames) = (vec![b'x'; 50_000], 20_u64, 4_u64);
    let frame = (HEADER + data.len()) as u64;
    rig.write_output(id, &[(OUT, &data)]);
    assert_eq!(line(&mut slow)["offset"], 0);
    // It takes nothing now, and the log goes on: far more than the sockets hold, the oldest of it is deleted.
    let start = |segment: u64| segment * frames * frame;
    for segment in 0..segments {
        let first = u64::from(segment == 0);
        for _ in first..frames {
            rig.write_segment(id, start(segment), &[(OUT, &data)]);
            fast.take(data.len());
        }
        if segment >= 8 {
            let dir = rig.supervisor.log_dir(id, 1, 1);
            fs::remove_file(dir.join(format!("output.{:020}", start(segment - 8)))).expect("removed");
        }
    }
    rig.jobs.exit(id, 0);
    rig.until(id, |record| record.state == State::Closed);
    for follower in [slow, twin] {
        let text = follower.rest().text();
        let mut at = None;
        for line in text.lines() {
            let line: Value = serde_json::from_str(line).expect("a line of JSON");
            let (from, to) = match &line["gap"] {
                Value::Null => (&line["offset"], &line["next"]),
                gap => (&gap["from"], &gap["to"]),
            };
            assert!(at.is_none_or(|at| Some(at) == from.as_u64()), "after {at:?} came {line}");
            at = to.as_u64();
        }
        assert_eq!(at, Some(start(segments)), "up to the end");
    }
}

#[test]
fn following_a_log_that_is_purged_ends_with_its_runner() {
    let rig = Rig::start();
    let id = rig.running("hold");
    let mut follower = follow(&rig, id, "");
    rig.write_output(id, &[(OUT, b"one\n")]);
    assert_eq!(follower.take(4), b"one\n");
    fs::remove_dir_all(rig.supervisor.log_dir(id, 1, 1)).expect("removed");
    rig.jobs.exit(id, 0);
    assert_eq!(follower.rest().text(), "");
}
