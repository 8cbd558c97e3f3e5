//! Tells those who asked for it that a Runner has closed. What is to be told is in the store from the commit of the
//! close on, until it is taken: a crash or a shutdown delays it, and it may be told twice.

use std::{collections::HashSet, sync::Arc, time::Duration};

use hyper::{
    HeaderMap, StatusCode,
    header::{HeaderName, HeaderValue},
};
use jiff::{SignedDuration, Timestamp};
use ring::hmac;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    http,
    job::{Record, RunnerId, Webhook},
    kinds::{HttpClient, HttpPlace},
    metrics::Metrics,
    secrets::Vault,
    store::{Message, Readers, Tally},
    supervisor::{Refusal, Supervisor, ports::Delivery},
};

/// What happened.
pub const EVENT: HeaderName = HeaderName::from_static("runward-event");
/// The same for each try to tell the same.
pub const DELIVERY: HeaderName = HeaderName::from_static("runward-delivery");
/// `t=<seconds since 1970>,v1=<hex of the HMAC-SHA-256 of "<t>.<body>">`
pub const SIGNATURE: HeaderName = HeaderName::from_static("runward-signature");

/// Messages sent at once: one receiver that hangs does not hold up the others, and few descriptors are taken.
const AT_ONCE: usize = 16;

/// How long one try may take, answer included.
const TRY: Duration = Duration::from_secs(30);

/// The wait after the first try; it doubles with each.
const FIRST_WAIT: Duration = Duration::from_secs(1);

/// The longest wait.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// A receiver that took nothing for so long is given up.
const GIVEN_UP_AFTER: SignedDuration = SignedDuration::from_hours(24);

/// The same where the clock can't be trusted: as many tries as fit into that time, and some.
const TRIES: u32 = 40;

/// How long to wait where the store can't be read, or does not take what became of a message: no event tells when it
/// does.
const STORE_RETRY: Duration = Duration::from_secs(5);

/// What sends messages.
#[derive(Clone)]
pub struct Webhooks {
    /// Whose Runners it tells of.
    pub supervisor: Supervisor,
    /// Where the messages are.
    pub readers: Readers,
    /// What reveals the keys to sign with.
    pub vault: Arc<Vault>,
    /// What reaches others, and what must not be reached.
    pub client: Arc<HttpClient>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

impl Webhooks {
    /// Sends messages until the store is closed, or this is dropped.
    pub async fn run(self, mut tally: watch::Receiver<Tally>) {
        let mut sending = JoinSet::new();
        let mut under_way = HashSet::new();
        loop {
            let seen = tally.borrow_and_update().messages;
            let now = Timestamp::now();
            // Those under way are still due.
            let wait = match self.readers.messages(now, 2 * AT_ONCE).await {
                Ok((due, next)) => {
                    for message in due {
                        if under_way.len() < AT_ONCE && under_way.insert(message.record.id) {
                            sending.spawn(self.clone().tell(message));
                        }
                    }
                    next.map(|next| next.duration_since(now).try_into().unwrap_or(STORE_RETRY))
                }
                Err(error) => {
                    tracing::warn!(%error, "messages that are to be sent can't be read");
                    Some(STORE_RETRY)
                }
            };
            let more = async {
                let more = tally.wait_for(|tally| tally.messages > seen).await;
                more.is_ok()
            };
            tokio::select! {
                more = more, if under_way.len() < AT_ONCE => if !more { return },
                Some(told) = sending.join_next() => match told {
                    Ok(id) => drop(under_way.remove(&id)),
                    Err(error) => {
                        tracing::error!(%error, "sending a message failed in runward itself");
                        under_way.clear();
                        sending.shutdown().await;
                        sleep(STORE_RETRY).await;
                    }
                },
                () = sleep(wait.unwrap_or(LONGEST_WAIT)), if wait.is_some() && under_way.len() < AT_ONCE => {}
            }
        }
    }

    /// Sends one message once, and records what became of it.
    async fn tell(self, message: Message) -> RunnerId {
        let Message { record, attempts } = message;
        let id = record.id;
        let mut taken = false;
        let delivery = match &record.spec.on_close {
            Some(hook) => {
                // Before its time runs: that others have taken all the places is not the receiver's fault.
                let place = self.client.place().await;
                let told = timeout(TRY, self.send(&place, hook, &record)).await;
                drop(place);
                let told =
                    told.unwrap_or_else(|_| Err(format!("no answer within {} seconds", TRY.as_secs())));
                taken = told.as_ref().is_ok_and(|status| status.is_success());
                verdict(&record, &hook.url, attempts + 1, told, Timestamp::now())
            }
            None => Delivery::Done,
        };
        loop {
            match self.supervisor.delivered(id, delivery.clone()).await {
                Ok(()) => {
                    self.count(taken, &delivery);
                    break;
                }
                // It is tried again after the next start.
                Err(Refusal::Ended) => break,
                Err(error) => {
                    tracing::warn!(runner = %id, %error, "what became of a message can't be recorded yet");
                    sleep(STORE_RETRY).await;
                }
            }
        }
        id
    }

    fn count(&self, taken: bool, delivery: &Delivery) {
        let counted = &self.metrics.webhooks;
        match (taken, delivery) {
            (true, _) => counted.delivered.inc(),
            (false, Delivery::Retry { .. }) => counted.failures.inc(),
            (false, Delivery::Done) => {
                counted.failures.inc();
                counted.given_up.inc();
            }
        }
    }

