//! `queue`: what waits where, and how much of it runs at once.

use hyper::Method;
use serde_json::{Map, Value, json};

use super::{
    client::Ask,
    connect::Common,
    error::Error,
    ids::encoded,
    record::{look, text},
    screen::Screen,
    show,
    table::{Cell, table},
};

/// See and change queues. A queue needs no set-up: it is there once a job names it.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum Queue {
    /// List them.
    Ls(Ls),
    /// Change how many of its jobs run at once.
    Set(Set),
    /// Start nothing more from it. What runs goes on.
    Pause(Named),
    /// Start jobs from it again.
    Resume(Named),
    /// Take back what was changed: the settings hold again.
    Reset(Named),
}

/// List queues.
#[derive(Clone, Debug, clap::Args)]
pub struct Ls {
    #[command(flatten)]
    common: Common,
}

/// Change a queue.
#[derive(Clone, Debug, clap::Args)]
pub struct Set {
    /// The queue.
    name: String,
    /// How many of its jobs run at once: a number, or `none` for no limit.
    #[arg(short, long, value_name = "N", value_parser = slots)]
    max_running: Slots,
    #[command(flatten)]
    common: Common,
}

/// How many slots a queue has; `None` for no limit of its own.
#[derive(Clone, Copy, Debug)]
pub struct Slots(Option<u32>);

/// One queue.
#[derive(Clone, Debug, clap::Args)]
pub struct Named {
    /// The queue.
    name: String,
    #[command(flatten)]
    common: Common,
}

fn slots(text: &str) -> Result<Slots, String> {
    if text == "none" {
        return Ok(Slots(None));
    }
    text.parse()
        .map(|slots| Slots(Some(slots)))
        .map_err(|_| "must be a whole number from 0, or `none`".into())
}

impl Queue {
    pub(super) fn common(&self) -> &Common {
        match self {
            Self::Ls(Ls { common }) | Self::Set(Set { common, .. }) => common,
            Self::Pause(named) | Self::Resume(named) | Self::Reset(named) => &named.common,
        }
    }

    pub(super) async fn run(&self, screen: &Screen) -> Result<u8, Error> {
        let client = self.common().client()?;
        let (name, change) = match self {
            Self::Ls(_) => {
                let queues = client.get("/v1/queues").await?;
                if self.common().json {
                    return show::json(&queues);
                }
                return list(screen, queues["items"].as_array().map(Vec::as_slice).unwrap_or_default());
            }
            Self::Set(Set { name, max_running, .. }) => {
                (name, Some(Map::from_iter([("max_running".to_owned(), json!(max_running.0))])))
            }
            Self::Pause(Named { name, .. }) => {
                (name, Some(Map::from_iter([("paused".to_owned(), true.into())])))
            }
            Self::Resume(Named { name, .. }) => {
                (name, Some(Map::from_iter([("paused".to_owned(), false.into())])))
            }
            Self::Reset(Named { name, .. }) => (name, None),
        };
        let path = format!("/v1/queues/{}", encoded(name));
        let ask = match change {
            Some(change) => Ask::new(Method::PUT, &path).json(&Value::Object(change)),
            None => Ask::new(Method::DELETE, &path),
        };
        let queue = client.json(ask).await?;
        if self.common().json { show::json(&queue) } else { list(screen, &[queue]) }
    }
}

fn list(screen: &Screen, queues: &[Value]) -> Result<u8, Error> {
    if queues.is_empty() {
        super::screen::say("no queue is used or set; `runward submit --queue NAME …` makes one");
        return Ok(0);
    }
    let row = |queue: &Value| {
        let number = |name: &str| Cell::from(queue[name].to_string());
        let state = if queue["paused"] == true { "paused" } else { "open" };
        let max = queue["max_running"].as_u64().map_or_else(|| "-".to_owned(), |max| max.to_string());
        let source = if queue["changed"] == true { "changed here" } else { "" };
        vec![
            text(queue, "/name").into(),
            Cell(state.into(), look(state)),
            number("queued"),
            number("running"),
            max.into(),
            source.into(),
        ]
    };
    show::print(&table(
        screen,
        &["QUEUE", "STATE", "WAITING", "RUNNING", "AT ONCE", "SOURCE"],
        queues.iter().map(row).collect(),
    ))
}
