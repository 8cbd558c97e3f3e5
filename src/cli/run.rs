//! `run`: a job as if it were a command of the shell. Its output here, Ctrl-C a cancellation, its exit code ours.

use std::{cell::Cell, ops::ControlFlow, pin::pin, rc::Rc, time::Duration};

use hyper::{Method, header::HeaderName};
use serde_json::{Value, json};
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    iterator::{Handle, Signals},
};
use tokio::{
    sync::{Notify, mpsc},
    time::{MissedTickBehavior, interval_at},
};

use super::{
    client::{Ask, Client},
    connect::Common,
    error::{Cause, Code, Error},
    follow::{self, Again, Logs},
    ids,
    job::{Here, Submission},
    local::Local,
    printer::Printer,
    progress,
    record::{self, short, text},
    screen::Screen,
};

/// Submit a job and stay with it: its output here, Ctrl-C a cancellation, its exit code this one.
///
/// What the job writes to its standard output comes on standard output, what it writes to its standard error on
/// standard error. Ctrl-C or SIGTERM cancels the job, which then has its grace to clean up; a second one kills it.
/// When this command is gone the job goes on: `runward logs -f` follows it again.
#[derive(Clone, Debug, clap::Args)]
pub struct Run {
    #[command(flatten)]
    submission: Submission,
    /// Without a daemon: with one of its own, in a temporary directory, that ends with the job.
    ///
    /// The job has this command's environment and working directory. When this command is killed, the job is
    /// cancelled.
    #[arg(long, conflicts_with_all = ["state_dir", "url", "on"])]
    local: bool,
    /// To a terminal too, output as it came: the job may control the terminal.
    #[arg(long)]
    raw: bool,
    /// Say nothing of what becomes of the job.
    #[arg(long)]
    quiet: bool,
    #[command(flatten)]
    common: Common,
}

/// Signals that may wait to be attended to: more than anybody sends before the command ends.
const WAITING: usize = 16;

/// SIGINT and SIGTERM, which mean the same. Heard on a thread of their own: tokio's would keep descriptors in every
/// process that makes a runtime, and the Runner library promises none.
pub(super) struct Interrupts {
    heard: mpsc::Receiver<Interrupt>,
    handle: Handle,
}

impl Interrupts {
    pub(super) fn new() -> Result<Self, Error> {
        let deaf = |error| Error::new(Code::Internal, format!("signals can't be received: {error}"));
        let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(deaf)?;
        let (sender, heard) = mpsc::channel(WAITING);
        let handle = signals.handle();
        let listen = move || {
            for signal in signals.forever() {
                let interrupt = if signal == SIGINT { Interrupt::Typed } else { Interrupt::Sent };
                if sender.blocking_send(interrupt).is_err() {
                    break;
                }
            }
        };
        std::thread::Builder::new().name("runward-signals".into()).spawn(listen).map_err(deaf)?;
        Ok(Self { heard, handle })
    }

    /// The next one, whichever it is. Cancel-safe.
    pub(super) async fn next(&mut self) -> Interrupt {
        match self.heard.recv().await {
            Some(interrupt) => interrupt,
            // Its thread lives as long as this does.
            None => std::future::pending().await,
        }
    }
}

impl Drop for Interrupts {
    fn drop(&mut self) {
        self.handle.close();
    }
}

/// Which of them came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Interrupt {
    /// SIGINT: on a terminal `^C` stands where the cursor was.
    Typed,
    /// SIGTERM.
    Sent,
}

/// A runner and the number of the run that was submitted.
pub(super) struct Submitted {
    pub(super) record: Value,
    pub(super) id: String,
    pub(super) run: u64,
}

/// Submits a job, or with `--on` a further run.
pub(super) async fn submit(
    client: &Client,
    submission: &Submission,
    here: &Here,
) -> Result<Submitted, Error> {
    let body = submission.body(here)?;
    let path = match &submission.on {
        None => "/v1/runners".to_owned(),
        Some(runner) => format!("/v1/runners/{}/runs", ids::resolve(client, runner).await?),
    };
    let mut ask = Ask::new(Method::POST, &path).json(&body);
    if let Some(key) = &submission.idempotency_key {
        ask = ask.header(HeaderName::from_static("idempotency-key"), key)?;
    }
    let unknown = |error: Error| match error.cause {
        Cause::Broken => {
            let message = format!(
                "{}. It is not known whether the job was accepted: see `runward ps -a`",
                error.message
            );
            Error { message, ..error }
        }
        Cause::Unreachable | Cause::Problem(_) | Cause::Here => error,
    };
    let answer = client.ask(ask).await.map_err(unknown)?;
    let run = answer.headers.get("runward-run").and_then(|run| run.to_str().ok()?.parse().ok()).unwrap_or(1);
    let record = answer.json().await?;
    let id = text(&record, "/id").to_owned();
    if id.is_empty() {
        return Err(Error::new(Code::Internal, "the daemon's answer to the submission has no id"));
    }
    Ok(Submitted { record, id, run })
}

