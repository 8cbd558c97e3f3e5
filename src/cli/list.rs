//! `ps`, `show`, `explain`: what there is, and why it is so.

use jiff::Timestamp;
use serde_json::Value;

use super::{
    connect::Common,
    error::Error,
    ids::{self, encoded},
    job::pair,
    record::{self, ago, between, short, text},
    screen::{Look, Screen, say},
    show,
    table::{Cell, facts, table},
};

/// List runners, newest first: those that are not closed, unless told otherwise.
#[derive(Clone, Debug, clap::Args)]
pub struct Ps {
    /// Closed ones too.
    #[arg(short, long)]
    all: bool,
    /// In one of these states: queued, starting, running, idle, cancelling, draining, closed. Repeatable, or separated
    /// by commas.
    #[arg(short, long, value_name = "STATE", value_delimiter = ',')]
    state: Vec<String>,
    /// With one of these outcomes: succeeded, failed, cancelled, killed, timed_out, lost. Repeatable, or separated by
    /// commas.
    #[arg(short, long, value_name = "OUTCOME", value_delimiter = ',')]
    outcome: Vec<String>,
    /// In this queue.
    #[arg(short, long, value_name = "QUEUE")]
    queue: Option<String>,
    /// With this name.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// With this label; repeatable, for all of several.
    #[arg(short, long = "label", value_name = "NAME=VALUE", value_parser = pair)]
    labels: Vec<(String, String)>,
    /// How many at the most.
    #[arg(short = 'n', long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=1000))]
    limit: u16,
    /// Only their ids, in full, one a line.
    #[arg(long, conflicts_with = "json")]
    ids: bool,
    #[command(flatten)]
    common: Common,
}

impl Ps {
    pub(super) fn common(&self) -> &Common {
        &self.common
    }

    pub(super) async fn run(&self, screen: &Screen) -> Result<u8, Error> {
        let client = self.common.client()?;
        let mut page = client.get(&self.path()).await?;
        // Of what is rare among many a page may hold nothing and say where to go on.
        while page["items"].as_array().is_some_and(Vec::is_empty)
            && let Some(next) = page["next_cursor"].as_str()
        {
            page = client.get(&format!("{}&cursor={next}", self.path())).await?;
        }
        if self.common.json {
            return show::json(&page);
        }
        let items = page["items"].as_array().map(Vec::as_slice).unwrap_or_default();
        if self.ids {
            let ids: String = items.iter().map(|runner| format!("{}\n", text(runner, "/id"))).collect();
            return show::print(&ids);
        }
        if items.is_empty() {
            let hint = if self.path().contains("closed") || self.all || !self.outcome.is_empty() {
                "no runner fits"
            } else {
                "nothing waits or runs; `runward ps -a` lists closed ones too"
            };
            say(hint);
            return Ok(0);
        }
        let now = Timestamp::now();
        let heading = ["ID", "NAME", "STATE", "EXIT", "QUEUE", "AGE", "TOOK", "JOB"];
        show::print(&table(screen, &heading, items.iter().map(|runner| row(runner, now)).collect()))?;
        if page["next_cursor"].is_string() {
            say(&format!(
                "there are more than these {}; ask for more with --limit, or for fewer with --state, --name …",
                items.len()
            ));
        }
        Ok(0)
    }

    fn path(&self) -> String {
        let mut path = format!("/v1/runners?limit={}", self.limit);
        let mut add = |name: &str, value: &str| path.push_str(&format!("&{name}={}", encoded(value)));
        let open = ["queued", "starting", "running", "idle", "cancelling", "draining"];
        if self.state.is_empty() && self.outcome.is_empty() && !self.all {
            open.iter().for_each(|state| add("state", state));
        }
        self.state.iter().for_each(|state| add("state", state));
        self.outcome.iter().for_each(|outcome| add("outcome", outcome));
        self.queue.iter().for_each(|queue| add("queue", queue));
        self.name.iter().for_each(|name| add("name", name));
        self.labels.iter().for_each(|(name, value)| add("label", &format!("{name}={value}")));
        path
    }
}

fn row(runner: &Value, now: Timestamp) -> Vec<Cell> {
    let word = record::word(runner);
    let queue = text(runner, "/queue");
    let took = match text(runner, "/started_at") {
        "" => String::new(),
        started => between(started, text(runner, "/closed_at"), now),
    };
    vec![
        short(text(runner, "/id")).into(),
        text(runner, "/name").into(),
        Cell(word.to_owned(), record::look(word)),
        record::exit(runner).into(),
        if queue == "default" { "".into() } else { queue.into() },
        ago(text(runner, "/created_at"), now).into(),
        took.into(),
        record::job(&runner["job"]).into(),
    ]
}

/// Show all that is known of a runner.
#[derive(Clone, Debug, clap::Args)]
pub struct Show {
    #[arg(help = ids::HELP)]
    runner: String,
    #[command(flatten)]
    common: Common,
}

impl Show {
    pub(super) fn common(&self) -> &Common {
        &self.common
    }

