//! The client commands. They speak HTTP to a daemon, and know nothing of what is behind it.
//!
//! [`connect`] finds the daemon, `client` asks it, `follow` stays with what comes, and `screen` and `printer` keep
//! control characters of jobs away from terminals. Each command is a struct of its arguments with a `run`.

mod client;
pub mod config;
pub mod connect;
pub mod context;
pub mod error;
mod follow;
pub mod health;
mod ids;
pub mod job;
pub mod list;
pub mod local;
pub mod logs;
pub mod pages;
mod printer;
mod progress;
pub mod queue;
mod record;
pub mod run;
mod screen;
mod show;
pub mod stop;
pub mod submit;
mod table;

use std::io::Write;

use connect::{Common, When};
use error::{Cause, Code, Error};
use screen::Screen;

pub use error::EXIT_CODES;

/// A command that asks a running daemon, or none at all.
#[expect(missing_docs, reason = "each is told of by its arguments, and so in its help")]
#[derive(Clone, Debug, clap::Subcommand)]
pub enum Command {
    Run(Box<run::Run>),
    Submit(Box<submit::Submit>),
    Batch(submit::Batch),
    #[command(visible_alias = "ls")]
    Ps(list::Ps),
    Show(list::Show),
    Explain(list::Explain),
    Logs(logs::Logs),
    Events(logs::Events),
    Wait(stop::Wait),
    Cancel(stop::Cancel),
    Close(stop::Close),
    Release(stop::Release),
    #[command(subcommand, visible_alias = "queues")]
    Queue(queue::Queue),
    #[command(subcommand)]
    Context(context::Context),
    Health(health::Health),
    #[command(subcommand)]
    Config(config::Config),
    Completions(pages::Completions),
    Man(pages::Man),
}

impl Command {
    /// Carries it out; `whole` is the command line of the program, for its manual. The result is the exit code.
    #[must_use]
    pub fn carry_out(&self, whole: clap::Command) -> u8 {
        let common = self.common();
        let screen = Screen::new(common.map_or(When::Auto, |common| common.color));
        let done = match self {
            Self::Config(config) => config.run(&screen),
            Self::Completions(completions) => completions.run(whole),
            Self::Man(man) => man.run(whole),
            _ => self.ask(&screen),
        };
        done.unwrap_or_else(|error| {
            tell(&error, common.is_some_and(|common| common.json));
            error.code as u8
        })
    }

    fn common(&self) -> Option<&Common> {
        Some(match self {
            Self::Run(run) => run.common(),
            Self::Submit(submit) => submit.common(),
            Self::Batch(batch) => batch.common(),
            Self::Ps(ps) => ps.common(),
            Self::Show(show) => show.common(),
            Self::Explain(explain) => explain.common(),
            Self::Logs(logs) => logs.common(),
            Self::Events(events) => events.common(),
            Self::Wait(wait) => wait.common(),
            Self::Cancel(cancel) => cancel.common(),
            Self::Close(close) => close.common(),
            Self::Release(release) => release.common(),
            Self::Queue(queue) => queue.common(),
            Self::Context(context) => context.common(),
            Self::Health(health) => health.common(),
            Self::Config(_) | Self::Completions(_) | Self::Man(_) => return None,
        })
    }

    fn ask(&self, screen: &Screen) -> Result<u8, Error> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime =
            runtime.map_err(|error| Error::new(Code::Internal, format!("no event loop: {error}")))?;
        runtime.block_on(async {
            match self {
                Self::Run(run) => run.run(screen).await,
                Self::Submit(submit) => submit.run(screen).await,
                Self::Batch(batch) => batch.run().await,
                Self::Ps(ps) => ps.run(screen).await,
                Self::Show(show) => show.run(screen).await,
                Self::Explain(explain) => explain.run().await,
                Self::Logs(logs) => logs.run(screen).await,
                Self::Events(events) => events.run(screen).await,
                Self::Wait(wait) => wait.run(screen).await,
                Self::Cancel(cancel) => cancel.run(screen).await,
                Self::Close(close) => close.run(screen).await,
                Self::Release(release) => release.run().await,
                Self::Queue(queue) => queue.run(screen).await,
                Self::Context(context) => context.run(screen).await,
                Self::Health(health) => health.run().await,
                Self::Config(_) | Self::Completions(_) | Self::Man(_) => Ok(Code::Ok as u8),
            }
        })
    }
}

/// An error on standard error: a sentence for people, the problem itself for programs.
fn tell(error: &Error, json: bool) {
    match &error.cause {
        Cause::Problem(problem) if json && problem.is_object() => {
            // Nobody may read it.
            drop(writeln!(std::io::stderr().lock(), "{problem}"));
        }
        Cause::Problem(_) | Cause::Unreachable | Cause::Broken | Cause::Here => screen::say(&error.message),
    }
}