impl Run {
    pub(super) fn common(&self) -> &Common {
        &self.common
    }

    pub(super) async fn run(&self, screen: &Screen) -> Result<u8, Error> {
        let mut interrupts = Interrupts::new()?;
        if !self.local {
            let client = self.common.client()?;
            let cwd = client.is_local().then(std::env::current_dir).and_then(Result::ok);
            return self.attend(&client, &Here { cwd, env: false }, screen, &mut interrupts).await;
        }
        let here = Here { cwd: std::env::current_dir().ok(), env: true };
        let mut local = Local::start().await?;
        let ended = self.attend(&local.client(), &here, screen, &mut interrupts).await;
        local.stop(&mut interrupts).await;
        ended
    }

    async fn attend(
        &self,
        client: &Client,
        here: &Here,
        screen: &Screen,
        interrupts: &mut Interrupts,
    ) -> Result<u8, Error> {
        let Submitted { id, run, .. } = tokio::select! {
            biased;
            submitted = submit(client, &self.submission, here) => submitted?,
            () = twice(interrupts) => {
                let message = "given up before the daemon answered: the job may have been accepted; see `runward ps`";
                return Err(Error::new(Code::Cancelled, message));
            }
        };
        let printer = Printer::start(screen, self.raw || self.common.json);
        let record = {
            let mut work = pin!(self.follow(client, &id, run, &printer));
            let mut ticks = interval_at(tokio::time::Instant::now() + progress::TICK, progress::TICK);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut requests = 0;
            loop {
                tokio::select! {
                    biased;
                    interrupt = interrupts.next() => {
                        if interrupt == Interrupt::Typed {
                            printer.typed();
                        }
                        requests += 1;
                        if requests > 2 {
                            return Err(Error::new(Code::Cancelled, format!("not waited for any longer; the runner {id} may still be ending: `runward show {}`", short(&id))));
                        }
                        self.cancel(client, &id, requests, &printer).await;
                    }
                    done = &mut work => match done? {
                        Followed::Over(record) => break record,
                        // As with any command whose output nobody reads.
                        Followed::NobodyReads if requests == 0 => {
                            requests += 1;
                            self.cancel(client, &id, requests, &printer).await;
                            let mut again = Again::new(self.common.reconnect);
                            break follow::over(client, &id, Some(run), &mut again).await?;
                        }
                        Followed::NobodyReads => {
                            let mut again = Again::new(self.common.reconnect);
                            break follow::over(client, &id, Some(run), &mut again).await?;
                        }
                    },
                    _ = ticks.tick(), if screen.err && !self.quiet => {
                        if let Some(status) = progress::status(client, &id).await {
                            printer.status(status);
                        }
                    }
                }
            }
        };
        if self.common.json {
            drop(printer.line(record.to_string()).await);
        } else if !self.quiet {
            self.tell(client, &record, run, &printer).await;
        }
        tokio::select! {
            printed = printer.finish() => printed.map_err(|error| {
                Error::new(Code::Broken, format!("the output can't be written: {error}"))
            })?,
            _ = interrupts.next() => {}
        }
        Ok(record::exit_code(&record, Some(run)))
    }

    async fn follow(
        &self,
        client: &Client,
        id: &str,
        run: u64,
        printer: &Printer,
    ) -> Result<Followed, Error> {
        let over = Rc::new(Cell::new(false));
        let again = || Again::unless(self.common.reconnect, Rc::clone(&over));
        // A daemon that is stopped ends its jobs, and is gone before it can be asked what became of this one.
        let mut told = Told::new(id, run);
        let listening = Notify::new();
        let watched = {
            let mut watching = pin!(told.listen(client, again(), &over, &listening));
            let mut staying = pin!(async {
                listening.notified().await;
                self.stay(client, id, run, printer, again(), again()).await
            });
            loop {
                tokio::select! {
                    biased;
                    stayed = &mut staying => break stayed,
                    () = &mut watching, if !over.get() => over.set(true),
                }
            }
        };
        match watched {
            Err(error) if error.is_connection() => match told.record() {
                Some(record) => Ok(Followed::Over(record)),
                None => {
                    let message = format!(
                        "{}. Lost sight of the runner {id}: once the daemon is back, `runward show {}` tells what became of it",
                        error.message,
                        short(id)
                    );
                    Err(Error { code: Code::Broken, message, ..error })
                }
            },
            watched => watched,
        }
    }

