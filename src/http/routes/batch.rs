//! Submitting many jobs at once.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode, Uri},
    response::Response,
};
use serde_json::Value;

use super::{From, json_list, no_parameters, read_json_text};
use crate::{
    http::{
        Config, Shared, dto,
        fields::{Fields, invalid},
        idempotency, json as strict,
        problem::{Kind, Problem},
        submission,
    },
    job::{RunnerId, Spec},
    supervisor::{Refusal, Submission, Submitted, ports::IdempotencyKey},
};

/// Submissions of one batch. They are one transaction, and its commit holds up all others.
const MAX_BATCH: usize = 1000;

/// One submission of a batch, as far as it has come.
enum Item {
    /// It is one of those that are submitted together, under this name.
    Valid(Option<String>),
    Faulty(Problem),
}

/// Submits up to 1,000 jobs as one transaction. Those that are not valid are answered by their problem, and the others
/// are accepted together.
///
/// With an `Idempotency-Key` each submission is bound to the key and its place: a retry with the same submissions gets
/// the same runners, also if the first answer never came. The limit for the size of a body is that of any: for more
/// or larger jobs send several batches.
#[utoipa::path(post, path = "/v1/runners:batch", tag = "runners",
    params(("Idempotency-Key" = Option<String>, Header, description = "1 to 255 visible characters; a retry with the same key and submissions gets the same runners")),
    request_body(content((dto::Batch = "application/json"))),
    responses((status = 200, description = "An answer for each, in their order", body = dto::Submitted)))]
pub(super) async fn submit(
    State(shared): State<Shared>,
    from: From,
    headers: HeaderMap,
    uri: Uri,
    body: Body,
) -> Result<Response, Problem> {
    no_parameters(&uri)?;
    let key = idempotency::given(&headers)?;
    let text = read_json_text(&shared, &from.0, &headers, body).await?;
    let (mut specs, keys) = read_list(&text, key.as_deref(), &shared.config())?;
    drop(text);
    check_identities(&shared, &mut specs).await?;
    let (items, submissions) = sort(specs, keys);
    let sent: Vec<_> = submissions.iter().map(|submission| submission.key.clone()).collect();
    let mut answers = shared.api.supervisor.submit_batch(submissions).await;
    find_earlier(&shared, &sent, &mut answers).await?;
    let mut answers = answers.into_iter();
    let mut answered = Vec::with_capacity(items.len());
    for (number, item) in items.into_iter().enumerate() {
        answered.push(match item {
            Item::Faulty(problem) => refused(problem.within(&place(number))),
            Item::Valid(name) => match answers.next() {
                Some(Ok(submitted)) => {
                    let made = dto::Made { id: submitted.id, name, replayed: submitted.replayed };
                    let status = StatusCode::CREATED.as_u16();
                    dto::SubmittedItem { status, runner: Some(made), problem: None }
                }
                Some(Err(refusal)) => refused(Problem::from(refusal).within(&place(number))),
                None => refused(Refusal::Ended.into()),
            },
        });
    }
    // Nothing was accepted, and it is not for the submissions: a client that looks at the status only is to see it.
    if answered.iter().all(|item| item.status >= 500)
        && let Some(problem) = answered.iter_mut().find_map(|item| item.problem.take())
    {
        return Err(problem);
    }
    Ok(json_list(&dto::Submitted { items: answered }))
}

/// What an earlier batch made is found also where nothing new is accepted: a retry is to get its answer.
async fn find_earlier(
    shared: &Shared,
    keys: &[Option<Box<IdempotencyKey>>],
    answers: &mut [Result<Submitted, Refusal>],
) -> Result<(), Problem> {
    for (key, answer) in keys.iter().zip(answers) {
        if let (Some(key), Err(Refusal::QueueFull | Refusal::Draining)) = (key, &answer)
            && let Some((original, body)) = shared.api.supervisor.archive().keyed(key.key.clone()).await?
        {
            *answer = match body == key.body {
                true => Ok(Submitted { id: original, replayed: true, record: None }),
                false => Err(Refusal::KeyReused { original }),
            };
        }
    }
    Ok(())
}

fn refused(problem: Problem) -> dto::SubmittedItem {
    let status = problem.kind().status().as_u16();
    dto::SubmittedItem { status, runner: None, problem: Some(problem) }
}

fn place(number: usize) -> String {
    format!("runners[{number}]")
}

type Specs = Vec<Result<Arc<Spec>, Problem>>;
type Keys = Vec<Option<Box<IdempotencyKey>>>;

/// Reads the submissions, and their keys. Of a thousand only one at a time is a tree of JSON.
fn read_list(text: &[u8], key: Option<&str>, config: &Config) -> Result<(Specs, Keys), Problem> {
    let (mut specs, mut keys, mut count) = (Vec::new(), Vec::new(), 0);
    let value = strict::parse_items(text, "runners", |body| {
        if count < MAX_BATCH {
            keys.push(key.map(|key| Box::new(idempotency::of_item(key, count, &body))));
            specs.push(submission::spec(body, config));
        }
        count += 1;
    })?;
    let mut fields = Fields::open(value, "", &["runners"])?;
    let expected =
        || invalid("runners", "a list of 1 to 1000 submissions, each as the body of POST /v1/runners");
    match fields.value("runners") {
        None => Err(Problem::new(
            Kind::MissingField,
            r#"`runners` is missing; send {"runners": [{"job": {"command": ["echo", "hi"]}}]}"#,
        )
        .field("runners")),
        Some(Value::Array(_)) if (1..=MAX_BATCH).contains(&count) => Ok((specs, keys)),
        Some(_) => Err(expected()),
    }
}

/// Looks up users and groups, all at once off the async workers.
async fn check_identities(shared: &Shared, specs: &mut [Result<Arc<Spec>, Problem>]) -> Result<(), Problem> {
    let named: Vec<(usize, Arc<Spec>)> = (specs.iter().enumerate())
        .filter_map(|(place, spec)| Some((place, Arc::clone(spec.as_ref().ok()?))))
        .filter(|(_, spec)| submission::names_identity(&spec.job))
        .collect();
    if named.is_empty() {
        return Ok(());
    }
    let daemon = nix::unistd::Uid::from_raw(shared.api.access.uid);
    let look_up = move || {
        let check =
            |(place, spec): (usize, Arc<Spec>)| (place, submission::check_identity(&spec.job, daemon).err());
        named.into_iter().map(check).collect::<Vec<_>>()
    };
    let checked = tokio::task::spawn_blocking(look_up).await;
    let checked = checked.map_err(|_| invalid("runners", "of users and groups of this machine"))?;
    for (place, problem) in checked {
        if let Some(problem) = problem {
            specs[place] = Err(problem);
        }
    }
    Ok(())
}

fn sort(specs: Specs, keys: Keys) -> (Vec<Item>, Vec<Submission>) {
    let mut submissions = Vec::with_capacity(specs.len());
    let items = (specs.into_iter().zip(keys))
        .map(|(spec, key)| match spec {
            Ok(spec) => {
                let name = Option::clone(&spec.name);
                submissions.push(Submission { id: RunnerId::new(), spec, key });
                Item::Valid(name)
            }
            Err(problem) => Item::Faulty(problem),
        })
        .collect();
    (items, submissions)
}
