//! `cancel`, `close`, `release`, `wait`: what is done to a runner that is there.

use std::{pin::pin, time::Duration};

use hyper::Method;
use serde_json::{Map, Value, json};
use tokio::time::{interval_at, timeout};

use super::{
    client::{Ask, Client},
    connect::{Common, duration},
    error::{Code, Error},
    follow::{self, Again},
    ids,
    job::pair,
    printer::Printer,
    progress,
    record::{self, short, text},
    screen::Screen,
    show,
};

/// Cancel jobs: the first request asks them to stop, and they have their grace to clean up; a second one kills.
#[derive(Clone, Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("which").args(["runners", "queue", "name", "labels", "state", "all"]).required(true).multiple(true))]
pub struct Cancel {
    #[arg(help = ids::HELP, value_name = "RUNNER", conflicts_with_all = ["queue", "name", "labels", "state", "all"])]
    runners: Vec<String>,
    /// Kill at once.
    #[arg(short, long, conflicts_with_all = ["queue", "name", "labels", "state", "all"])]
    force: bool,
    /// All in this queue.
    #[arg(short, long, value_name = "QUEUE")]
    queue: Option<String>,
    /// All with this name.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// All with this label; repeatable, for all of several.
    #[arg(short, long = "label", value_name = "NAME=VALUE", value_parser = pair)]
    labels: Vec<(String, String)>,
    /// All in one of these states. Those that are `cancelling` are killed.
    #[arg(short, long, value_name = "STATE", value_delimiter = ',')]
    state: Vec<String>,
    /// All that wait or run.
    #[arg(long, conflicts_with_all = ["queue", "name", "labels", "state"])]
    all: bool,
    /// Wait until they have ended.
    #[arg(short, long)]
    wait: bool,
    #[command(flatten)]
    common: Common,
}

impl Cancel {
    pub(super) fn common(&self) -> &Common {
        &self.common
    }

    pub(super) async fn run(&self, screen: &Screen) -> Result<u8, Error> {
        let client = self.common.client()?;
        let ids =
            if self.runners.is_empty() { self.many(&client).await? } else { self.each(&client).await? };
        if self.wait {
            for id in &ids {
                ended(&client, id, &self.common, screen).await?;
            }
        }
        Ok(0)
    }

    async fn each(&self, client: &Client) -> Result<Vec<String>, Error> {
        let mut cancelled = Vec::new();
        for runner in &self.runners {
            let id = ids::resolve(client, runner).await?;
            let path = format!("/v1/runners/{id}/cancel");
            let mut receipt = client.post(&path).await?;
            if self.force {
                match client.post(&path).await {
                    Ok(forced) => receipt = forced,
                    // The first one was enough.
                    Err(error) if error.problem() == Some("runner-closed") => {}
                    Err(error) => return Err(error),
                }
            }
            if self.common.json {
                show::json(&receipt)?;
            } else {
                show::print(&format!("{} {}\n", short(&id), record::word(&receipt)))?;
            }
            cancelled.push(id);
        }
        Ok(cancelled)
    }

    async fn many(&self, client: &Client) -> Result<Vec<String>, Error> {
        let mut filter = Map::new();
        if self.all {
            filter.insert("all".into(), true.into());
        }
        if !self.state.is_empty() {
            filter.insert("state".into(), json!(self.state));
        }
        for (name, value) in [("queue", &self.queue), ("name", &self.name)] {
            if let Some(value) = value {
                filter.insert(name.into(), value.as_str().into());
            }
        }
        if !self.labels.is_empty() {
            let labels = self.labels.iter().map(|(name, value)| (name.clone(), value.as_str().into()));
            filter.insert("label".into(), Value::Object(labels.collect()));
        }
        let filter = Value::Object(filter);
        let mut ids = Vec::new();
        loop {
            let answer = client.json(Ask::new(Method::POST, "/v1/runners:cancel").json(&filter)).await?;
            if self.common.json {
                show::json(&answer)?;
            }
            let items = answer["items"].as_array().map(Vec::as_slice).unwrap_or_default();
            for item in items {
                let id = text(item, "/id");
                if !self.common.json {
                    show::print(&format!("{} {}\n", short(id), text(item, "/result")))?;
                }
                ids.push(id.to_owned());
            }
            if answer["more"] != true {
                if ids.is_empty() && !self.common.json {
                    super::screen::say("nothing that waits or runs fits");
                }
                return Ok(ids);
            }
        }
    }
}

