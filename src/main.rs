//! The `runward` program: arguments, exit code.

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use runward::{daemon::Daemon, settings::Flags};

/// Supervises jobs: submitted with curl, cancelled gracefully, never silently lost.
#[derive(Parser)]
#[command(name = "runward", version, arg_required_else_help = true)]
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
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Serve(Serve { state_dir, listen, config, forget_secrets }) => {
            let code = Daemon::new(Flags { config, state_dir, listen, forget_secrets }).serve();
            ExitCode::from(code as u8)
        }
    }
}
