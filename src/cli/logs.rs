//! `logs` and `events`: what a job wrote, and what happened to it.

use std::ops::ControlFlow;

use serde_json::Value;

use super::{
    connect::Common,
    error::{Code, Error},
    follow::{self, Again, Logs as Wanted},
    ids,
    printer::Printer,
    record::{short, text},
    screen::{Look, Screen, one_line},
};

/// Show what a job wrote: its standard output on standard output, its standard error on standard error.
#[derive(Clone, Debug, clap::Args)]
pub struct Logs {
    #[arg(help = ids::HELP)]
    runner: String,
    /// Go on as output comes, until the runner has closed.
    #[arg(short, long)]
    follow: bool,
    /// Only the last lines, as many.
    #[arg(short = 'n', long, value_name = "LINES", conflicts_with = "offset")]
    tail: Option<u64>,
    /// From this place on, the `next` of a line of --json.
    #[arg(long, value_name = "OFFSET")]
    offset: Option<u64>,
    /// Only this one of the two: stdout or stderr.
    #[arg(short, long, value_name = "STREAM", value_enum, hide_possible_values = true)]
    stream: Option<Which>,
    /// Of this run; the last, if none is given.
    #[arg(long, value_name = "N")]
    run: Option<u64>,
    /// Of this attempt; the last, if none is given.
    #[arg(long, value_name = "N")]
    attempt: Option<u64>,
    /// To a terminal too, output as it came: the job may control the terminal.
    #[arg(long)]
    raw: bool,
    #[command(flatten)]
    common: Common,
}

/// One of the two streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Which {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Logs {
    pub(super) fn common(&self) -> &Common {
        &self.common
    }

    pub(super) async fn run(&self, screen: &Screen) -> Result<u8, Error> {
        let client = self.common.client()?;
        let wanted = Wanted {
            id: ids::resolve(&client, &self.runner).await?,
            run: self.run,
            attempt: self.attempt,
            stream: self.stream.map(|stream| match stream {
                Which::Stdout => "stdout",
                Which::Stderr => "stderr",
            }),
            tail: self.tail,
            offset: self.offset,
            follow: self.follow,
        };
        let printer = Printer::start(screen, self.raw || self.common.json);
        let read = wanted
            .each(&client, Again::new(self.common.reconnect), async |piece| {
                let taken = printer.output(&piece, self.common.json).await;
                if taken.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })
            .await;
        finish(printer).await?;
        read.map(|()| 0)
    }
}

async fn finish(printer: Printer) -> Result<(), Error> {
    printer
        .finish()
        .await
        .map_err(|error| Error::new(Code::Broken, format!("the output can't be written: {error}")))
}

/// Show what happened: to a runner, or to all of them.
#[derive(Clone, Debug, clap::Args)]
pub struct Events {
    #[arg(help = ids::HELP)]
    runner: Option<String>,
    /// Go on as things happen, until the runner has closed; of all runners from now on.
    #[arg(short, long)]
    follow: bool,
    /// Those after this one, by its number.
    #[arg(long, value_name = "SEQ")]
    after: Option<u64>,
    #[command(flatten)]
    common: Common,
}

impl Events {
    pub(super) fn common(&self) -> &Common {
        &self.common
    }

    pub(super) async fn run(&self, screen: &Screen) -> Result<u8, Error> {
        let client = self.common.client()?;
        let id = match &self.runner {
            None => None,
            Some(runner) => Some(ids::resolve(&client, runner).await?),
        };
        let printer = Printer::start(screen, false);
        let take = async |event: &Value| {
            let line = if self.common.json { event.to_string() } else { line(screen, event, id.is_none()) };
            if printer.line(line).await.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        };
        let read = if self.follow {
            let mut again = Again::new(self.common.reconnect);
            follow::events(&client, id.as_deref(), self.after, &mut again, take).await
        } else {
            self.pages(&client, id.as_deref(), take).await
        };
        finish(printer).await?;
        read.map(|()| 0)
    }

    async fn pages(
        &self,
        client: &super::client::Client,
        id: Option<&str>,
        mut take: impl AsyncFnMut(&Value) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        let base = id.map_or_else(|| "/v1/events".to_owned(), |id| format!("/v1/runners/{id}/events"));
        let mut cursor = self.after.unwrap_or(0).to_string();
        loop {
            let page = client.get(&format!("{base}?limit=1000&cursor={cursor}")).await?;
            for event in page["items"].as_array().into_iter().flatten() {
                if take(event).await.is_break() {
                    return Ok(());
                }
            }
            match page["next_cursor"].as_str() {
                Some(next) => cursor = next.to_owned(),
                None => return Ok(()),
            }
        }
    }
}

/// Time, whose, what, and its facts as they are.
fn line(screen: &Screen, event: &Value, of_all: bool) -> String {
    let mut line = screen.paint(Look::Dim, text(event, "/at"));
    line.push(' ');
    if of_all {
        line.push_str(short(text(event, "/runner")));
        line.push(' ');
    }
    line += &screen.paint(Look::Bold, text(event, "/type"));
    for (name, value) in event.as_object().into_iter().flatten() {
        let told = matches!(name.as_str(), "seq" | "runner" | "at" | "type");
        let shown = match value {
            _ if told => continue,
            Value::Null => continue,
            _ if name == "job" => super::record::job(value),
            Value::String(text) => text.clone(),
            Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => value.to_string(),
        };
        line.push_str(&format!(" {name}={}", one_line(&shown)));
    }
    line
}
