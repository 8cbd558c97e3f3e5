//! `health`: a probe, for those that run a command to probe.

use std::time::Duration;

use hyper::Method;
use serde_json::Value;

use super::{
    client::Ask,
    connect::{Common, duration},
    error::{Code, Error},
    record::text,
    show,
};

/// Ask the daemon whether it takes jobs. Exits with 0 if it does and with 1 if not; made for HEALTHCHECK.
#[derive(Clone, Debug, clap::Args)]
pub struct Health {
    /// Ask only whether it lives: that it recovers, drains or can't write is no harm then.
    #[arg(long)]
    live: bool,
    /// How long it may take to answer.
    #[arg(short, long, value_name = "TIME", default_value = "5s", value_parser = duration)]
    timeout: Duration,
    #[command(flatten)]
    common: Common,
}

impl Health {
    pub(super) fn common(&self) -> &Common {
        &self.common
    }

    pub(super) async fn run(&self) -> Result<u8, Error> {
        match self.ask().await {
            // Docker knows 0 and 1 only.
            Err(error) => Err(Error { code: Code::Failed, ..error }),
            Ok((true, status)) => show::print(&format!("{status}\n")),
            Ok((false, status)) => {
                show::print(&format!("{status}\n"))?;
                Ok(Code::Failed as u8)
            }
        }
    }

    async fn ask(&self) -> Result<(bool, String), Error> {
        let path = if self.live { "/livez" } else { "/readyz" };
        let ask = Ask::new(Method::GET, path).patience(Some(self.timeout));
        let answer = self.common.client()?.send(ask).await?;
        let well = answer.status == 200;
        let body = answer.bytes().await?;
        let text_of = |body: &[u8]| String::from_utf8_lossy(body).trim().to_owned();
        let shown = match serde_json::from_slice::<Value>(&body) {
            Ok(ready) if !self.common.json => text(&ready, "/status").to_owned(),
            Ok(_) | Err(_) => text_of(&body),
        };
        Ok((well, shown))
    }
}
