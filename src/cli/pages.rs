//! `completions` and `man`: made from the commands themselves.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::{
    error::{Code, Error},
    show,
};

/// Print the completions for a shell.
///
/// For bash: `source <(runward completions bash)`. For zsh: `runward completions zsh > ~/.zfunc/_runward`. For fish:
/// `runward completions fish > ~/.config/fish/completions/runward.fish`.
#[derive(Clone, Debug, clap::Args)]
pub struct Completions {
    /// Which shell.
    shell: clap_complete::Shell,
}

/// Print the manual, or write a page for each command into a directory.
#[derive(Clone, Debug, clap::Args)]
pub struct Man {
    /// Where to; one page, of runward itself, goes to standard output if it is left out.
    dir: Option<PathBuf>,
}

impl Completions {
    pub(super) fn run(&self, mut command: clap::Command) -> Result<u8, Error> {
        let mut text = Vec::new();
        clap_complete::generate(self.shell, &mut command, "runward", &mut text);
        show::print(&String::from_utf8_lossy(&text))
    }
}

impl Man {
    pub(super) fn run(&self, command: clap::Command) -> Result<u8, Error> {
        match &self.dir {
            None => show::print(&String::from_utf8_lossy(
                &page(command).map_err(|error| failed(Path::new("-"), &error))?,
            )),
            Some(dir) => {
                let mut command = command;
                command.build();
                write(&command, dir)?;
                Ok(0)
            }
        }
    }
}

fn failed(path: &Path, error: &io::Error) -> Error {
    Error::new(Code::Broken, format!("{}: {error}", path.display()))
}

fn page(command: clap::Command) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    clap_mangen::Man::new(command).render(&mut text)?;
    Ok(text)
}

/// A page for a command and for each below it.
fn write(command: &clap::Command, dir: &Path) -> Result<(), Error> {
    let name = command.get_display_name().unwrap_or(command.get_name()).to_owned();
    let path = dir.join(format!("{name}.1"));
    let text = page(command.clone()).map_err(|error| failed(&path, &error))?;
    std::fs::write(&path, text).map_err(|error| failed(&path, &error))?;
    let shown = |below: &&clap::Command| !below.is_hide_set() && below.get_name() != "help";
    command.get_subcommands().filter(shown).try_for_each(|below| write(below, dir))
}
