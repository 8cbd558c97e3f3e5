//! `submit` and `batch`: jobs that go on by themselves.

use std::path::{Path, PathBuf};

use hyper::{Method, header::HeaderName};
use serde_json::{Value, json};

use super::{
    client::Ask,
    connect::Common,
    error::{Code, Error},
    job::{Here, Submission, standard_input},
    record::{self, short, text},
    run::{Submitted, submit},
    screen::{Screen, say},
    show, stop,
};

/// Submit a job and print its id. It goes on by itself.
#[derive(Clone, Debug, clap::Args)]
pub struct Submit {
    #[command(flatten)]
    submission: Submission,
    /// Wait until it has closed, and exit as it did.
    #[arg(short, long)]
    wait: bool,
    #[command(flatten)]
    common: Common,
}

impl Submit {
    pub(super) fn common(&self) -> &Common {
        &self.common
    }

    pub(super) async fn run(&self, screen: &Screen) -> Result<u8, Error> {
        let client = self.common.client()?;
        let cwd = client.is_local().then(std::env::current_dir).and_then(Result::ok);
        let Submitted { record, id, run } =
            submit(&client, &self.submission, &Here { cwd, env: false }).await?;
        if !self.common.json {
            show::print(&format!("{id}\n"))?;
        }
        if !self.wait {
            return if self.common.json { show::json(&record) } else { Ok(0) };
        }
        let record = stop::ended(&client, &id, &self.common, screen).await?;
        if self.common.json {
            show::json(&record)?;
        } else {
            say(&format!("{} {}", short(&id), record::word(&record)));
        }
        Ok(record::exit_code(&record, Some(run)))
    }
}

/// Submit many jobs at once, and print an id for each.
///
/// The file has one submission a line, each as the body of `POST /v1/runners`; or it is the body of
/// `POST /v1/runners:batch` itself. Those that are refused are named, with the field at fault; the others are accepted
/// all the same, and the exit code is 65.
#[derive(Clone, Debug, clap::Args)]
pub struct Batch {
    /// The file, or `-` for standard input.
    file: PathBuf,
    /// The same file sent again with the same key gets the first answer instead of more jobs.
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    #[command(flatten)]
    common: Common,
}

impl Batch {
    pub(super) fn common(&self) -> &Common {
        &self.common
    }

    pub(super) async fn run(&self) -> Result<u8, Error> {
        let text = if self.file == Path::new("-") {
            standard_input()?
        } else {
            std::fs::read_to_string(&self.file).map_err(|error| Error::file(&self.file, &error))?
        };
        let body = body(&text)?;
        let client = self.common.client()?;
        let mut ask = Ask::new(Method::POST, "/v1/runners:batch").json(&body);
        if let Some(key) = &self.idempotency_key {
            ask = ask.header(HeaderName::from_static("idempotency-key"), key)?;
        }
        let answer = client.json(ask).await?;
        let items = answer["items"].as_array().map(Vec::as_slice).unwrap_or_default();
        if self.common.json {
            show::json(&answer)?;
        }
        let mut refused = 0;
        for (number, item) in items.iter().enumerate() {
            match item.get("problem") {
                Some(problem) => {
                    refused += 1;
                    say(&format!(
                        "job {}: {}: {}",
                        number + 1,
                        record::text(problem, "/field"),
                        record::text(problem, "/detail")
                    ));
                }
                None if self.common.json => {}
                None => drop(show::print(&format!("{}\n", text_of(item)))?),
            }
        }
        Ok(if refused == 0 { 0 } else { Code::Refused as u8 })
    }
}

fn text_of(item: &Value) -> &str {
    text(item, "/runner/id")
}

fn body(file: &str) -> Result<Value, Error> {
    if let Ok(whole @ Value::Object(_)) = serde_json::from_str::<Value>(file)
        && whole.get("runners").is_some()
    {
        return Ok(whole);
    }
    let lines = file.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let runners: Result<Vec<Value>, Error> = lines
        .map(|(number, line)| {
            let wrong = |error| Error::usage(format!("line {} is no JSON: {error}", number + 1));
            serde_json::from_str(line).map_err(wrong)
        })
        .collect();
    Ok(json!({"runners": runners?}))
}
