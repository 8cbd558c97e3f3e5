//! The program on a pseudo-terminal: what a person types, and what they see.

use std::{
    fs::File,
    io::{Read, Write},
    os::unix::process::ExitStatusExt,
    process::{Child, Command, Stdio},
    sync::{Arc, Condvar, Mutex},
    thread,
    time::Instant,
};

use nix::pty::{Winsize, openpty};

use crate::common::PATIENCE;

/// What came on the terminal so far, and whether all of it has.
#[derive(Default)]
struct Seen {
    bytes: Mutex<(Vec<u8>, bool)>,
    more: Condvar,
}

/// A program and its terminal.
pub(crate) struct Terminal {
    keyboard: File,
    child: Child,
    seen: Arc<Seen>,
    reader: Option<thread::JoinHandle<()>>,
}

impl Terminal {
    /// Starts it as a shell would: a session of its own, with the terminal as the controlling one.
    pub(crate) fn start(command: Command) -> Self {
        let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(&size, None).expect("a pseudo-terminal");
        let end = || Stdio::from(pty.slave.try_clone().expect("a descriptor"));
        let mut with = Command::new("setsid");
        with.args(["--ctty", "--wait"]).arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => with.env(name, value),
                None => with.env_remove(name),
            };
        }
        if let Some(dir) = command.get_current_dir() {
            with.current_dir(dir);
        }
        let child = with
            .env_remove("COLUMNS")
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .expect("setsid runs; if it is missing: apt-get install util-linux");
        drop(with);
        drop(pty.slave);
        let seen = Arc::new(Seen::default());
        let mut screen = File::from(pty.master.try_clone().expect("a descriptor"));
        let reader = thread::spawn({
            let seen = Arc::clone(&seen);
            move || {
                let mut piece = [0; 4096];
                // The end of a terminal is an error of input and output.
                while let Ok(read @ 1..) = screen.read(&mut piece) {
                    seen.bytes.lock().expect("the screen").0.extend_from_slice(&piece[..read]);
                    seen.more.notify_all();
                }
                seen.bytes.lock().expect("the screen").1 = true;
                seen.more.notify_all();
            }
        });
        Self { keyboard: File::from(pty.master), child, seen, reader: Some(reader) }
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a pid")
    }

    pub(crate) fn press(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).expect("the terminal takes it");
    }

    /// Waits until this text has come.
    pub(crate) fn wait_for(&self, text: &str) {
        let start = Instant::now();
        let mut guard = self.seen.bytes.lock().expect("the screen");
        loop {
            let shown = String::from_utf8_lossy(&guard.0).into_owned();
            if shown.contains(text) {
                return;
            }
            let left = PATIENCE.checked_sub(start.elapsed()).filter(|_| !guard.1);
            let left = left.unwrap_or_else(|| panic!("{text:?} never came:\n{shown}"));
            guard = self.seen.more.wait_timeout(guard, left).expect("the screen").0;
        }
    }

    /// Waits for its end: the exit code, and all that came.
    pub(crate) fn end(&mut self) -> (Option<i32>, String) {
        let status = self.child.wait().expect("it ends");
        if let Some(reader) = self.reader.take() {
            reader.join().expect("the screen");
        }
        let shown = String::from_utf8_lossy(&self.seen.bytes.lock().expect("the screen").0).into_owned();
        (status.code().or(status.signal().map(|signal| -signal)), shown)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // A test that failed leaves nothing behind.
        if matches!(self.child.try_wait(), Ok(None)) {
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}

impl Terminal {
    /// Whether what is typed is shown.
    pub(crate) fn echoes(&self) -> bool {
        use nix::sys::termios::{LocalFlags, tcgetattr};
        tcgetattr(&self.keyboard).expect("a terminal").local_flags.contains(LocalFlags::ECHO)
    }
}
