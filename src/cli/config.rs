//! `config`: the settings that a daemon would start with, and where each comes from.

use std::path::PathBuf;

use serde_json::{Map, Value, json};

use super::{
    error::{Code, Error},
    screen::{Look, Screen},
    show,
    table::{Cell, table},
};
use crate::settings::{self, Flags};

/// Check and show the settings that a daemon would start with. Asks no daemon.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum Config {
    /// Check them: the first thing that is wrong is named, with where it stands, and the exit code is 78.
    Check(Settings),
    /// Print each value and where it comes from.
    Print(Settings),
}

/// Which settings.
#[derive(Clone, Debug, clap::Args)]
pub struct Settings {
    /// The settings file.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// As of `serve`.
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// As of `serve`.
    #[arg(long, value_name = "ADDR")]
    listen: Vec<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Config {
    pub(super) fn run(&self, screen: &Screen) -> Result<u8, Error> {
        let (Self::Check(asked) | Self::Print(asked)) = self;
        let flags = Flags {
            config: asked.config.clone(),
            state_dir: asked.state_dir.clone(),
            listen: asked.listen.clone(),
            ..Flags::default()
        };
        let wrong = |error: settings::SettingsError| Error::new(Code::Settings, error.to_string());
        settings::load(&flags).map_err(wrong)?;
        let values = settings::origins(&flags).map_err(wrong)?;
        match (self, asked.json) {
            (Self::Check(_), false) => {
                let mut origins: Vec<&str> = values.iter().map(|(_, _, origin)| origin.as_str()).collect();
                origins.sort_unstable();
                origins.dedup();
                show::print(&format!("the settings are valid; they come from: {}\n", origins.join(", ")))
            }
            (Self::Check(_), true) => show::json(&json!({"valid": true})),
            (Self::Print(_), false) => {
                let row = |(key, value, origin): &(String, String, String)| {
                    let look = if origin == settings::DEFAULTS { Look::Dim } else { Look::Plain };
                    vec![Cell(key.clone(), look), Cell(value.clone(), look), Cell(origin.clone(), Look::Dim)]
                };
                show::print(&table(screen, &["SETTING", "VALUE", "FROM"], values.iter().map(row).collect()))
            }
            (Self::Print(_), true) => {
                let entry = |(key, value, origin): (String, String, String)| {
                    (key, json!({"value": value, "from": origin}))
                };
                show::json(&Value::Object(values.into_iter().map(entry).collect::<Map<_, _>>()))
            }
        }
    }
}