    async fn send(
        &self,
        place: &HttpPlace<'_>,
        hook: &Webhook,
        record: &Record,
    ) -> Result<StatusCode, String> {
        let body = http::runner_json(record);
        let mut headers = HeaderMap::new();
        headers.insert(EVENT, HeaderValue::from_static("closed"));
        let id = HeaderValue::try_from(record.id.to_string()).map_err(|error| error.to_string())?;
        headers.insert(DELIVERY, id);
        if let Some(name) = &hook.secret {
            let key = self.key(name).await?;
            let signature = sign(&key, Timestamp::now().as_second(), &body);
            let mut signature = HeaderValue::try_from(signature).map_err(|error| error.to_string())?;
            signature.set_sensitive(true);
            headers.insert(SIGNATURE, signature);
        }
        self.client.post(place, &hook.url, headers, body.into()).await.map_err(|failure| failure.message)
    }

    /// The key to sign with, as it is now: a key that was changed is used at once.
    async fn key(&self, name: &str) -> Result<String, String> {
        let context = self.supervisor.context();
        if !context.variables.contains_key(name) {
            return Err(format!(
                "`on_close.secret` names the variable `{name}`, and the shared context has none; set it with \
                 PUT /v1/context/{name}"
            ));
        }
        let (vault, name) = (Arc::clone(&self.vault), name.to_owned());
        // It may be in a file.
        let revealed =
            tokio::task::spawn_blocking(move || vault.reveal(&name, &context.variables[&name].value));
        revealed.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
    }
}

/// What becomes of a message after this try.
fn verdict(
    record: &Record,
    url: &str,
    attempts: u32,
    told: Result<StatusCode, String>,
    now: Timestamp,
) -> Delivery {
    let runner = record.id;
    let problem = match told {
        Ok(status) if status.is_success() => return Delivery::Done,
        Ok(StatusCode::GONE) => {
            tracing::warn!(%runner, url, "nobody is told of its close any more: the receiver answered 410 Gone");
            return Delivery::Done;
        }
        Ok(status) => format!("the receiver answered {status}"),
        Err(problem) => problem,
    };
    let since = record.closed_at.unwrap_or(now);
    if attempts >= TRIES || now.duration_since(since) >= GIVEN_UP_AFTER {
        tracing::error!(%runner, url, attempts, problem, "nobody could be told of its close: given up");
        return Delivery::Done;
    }
    let wait = wait_after(attempts);
    if attempts == 1 {
        tracing::warn!(%runner, url, problem, "nobody could be told of its close; it is tried again");
    } else {
        tracing::debug!(%runner, url, attempts, problem, "nobody could be told of its close; it is tried again");
    }
    Delivery::Retry { attempts, at: now + wait }
}

fn wait_after(attempts: u32) -> Duration {
    FIRST_WAIT
        .saturating_mul(1_u32.checked_shl(attempts.saturating_sub(1)).unwrap_or(u32::MAX))
        .min(LONGEST_WAIT)
}

fn sign(key: &str, at: i64, body: &[u8]) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes());
    let mut context = hmac::Context::with_key(&key);
    context.update(format!("{at}.").as_bytes());
    context.update(body);
    let tag = context.sign();
    let hex: String = tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("t={at},v1={hex}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{self, Command, Event, EventKind, Job, Spec};

    fn record() -> Record {
        let job = Job::Command(Command { argv: vec!["true".into()], ..Command::default() });
        let kind = EventKind::Submitted { spec: Arc::new(Spec::new(job, Duration::ZERO)) };
        let event = Event { seq: 1, runner: RunnerId::new(), at: Timestamp::UNIX_EPOCH, kind };
        let mut record = job::create(&event).expect("legal");
        record.closed_at = Some(Timestamp::UNIX_EPOCH).into();
        record
    }

    #[test]
    fn the_signature_is_the_one_that_openssl_makes() {
        // printf '1700000000.{"a":1}' | openssl dgst -sha256 -hmac secret
        assert_eq!(
            sign("secret", 1_700_000_000, br#"{"a":1}"#),
            "t=1700000000,v1=49f24e537407743fa4a0242bb63b94b9a47ee99cbbe071ccd8a22550ae411686"
        );
    }

    #[test]
    fn waits_double_up_to_an_hour() {
        let waits: Vec<u64> = [1, 2, 3, 12, 13, 40, 1000].map(|tries| wait_after(tries).as_secs()).into();
        assert_eq!(waits, [1, 2, 4, 2048, 3600, 3600, 3600]);
    }

    #[test]
    fn success_and_410_end_it_and_everything_else_is_tried_again_for_a_day() {
        let record = record();
        let after = |told, attempts, seconds| {
            let now = Timestamp::from_second(seconds).expect("a time");
            verdict(&record, "http://x/", attempts, told, now)
        };
        for status in [StatusCode::OK, StatusCode::NO_CONTENT, StatusCode::GONE] {
            assert_eq!(after(Ok(status), 1, 0), Delivery::Done);
        }
        for status in [StatusCode::FOUND, StatusCode::NOT_FOUND, StatusCode::INTERNAL_SERVER_ERROR] {
            let at = Timestamp::from_second(14).expect("a time");
            assert_eq!(after(Ok(status), 3, 10), Delivery::Retry { attempts: 3, at });
        }
        assert_eq!(after(Err("no".into()), 3, 86_400), Delivery::Done);
        assert_eq!(after(Err("no".into()), TRIES, 10), Delivery::Done);
    }
}
