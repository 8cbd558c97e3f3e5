//! `context`: the variables that every job sees.

use std::io::{self, BufRead, IsTerminal, Write};

use hyper::Method;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    client::Ask,
    connect::Common,
    error::{Code, Error},
    ids::encoded,
    job::standard_input,
    record::{ago, text},
    screen::{Look, Screen},
    show,
    table::{Cell, table},
};

/// See and set the variables that every job has in its environment.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum Context {
    /// List them. The values of secrets are not shown.
    Ls(Ls),
    /// Print the value of one.
    Get(Get),
    /// Set one. Jobs that start from now on see it.
    Set(Set),
    /// Unset one.
    Unset(Unset),
}

/// List the variables.
#[derive(Clone, Debug, clap::Args)]
pub struct Ls {
    #[command(flatten)]
    common: Common,
}

/// Print the value of a variable.
#[derive(Clone, Debug, clap::Args)]
pub struct Get {
    /// The variable.
    name: String,
    #[command(flatten)]
    common: Common,
}

/// Set a variable.
#[derive(Clone, Debug, clap::Args)]
pub struct Set {
    /// The variable.
    name: String,
    /// Its value; not of a secret, whose value is read from standard input: arguments are there for all to see.
    #[arg(conflicts_with_all = ["secret", "from_file", "from_env", "from_credential"], required_unless_present_any = ["secret", "from_file", "from_env", "from_credential"])]
    value: Option<String>,
    /// Keep it encrypted and never show it. The value is asked for, or is the first line of standard input.
    #[arg(long)]
    secret: bool,
    /// Read it from this file of the daemon's machine each time a job starts.
    #[arg(long, value_name = "FILE", group = "from", conflicts_with = "secret")]
    from_file: Option<String>,
    /// Take it from this variable of the daemon's own environment.
    #[arg(long, value_name = "NAME", group = "from", conflicts_with = "secret")]
    from_env: Option<String>,
    /// Read it from this credential that systemd gave the daemon.
    #[arg(long, value_name = "NAME", group = "from", conflicts_with = "secret")]
    from_credential: Option<String>,
    #[command(flatten)]
    common: Common,
}

/// Unset a variable.
#[derive(Clone, Debug, clap::Args)]
pub struct Unset {
    /// The variable.
    name: String,
    #[command(flatten)]
    common: Common,
}

impl Context {
    pub(super) fn common(&self) -> &Common {
        match self {
            Self::Ls(Ls { common })
            | Self::Get(Get { common, .. })
            | Self::Set(Set { common, .. })
            | Self::Unset(Unset { common, .. }) => common,
        }
    }

    pub(super) async fn run(&self, screen: &Screen) -> Result<u8, Error> {
        let client = self.common().client()?;
        let json = self.common().json;
        match self {
            Self::Ls(_) => {
                let context = client.get("/v1/context").await?;
                if json {
                    return show::json(&context);
                }
                let now = Timestamp::now();
                let variables = context["variables"].as_array().into_iter().flatten();
                let rows: Vec<_> = variables.map(|variable| row(variable, now)).collect();
                if rows.is_empty() {
                    super::screen::say(
                        "the shared context is empty; set a variable with `runward context set NAME VALUE`",
                    );
                    return Ok(0);
                }
                show::print(&table(screen, &["NAME", "SET", "VALUE"], rows))
            }
            Self::Get(Get { name, .. }) => {
                let variable = client.get(&path(name)).await?;
                if json {
                    return show::json(&variable);
                }
                match variable["value"].as_str() {
                    Some(value) => show::print(&format!(
                        "{}\n",
                        if screen.out { super::screen::clean(value) } else { value.into() }
                    )),
                    None => Err(Error::new(
                        Code::Denied,
                        format!("{name} is a secret; its value is shown to jobs only"),
                    )),
                }
            }
            Self::Set(set) => {
                let body = set.body()?;
                let variable = client.json(Ask::new(Method::PUT, &path(&set.name)).json(&body)).await?;
                if json { show::json(&variable) } else { Ok(0) }
            }
            Self::Unset(Unset { name, .. }) => {
                let answer = client.json(Ask::new(Method::DELETE, &path(name))).await?;
                if json { show::json(&answer) } else { Ok(0) }
            }
        }
    }
}

impl Set {
    fn body(&self) -> Result<Value, Error> {
        let from =
            [("file", &self.from_file), ("env", &self.from_env), ("credential", &self.from_credential)];
        for (kind, name) in from {
            if let Some(name) = name {
                return Ok(json!({"from": {kind: name}}));
            }
        }
        match &self.value {
            Some(value) => Ok(json!({"value": value})),
            None => Ok(json!({"value": read_secret(&self.name)?, "secret": true})),
        }
    }
}

fn path(name: &str) -> String {
    format!("/v1/context/{}", encoded(name))
}

fn row(variable: &Value, now: Timestamp) -> Vec<Cell> {
    let value = match (variable["value"].as_str(), text(variable, "/source")) {
        (Some(value), _) => value.into(),
        (None, "inline") => Cell("(secret)".into(), Look::Dim),
        (None, source) => Cell(format!("(from {source} {})", text(variable, "/from")), Look::Dim),
    };
    vec![text(variable, "/name").into(), ago(text(variable, "/set_at"), now).into(), value]
}

/// A line that is typed without being seen, or all of what a program sends, but for a line's end.
fn read_secret(name: &str) -> Result<String, Error> {
    if !io::stdin().is_terminal() {
        let mut text = standard_input()?;
        if text.ends_with('\n') {
            text.pop();
        }
        return Ok(text);
    }
    let failed = |error: io::Error| Error::new(Code::Broken, format!("the value can't be read: {error}"));
    drop(write!(io::stderr(), "{name}: "));
    let _unseen = Unseen::new().map_err(failed)?;
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line).map_err(failed)?;
    drop(writeln!(io::stderr()));
    let line = line.strip_suffix('\n').unwrap_or(&line);
    if line.is_empty() {
        return Err(Error::usage("no value was given; nothing is set"));
    }
    Ok(line.to_owned())
}

/// What is typed is not shown, as long as this lives.
struct Unseen(nix::sys::termios::Termios);

impl Unseen {
    fn new() -> io::Result<Self> {
        use nix::sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr};
        let before = tcgetattr(io::stdin())?;
        let mut unseen = before.clone();
        unseen.local_flags.remove(LocalFlags::ECHO);
        tcsetattr(io::stdin(), SetArg::TCSAFLUSH, &unseen)?;
        Ok(Self(before))
    }
}

impl Drop for Unseen {
    fn drop(&mut self) {
        use nix::sys::termios::{SetArg, tcsetattr};
        // A terminal that is gone shows nothing.
        tcsetattr(io::stdin(), SetArg::TCSANOW, &self.0).unwrap_or_default();
    }
}
