//! Where the daemon is: what was said on the command line, in the environment, or what a running daemon left in its
//! state directory.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    client::Client,
    error::{Cause, Code, Error},
};
use crate::{
    settings::{self, Flags},
    state_dir::DaemonFile,
};

/// Which daemon to ask, and how to answer: of every client command.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Daemon and output")]
pub struct Common {
    /// The daemon that has this state directory [env: RUNWARD_STATE_DIR].
    #[arg(long, value_name = "DIR", conflicts_with = "url")]
    pub state_dir: Option<PathBuf>,
    /// The daemon at this address, http://HOST:PORT or unix:PATH [env: RUNWARD_URL].
    ///
    /// Over TCP a token is needed: from the variable RUNWARD_TOKEN, or from the file that --token-file or
    /// RUNWARD_TOKEN_FILE names. It is never taken from the command line, which everybody can see.
    #[arg(long, value_name = "URL")]
    pub url: Option<String>,
    /// The file with the token [env: RUNWARD_TOKEN_FILE].
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// How long to try to reach the daemon again after the connection broke.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    pub reconnect: Duration,
    /// Print the JSON of the API instead; of streams one object a line.
    #[arg(long)]
    pub json: bool,
    /// Colours: on a terminal unless NO_COLOR is set, always, or never.
    #[arg(long, value_name = "WHEN", value_enum, default_value = "auto", hide_possible_values = true)]
    pub color: When,
}

/// When there are colours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum When {
    /// On a terminal, unless NO_COLOR is set; CLICOLOR_FORCE forces them.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    settings::parse_duration(text)
        .ok_or_else(|| r#"must be a duration such as "30s", "5m" or "1h30m""#.into())
}

/// An address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Unix(PathBuf),
    /// `HOST:PORT`
    Tcp(String),
}

/// A daemon that may be there.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) place: Place,
    pub(super) token: Option<String>,
    /// What to say when nobody answers.
    pub(super) silent: String,
}

impl Common {
    /// A client of the daemon that is meant.
    pub(super) fn client(&self) -> Result<Client, Error> {
        Ok(Client::new(self.target()?))
    }

    /// The state directory in question, if it is one.
    fn target(&self) -> Result<Target, Error> {
        if let Some(url) = &self.url {
            return self.at(url, "--url");
        }
        if self.state_dir.is_none()
            && let Some(url) = variable("RUNWARD_URL")
        {
            return self.at(&url, "RUNWARD_URL");
        }
        let named = self.state_dir.clone().or_else(|| variable("RUNWARD_STATE_DIR").map(PathBuf::from));
        let dir = settings::state_dir(&Flags { state_dir: named, ..Flags::default() })
            .map_err(|error| Error::new(Code::Settings, error.to_string()))?;
        in_state_dir(&dir)
    }

    fn at(&self, url: &str, said_by: &str) -> Result<Target, Error> {
        let place = place(url)
            .map_err(|expected| Error::usage(format!("{said_by} is {url:?}, but must be {expected}")))?;
        let silent = format!("no daemon answers at {url} ({said_by}); is it running there?");
        let token = match &place {
            Place::Unix(_) => None,
            Place::Tcp(_) => self.token()?,
        };
        Ok(Target { place, token, silent })
    }

    fn token(&self) -> Result<Option<String>, Error> {
        let file = match (&self.token_file, variable("RUNWARD_TOKEN")) {
            (Some(file), _) => Some(file.clone()),
            (None, Some(token)) => return Ok(Some(token)),
            (None, None) => variable("RUNWARD_TOKEN_FILE").map(PathBuf::from),
        };
        file.map(|file| read_token(&file)).transpose()
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn read_token(file: &Path) -> Result<String, Error> {
    let text = fs::read_to_string(file).map_err(|error| Error::file(file, &error))?;
    Ok(text.trim().to_owned())
}

fn place(url: &str) -> Result<Place, &'static str> {
    const FORMS: &str = "http://HOST:PORT or unix:PATH";
    if let Some(path) = url.strip_prefix("unix:") {
        let path = path.strip_prefix("//").unwrap_or(path);
        return if path.is_empty() { Err(FORMS) } else { Ok(Place::Unix(path.into())) };
    }
    let parsed = url::Url::parse(url).map_err(|_| FORMS)?;
    if parsed.scheme() == "https" {
        return Err(
            "http://… or unix:…: the daemon has no TLS; reach one on another machine through a tunnel, such as `ssh -L 7711:127.0.0.1:7711 HOST`",
        );
    }
    let plain = parsed.scheme() == "http" && matches!(parsed.path(), "" | "/") && parsed.query().is_none();
    match (plain && parsed.username().is_empty(), parsed.host_str()) {
        (true, Some(host)) => Ok(Place::Tcp(format!("{host}:{}", parsed.port().unwrap_or(80)))),
        (_, _) => Err(FORMS),
    }
}

/// The daemon that says in a state directory where it is.
fn in_state_dir(dir: &Path) -> Result<Target, Error> {
    let file = dir.join("daemon.json");
    let start = format!(
        "Start one with `runward serve --state-dir {}`, or name another: --state-dir, RUNWARD_STATE_DIR, RUNWARD_URL. \
         `runward run --local` needs none",
        dir.display()
    );
    let none = |why: String| Error {
        code: Code::NoDaemon,
        cause: Cause::Unreachable,
        message: format!("{why}. {start}"),
    };
    let bytes = fs::read(&file).map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => Error::new(
            Code::Denied,
            format!(
                "{} can't be read: {error}. The daemon belongs to another user: ask as that user, or over TCP with \
                 RUNWARD_URL and RUNWARD_TOKEN",
                file.display()
            ),
        ),
        io::ErrorKind::NotFound => none(format!("no daemon is running: there is no {}", file.display())),
        _ => Error::file(&file, &error),
    })?;
    let daemon: DaemonFile = serde_json::from_slice(&bytes)
        .map_err(|error| none(format!("{} is none of this program's: {error}", file.display())))?;
    let silent = format!(
        "no daemon is running: {} was left by one with pid {} that is gone. {start}",
        file.display(),
        daemon.pid
    );
    let unix = daemon.listen.iter().find_map(|address| address.strip_prefix("unix:"));
    let tcp = daemon.listen.iter().find(|address| !address.starts_with("unix:"));
    match (unix, tcp) {
        (Some(path), _) => Ok(Target { place: Place::Unix(path.into()), token: None, silent }),
        (None, Some(address)) => {
            let token = Some(read_token(&dir.join("token"))?);
            Ok(Target { place: Place::Tcp(address.clone()), token, silent })
        }
        (None, None) => Err(none(format!("{} names no address", file.display()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_others_refused_with_what_would_do() {
        assert_eq!(place("unix:/run/api.sock"), Ok(Place::Unix("/run/api.sock".into())));
        assert_eq!(place("unix:///run/api.sock"), Ok(Place::Unix("/run/api.sock".into())));
        assert_eq!(place("http://localhost:7711/"), Ok(Place::Tcp("localhost:7711".into())));
        assert_eq!(place("http://[::1]:7711"), Ok(Place::Tcp("[::1]:7711".into())));
        for bad in ["", "unix:", "localhost:7711", "ftp://x", "http://u:p@x/", "http://x/v1", "https://x"] {
            assert!(place(bad).is_err(), "{bad}");
        }
    }
}