/// Close runners: cancel what runs, drain, close. Never kills; what is closed already stays so.
#[derive(Clone, Debug, clap::Args)]
pub struct Close {
    #[arg(help = ids::HELP, value_name = "RUNNER", required = true)]
    runners: Vec<String>,
    /// Wait until they are closed.
    #[arg(short, long)]
    wait: bool,
    #[command(flatten)]
    common: Common,
}

impl Close {
    pub(super) fn common(&self) -> &Common {
        &self.common
    }

    pub(super) async fn run(&self, screen: &Screen) -> Result<u8, Error> {
        let client = self.common.client()?;
        for runner in &self.runners {
            let id = ids::resolve(&client, runner).await?;
            let path = format!("/v1/runners/{id}");
            let mut runner = client.json(Ask::new(Method::DELETE, &path)).await?;
            if self.wait && !record::is_closed(&runner) {
                runner = ended(&client, &id, &self.common, screen).await?;
            }
            if self.common.json {
                show::json(&runner)?;
            } else {
                show::print(&format!("{} {}\n", short(&id), record::word(&runner)))?;
            }
        }
        Ok(0)
    }
}

/// Let held runners go on: they wait for their turn again.
#[derive(Clone, Debug, clap::Args)]
pub struct Release {
    #[arg(help = ids::HELP, value_name = "RUNNER", required = true)]
    runners: Vec<String>,
    #[command(flatten)]
    common: Common,
}

impl Release {
    pub(super) fn common(&self) -> &Common {
        &self.common
    }

    pub(super) async fn run(&self) -> Result<u8, Error> {
        let client = self.common.client()?;
        for runner in &self.runners {
            let id = ids::resolve(&client, runner).await?;
            let runner = client.post(&format!("/v1/runners/{id}/release")).await?;
            if self.common.json {
                show::json(&runner)?;
            } else {
                show::print(&format!("{} {}\n", short(&id), record::word(&runner)))?;
            }
        }
        Ok(0)
    }
}

/// Wait until runners have closed, or are idle. Exits as the job did; of several as the first that did not succeed.
#[derive(Clone, Debug, clap::Args)]
pub struct Wait {
    #[arg(help = ids::HELP, value_name = "RUNNER", required = true)]
    runners: Vec<String>,
    /// No longer than this; then the exit code is 75.
    #[arg(short, long, value_name = "TIME", value_parser = duration)]
    timeout: Option<Duration>,
    #[command(flatten)]
    common: Common,
}

impl Wait {
    pub(super) fn common(&self) -> &Common {
        &self.common
    }

    pub(super) async fn run(&self, screen: &Screen) -> Result<u8, Error> {
        let client = self.common.client()?;
        let mut ids = Vec::new();
        for runner in &self.runners {
            ids.push(ids::resolve(&client, runner).await?);
        }
        let all = self.all(&client, &ids, screen);
        match self.timeout {
            None => all.await,
            Some(limit) => timeout(limit, all).await.unwrap_or_else(|_| {
                let message = format!("not over within {}; it goes on", record::span(limit));
                Err(Error::new(Code::TryAgain, message))
            }),
        }
    }

    async fn all(&self, client: &Client, ids: &[String], screen: &Screen) -> Result<u8, Error> {
        let mut exit = 0;
        for id in ids {
            let runner = ended(client, id, &self.common, screen).await?;
            if self.common.json {
                show::json(&runner)?;
            } else {
                show::print(&format!("{} {}\n", short(id), record::word(&runner)))?;
            }
            if exit == 0 {
                exit = record::exit_code(&runner, None);
            }
        }
        Ok(exit)
    }
}

/// The record when nothing more comes; meanwhile a person sees what it is at.
pub(super) async fn ended(
    client: &Client,
    id: &str,
    common: &Common,
    screen: &Screen,
) -> Result<Value, Error> {
    let printer = Printer::start(screen, false);
    let mut again = Again::new(common.reconnect);
    let mut over = pin!(follow::over(client, id, None, &mut again));
    let mut ticks = interval_at(tokio::time::Instant::now() + progress::TICK, progress::TICK);
    let ended = loop {
        tokio::select! {
            biased;
            ended = &mut over => break ended,
            _ = ticks.tick(), if screen.err => {
                let status = progress::status(client, id).await;
                printer.status(status.unwrap_or_else(|| format!("{} is running …", short(id))));
            }
        }
    };
    drop(printer.finish().await);
    ended
}
