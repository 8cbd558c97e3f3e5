//! The `runward` program: arguments, exit code.

use std::{path::PathBuf, process::ExitCode};

use clap::{CommandFactory, Parser, Subcommand};
use runward::{cli, daemon::Daemon, settings::Flags};

/// Supervises jobs: submitted from the command line or with curl, cancelled gracefully, never silently lost.
#[derive(Parser)]
#[command(name = "runward", version, arg_required_else_help = true, after_long_help = cli::EXIT_CODES)]
#[command(after_help = "`runward help` and `runward COMMAND --help` tell more, with the exit codes.")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the daemon in the foreground until SIGINT or SIGTERM.
    ///
    /// Exit codes: 0 stopped, everything closed and recorded; 2 bad arguments; 65 the store, or a secret in
    /// it, can't be used;
    /// 69 an address can't be listened on; 70 a mistake of runward's own; 71 the keeper died or the system gave
    /// out; 74 the store failed; 75 another daemon has the state directory; 77 the state directory or the token
    /// is not private; 78 bad settings; 80 something could not be killed in time; 81 ended by a second signal.
    Serve(Serve),
    #[command(flatten)]
    Client(cli::Command),
}

#[derive(clap::Args)]
struct Serve {
    /// Where jobs, records and output are kept.
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Where to serve the API: unix:PATH, 127.0.0.1:PORT or [::1]:PORT, any number of times. Port 0 takes any
    /// free one.
    #[arg(long, value_name = "ADDR")]
    listen: Vec<String>,
    /// The settings file.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Unset the secrets of the shared context whose key is lost, and go on without them.
    ///
    /// Without it the daemon refuses to start then: jobs that need them would fail. Their names are in the log.
    #[arg(long)]
    forget_secrets: bool,
    /// Stop when the process that started this one, which is this one, has ended.
    #[arg(long, value_name = "PID", hide = true)]
    parent: Option<i32>,
}

/// `serve` alone: a daemon does not pay for the commands that it does not have.
#[derive(Parser)]
#[command(name = "runward", version)]
enum Daemonic {
    Serve(Serve),
}

fn main() -> ExitCode {
    let is_daemon = std::env::args_os().nth(1).is_some_and(|word| word == "serve");
    let asks_help = std::env::args_os().any(|word| word == "--help" || word == "-h");
    let command = match is_daemon && !asks_help {
        true => {
            let Daemonic::Serve(serve) = Daemonic::parse();
            Command::Serve(serve)
        }
        false => Arguments::parse().command,
    };
    match command {
        Command::Serve(serve) => serve.run(),
        Command::Client(client) => ExitCode::from(client.carry_out(Arguments::command())),
    }
}

impl Serve {
    fn run(self) -> ExitCode {
        let Self { state_dir, listen, config, forget_secrets, parent } = self;
        if parent.is_some_and(|parent| !outlived_by(parent)) {
            return ExitCode::SUCCESS;
        }
        let code = Daemon::new(Flags { config, state_dir, listen, forget_secrets }).serve();
        ExitCode::from(code as u8)
    }
}

/// Has this process told by SIGTERM when its parent ends. `false`: that has ended already.
fn outlived_by(parent: i32) -> bool {
    use rustix::process::{Signal, getppid, set_parent_process_death_signal};
    if let Err(error) = set_parent_process_death_signal(Some(Signal::TERM)) {
        eprintln!("runward: the end of the process {parent} can't be watched: {error}");
        return false;
    }
    getppid().is_some_and(|now| now.as_raw_nonzero().get() == parent)
}