    async fn stay(
        &self,
        client: &Client,
        id: &str,
        run: u64,
        printer: &Printer,
        again: Again,
        mut again_later: Again,
    ) -> Result<Followed, Error> {
        let logs = Logs { id: id.to_owned(), run: Some(run), follow: true, ..Logs::default() };
        let mut closed = false;
        logs.each(client, again, async |piece| {
            closed |= printer.output(&piece, self.common.json).await.is_err();
            if closed { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .await?;
        if closed {
            return Ok(Followed::NobodyReads);
        }
        follow::over(client, id, Some(run), &mut again_later).await.map(Followed::Over)
    }

    /// The first request cancels, the second one forces.
    async fn cancel(&self, client: &Client, id: &str, request: u32, printer: &Printer) {
        const PATIENCE: Duration = Duration::from_secs(10);
        let path = format!("/v1/runners/{id}/cancel");
        let asked = client.json(Ask::new(Method::POST, &path).patience(Some(PATIENCE))).await;
        let say = |text: &str| {
            if !self.quiet {
                printer.say(text);
            }
        };
        match asked {
            Ok(_) if request == 1 => say("cancelling; Ctrl-C again kills it"),
            Ok(_) => say("killing"),
            // It ended by itself meanwhile.
            Err(error) if matches!(error.problem(), Some("runner-closed" | "runner-idle")) => {}
            Err(error) => printer.say(&format!("it could not be cancelled: {}", error.message)),
        }
    }

    /// What the exit code alone does not tell.
    async fn tell(&self, client: &Client, record: &Value, run: u64, printer: &Printer) {
        let attempt = record::run(record, Some(run)).and_then(record::last_attempt);
        let exited = attempt.is_some_and(|attempt| attempt.pointer("/exit/code").is_some());
        let outcome = attempt.map_or(text(record, "/outcome"), |attempt| text(attempt, "/outcome"));
        if outcome == "succeeded" || (outcome == "failed" && exited) {
            return;
        }
        let id = text(record, "/id");
        match client.get(&format!("/v1/runners/{id}/explain")).await {
            Ok(explained) => printer.say(text(&explained, "/sentence")),
            Err(_) => printer.say(&format!("the job's end: {outcome}; the daemon is gone")),
        }
    }
}

/// What the events tell of a run: enough for its end.
struct Told {
    id: String,
    run: u64,
    current: u64,
    attempt: Value,
    outcome: Option<Value>,
}

impl Told {
    fn new(id: &str, run: u64) -> Self {
        Self { id: id.to_owned(), run, current: 0, attempt: Value::Null, outcome: None }
    }

    /// Returns when the runner has closed. Tells when it hears the first event, or never will.
    async fn listen(&mut self, client: &Client, mut again: Again, over: &Cell<bool>, listening: &Notify) {
        let id = self.id.clone();
        let listened = follow::events(client, Some(&id), Some(0), &mut again, async |event| {
            listening.notify_one();
            match text(event, "/type") {
                "starting" => self.current = event["run"].as_u64().unwrap_or(0),
                "attempt_ended" if self.current == self.run => self.attempt = event.clone(),
                "closed" => self.outcome = Some(event["outcome"].clone()),
                _ => {}
            }
            ControlFlow::Continue(())
        });
        // Where it fails, so does what it stands in for, and that is told.
        if listened.await.is_err() || over.get() {
            listening.notify_one();
            std::future::pending().await
        }
    }

    /// As much of the record as they told, if it has closed.
    fn record(self) -> Option<Value> {
        let outcome = self.outcome?;
        let attempts = if self.attempt.is_null() { json!([]) } else { json!([self.attempt]) };
        let runs = json!([{"run": self.run, "attempts": attempts}]);
        Some(json!({"id": self.id, "state": "closed", "outcome": outcome, "runs": runs}))
    }
}

enum Followed {
    Over(Value),
    NobodyReads,
}

async fn twice(interrupts: &mut Interrupts) {
    interrupts.next().await;
    interrupts.next().await;
}
