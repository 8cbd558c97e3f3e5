//! Many at once: batches of submissions, cancellations by filter.

use runward::{
    job::{RunnerId, State},
    supervisor::Stage,
};
use serde_json::{Value, json};

use crate::{
    client::{Request, Response},
    rig::Rig,
};

fn job(program: &str, name: &str) -> Value {
    json!({"job": {"command": [program]}, "name": name})
}

fn batch(rig: &Rig, key: Option<&str>, runners: &[Value]) -> Response {
    let request = Request::new("POST", "/v1/runners:batch").header("content-type", "application/json");
    let request = key.into_iter().fold(request, |request, key| request.header("idempotency-key", key));
    rig.ask(request.body(json!({ "runners": runners }).to_string()))
}

fn ids(answer: &Response) -> Vec<String> {
    assert_eq!(answer.status, 200, "{}", answer.text());
    let answer = answer.json();
    let items = answer["items"].as_array().expect("items");
    items.iter().map(|item| item["runner"]["id"].as_str().unwrap_or_default().to_owned()).collect()
}

#[test]
fn a_batch_is_answered_item_by_item() {
    let rig = Rig::start();
    let answer = batch(
        &rig,
        None,
        &[
            job("hold", "a"),
            json!({"job": {"command": []}}),
            job("hold", "b"),
            json!({"job": {"command": ["true"]}, "retry": {"max_attempts": 0}}),
            json!(1),
            json!({"job": {"command": ["true"]}, "weight": 900}),
            json!({"job": {"command": {"argv": ["true"], "user": "no such user"}}}),
        ],
    );
    assert_eq!(answer.status, 200, "{}", answer.text());
    let items = answer.json()["items"].clone();
    let statuses: Vec<_> =
        items.as_array().expect("items").iter().map(|item| item["status"].clone()).collect();
    assert_eq!(statuses, [201, 422, 201, 422, 422, 422, 422]);
    for (place, name) in [(0, "a"), (2, "b")] {
        let made = &items[place]["runner"];
        assert_eq!((&made["name"], &made["replayed"]), (&json!(name), &json!(false)));
        let id = made["id"].as_str().expect("an id");
        assert_eq!(rig.get(&format!("/v1/runners/{id}")).json()["name"], name);
    }
    for (place, field, says) in [
        (1, "runners[1].job.command", "`runners[1].job.command` must be"),
        (3, "runners[3].retry.max_attempts", "`runners[3].retry.max_attempts` must be"),
        (4, "runners[4]", "`runners[4]` must be a JSON object"),
        (5, "runners[5].weight", "`runners[5].weight` must be 64 at the most"),
        (6, "runners[6].job.command.user", "`runners[6].job.command.user` must be"),
    ] {
        let problem = &items[place]["problem"];
        assert_eq!(problem["field"], field, "{problem}");
        assert!(problem["detail"].as_str().expect("a detail").contains(says), "{problem}");
        assert!(problem["type"].as_str().expect("a type").starts_with("urn:runward:problem:"), "{problem}");
    }
    assert_eq!(rig.get("/v1/runners").json()["items"].as_array().map(Vec::len), Some(2));
}

#[test]
fn a_batch_that_is_sent_again_makes_nothing_new() {
    let rig = Rig::start();
    let jobs: Vec<_> = (0..20).map(|number| job("hold", &format!("n{number}"))).collect();
    let first = ids(&batch(&rig, Some("k"), &jobs));
    let answer = batch(&rig, Some("k"), &jobs);
    assert_eq!(ids(&answer), first);
    assert_eq!(answer.json()["items"][7]["runner"]["replayed"], true);
    // Longer than the first: the rest is new. One that says something else under the same key is refused.
    let mut more = jobs.clone();
    more.push(job("hold", "new"));
    more[3] = job("hold", "other");
    let answer = batch(&rig, Some("k"), &more);
    let again = ids(&answer);
    assert_eq!((&again[..3], &again[4..20]), (&first[..3], &first[4..]));
    let items = answer.json()["items"].clone();
    assert_eq!((&items[3]["status"], &items[20]["status"]), (&json!(422), &json!(201)));
    assert_eq!(items[3]["problem"]["type"], "urn:runward:problem:idempotency-key-reused");
    assert_eq!(items[3]["problem"]["runner"], first[3]);
    assert_eq!(rig.get("/v1/runners").json()["items"].as_array().map(Vec::len), Some(21));
    // In parallel: once each.
    let answers: Vec<_> = std::thread::scope(|scope| {
        let sends: Vec<_> = (0..8).map(|_| scope.spawn(|| ids(&batch(&rig, Some("p"), &jobs)))).collect();
        sends.into_iter().map(|send| send.join().expect("answered")).collect()
    });
    assert!(answers.windows(2).all(|pair| pair[0] == pair[1]), "{answers:?}");
}