    pub(super) async fn run(&self, screen: &Screen) -> Result<u8, Error> {
        let client = self.common.client()?;
        let id = ids::resolve(&client, &self.runner).await?;
        let runner = client.get(&format!("/v1/runners/{id}")).await?;
        if self.common.json {
            return show::json(&runner);
        }
        let explained = client.get(&format!("/v1/runners/{id}/explain")).await?;
        show::print(&whole(screen, &runner, text(&explained, "/sentence")))
    }
}

fn whole(screen: &Screen, runner: &Value, sentence: &str) -> String {
    let now = Timestamp::now();
    let word = record::word(runner);
    let at = |pointer: &str| match text(runner, pointer) {
        "" => String::new(),
        time => format!("{time} ({})", ago(time, now)),
    };
    let labels: Vec<String> = runner["labels"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, value)| format!("{name}={}", value.as_str().unwrap_or_default()))
        .collect();
    let optional = |pointer: &str| text(runner, pointer).to_owned();
    let mut printed = facts(
        screen,
        &[
            ("id", optional("/id")),
            ("name", optional("/name")),
            ("state", word.to_owned()),
            ("why", sentence.to_owned()),
            ("job", record::job(&runner["job"])),
            ("queue", optional("/queue")),
            (
                "priority",
                runner["priority"]
                    .as_i64()
                    .filter(|priority| *priority != 0)
                    .map_or(String::new(), |n| n.to_string()),
            ),
            ("labels", labels.join(", ")),
            ("key", optional("/concurrency_key")),
            ("timeout", optional("/timeout")),
            ("deadline", optional("/deadline")),
            ("created", at("/created_at")),
            ("not before", at("/not_before")),
            ("started", at("/started_at")),
            ("closed", at("/closed_at")),
            ("cancelled by", optional("/cancel/by")),
            ("result", result(runner)),
        ],
    );
    let rows = attempts(runner, now);
    if !rows.is_empty() {
        printed.push('\n');
        printed +=
            &table(screen, &["RUN", "ATTEMPT", "STATE", "PID", "EXIT", "TOOK", "OUTPUT", "ERROR"], rows);
    }
    let steps = steps(runner);
    if !steps.is_empty() {
        printed.push('\n');
        printed += &table(screen, &["CANCELLATION", "STEP", "TARGET"], steps);
    }
    printed
}

/// What the last run gave back.
fn result(runner: &Value) -> String {
    let result = record::run(runner, None).and_then(|run| run.get("result"));
    result.filter(|result| !result.is_null()).map_or_else(String::new, Value::to_string)
}

fn attempts(runner: &Value, now: Timestamp) -> Vec<Vec<Cell>> {
    let mut rows = Vec::new();
    for run in runner["runs"].as_array().into_iter().flatten() {
        for attempt in run["attempts"].as_array().into_iter().flatten() {
            let word = match text(attempt, "/outcome") {
                "" => text(attempt, "/state"),
                outcome => outcome,
            };
            let number = |pointer: &str| attempt.pointer(pointer).and_then(Value::as_u64);
            let exit = match (attempt.pointer("/exit/code").and_then(Value::as_i64), number("/exit/signal")) {
                (Some(code), _) => code.to_string(),
                (None, Some(signal)) => format!("signal {signal}"),
                (None, None) => String::new(),
            };
            rows.push(vec![
                run["run"].to_string().into(),
                attempt["attempt"].to_string().into(),
                Cell(word.to_owned(), record::look(word)),
                number("/pid").map_or(String::new(), |pid| pid.to_string()).into(),
                exit.into(),
                between(text(attempt, "/started_at"), text(attempt, "/ended_at"), now).into(),
                number("/output/bytes").map_or(String::new(), |bytes| format!("{bytes} bytes")).into(),
                text(attempt, "/error/message").into(),
            ]);
        }
    }
    rows
}

fn steps(runner: &Value) -> Vec<Vec<Cell>> {
    let steps = runner.pointer("/cancel/steps").and_then(Value::as_array);
    let row = |step: &Value| {
        let time = Cell(text(step, "/at").to_owned(), Look::Dim);
        vec![time, text(step, "/action").into(), text(step, "/target").into()]
    };
    steps.into_iter().flatten().map(row).collect()
}

/// Say in one sentence why a runner is where it is: why it waits, what it is at, why it ended.
#[derive(Clone, Debug, clap::Args)]
pub struct Explain {
    #[arg(help = ids::HELP)]
    runner: String,
    #[command(flatten)]
    common: Common,
}

impl Explain {
    pub(super) fn common(&self) -> &Common {
        &self.common
    }

    pub(super) async fn run(&self) -> Result<u8, Error> {
        let client = self.common.client()?;
        let id = ids::resolve(&client, &self.runner).await?;
        let explained = client.get(&format!("/v1/runners/{id}/explain")).await?;
        if self.common.json {
            return show::json(&explained);
        }
        show::print(&format!("{}\n", super::screen::clean(text(&explained, "/sentence"))))
    }
}