#[test]
fn a_batch_that_does_not_fit_is_accepted_as_far_as_it_does() {
    let rig = Rig::with(|limits| (limits.max_running, limits.max_queued) = (1, 3));
    rig.until_stage(|stage| *stage == Stage::Ready);
    let hold = rig.running("hold");
    let jobs: Vec<_> = (0..5).map(|number| job("hold", &format!("n{number}"))).collect();
    let answer = batch(&rig, Some("k"), &jobs);
    let statuses = |answer: &Response| -> Vec<Value> {
        answer.json()["items"].as_array().expect("items").iter().map(|item| item["status"].clone()).collect()
    };
    assert_eq!(statuses(&answer), [201, 201, 201, 503, 503], "{}", answer.text());
    let first = ids(&answer);
    // Those that were accepted are found again, also while there is no room.
    let again = batch(&rig, Some("k"), &jobs);
    assert_eq!((statuses(&again), ids(&again)), (statuses(&answer), first));
    let full = batch(&rig, None, &jobs);
    assert_eq!((full.status, full.problem().as_str()), (503, "queue-full"));
    assert_eq!(full.header("retry-after"), Some("1"));
    rig.bare("DELETE", &format!("/v1/runners/{hold}"));
}

#[test]
fn a_thousand_are_accepted_in_their_order() {
    let rig = Rig::with(|limits| limits.max_running = 1);
    rig.until_stage(|stage| *stage == Stage::Ready);
    rig.running("hold");
    let jobs: Vec<_> = (0..1000).map(|number| job("true", &format!("n{number}"))).collect();
    let ids = ids(&batch(&rig, None, &jobs));
    let page = rig.get("/v1/runners?limit=1000&state=queued").json();
    let mut listed: Vec<_> = (page["items"].as_array().expect("items").iter())
        .map(|runner| runner["id"].as_str().expect("an id").to_owned())
        .collect();
    listed.reverse();
    assert_eq!(listed, ids);
}

#[test]
fn what_fits_the_filter_is_cancelled_and_nothing_else() {
    let rig = Rig::with(|limits| limits.max_running = 2);
    let submit = |queue: &str, team: &str| {
        let body =
            json!({"job": {"command": ["stubborn"]}, "queue": queue, "labels": {"team": team}, "name": "n"});
        rig.accepted(&body)
    };
    let [running, other] = [submit("q", "data"), submit("other", "data")];
    for id in [running, other] {
        rig.until(id, |record| record.state == State::Running);
    }
    let waiting: Vec<RunnerId> = (0..3).map(|_| submit("q", "data")).collect();
    let web = submit("q", "web");
    let cancel = |body: Value| {
        let answer = rig.send("POST", "/v1/runners:cancel", &body);
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()
    };
    let filter = json!({"queue": "q", "label": {"team": "data"}, "name": "n"});
    let answer = cancel(filter.clone());
    assert_eq!(
        (&answer["matched"], &answer["accepted"], &answer["more"]),
        (&json!(4), &json!(4), &json!(false))
    );
    assert_eq!(answer["items"][3]["id"], running.to_string(), "those that wait go first: {answer}");
    for id in waiting {
        let record = rig.until(id, |record| record.state == State::Closed);
        assert!(record.runs.is_empty(), "it never started");
    }
    assert_eq!(rig.until(running, |_| true).state, State::Cancelling);
    assert_eq!(rig.until(other, |_| true).state, State::Running);
    assert_eq!(rig.until(web, |_| true).state, State::Queued);
    // Asking again is no force.
    let again = cancel(filter);
    assert_eq!((&again["matched"], &again["accepted"]), (&json!(1), &json!(0)));
    assert_eq!(again["items"][0], json!({"id": running.to_string(), "result": "already_so"}));
    assert!(!rig.until(running, |_| true).cancel.as_ref().expect("a receipt").forced);
    // Unless it is asked for by name.
    assert_eq!(cancel(json!({"state": ["cancelling"], "queue": "q"}))["accepted"], 1);
    rig.until(running, |record| record.state == State::Closed);
    assert_eq!(cancel(json!({"all": true}))["accepted"], 2);
    assert_eq!(
        cancel(json!({"queue": "nothing"})),
        json!({"matched": 0, "accepted": 0, "more": false, "items": []})
    );
}

#[test]
fn an_idle_one_is_refused_in_its_item() {
    let rig = Rig::start();
    let id = rig.accepted(&json!({"job": {"command": ["true"]}, "keep_open": true}));
    rig.until(id, |record| record.state == State::Idle);
    let answer = rig.send("POST", "/v1/runners:cancel", &json!({"state": "idle"})).json();
    assert_eq!((&answer["matched"], &answer["accepted"]), (&json!(1), &json!(0)));
    assert_eq!(answer["items"][0]["result"], "refused");
    assert_eq!(answer["items"][0]["problem"]["type"], "urn:runward:problem:runner-idle");
}
