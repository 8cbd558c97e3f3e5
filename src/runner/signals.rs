//! Signals as interrupts: while a Runner holds them they go to it; otherwise they do what they did
//! before the first Runner held them, which is always their default action.
//!
//! A handler stays installed once it was needed, for safe code cannot put the default disposition
//! back; while nobody holds the signal the handler carries the default action out itself.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::{flag, low_level};

use super::control::Control;
use super::interrupt::Response;
use super::sync::{Arc, Mutex, lock};

static DESK: LazyLock<Mutex<Desk>> = LazyLock::new(Mutex::default);

#[derive(Default)]
struct Desk {
    installed: BTreeMap<i32, Installed>,
    /// Where the handlers write, so that the watching thread wakes.
    bell: Option<UnixStream>,
    holder: Option<Holder>,
}

#[derive(Clone)]
struct Installed {
    /// Nobody holds it: the handler carries out the default action.
    idle: Arc<AtomicBool>,
    /// It came, and its holder was not told yet. Two that come before that are one, as always with
    /// signals.
    arrived: Arc<AtomicBool>,
}

struct Holder {
    control: Arc<Control>,
    signals: Vec<Installed>,
}

impl Holder {
    fn took_one(&self) -> bool {
        self.signals.iter().fold(false, |any, signal| signal.arrived.swap(false, Ordering::AcqRel) | any)
    }

    fn let_go(&self) {
        for signal in &self.signals {
            signal.idle.store(true, Ordering::Release);
        }
    }
}

/// Signals held for one run; dropping it lets them go.
pub(crate) struct Hold {
    control: Arc<Control>,
}

/// Holds those of `signals` whose disposition is the default, if this is the main thread and no
/// other Runner holds any. That nothing could be held is not an error.
pub(crate) fn hold(signals: &[i32], control: &Arc<Control>) -> Option<Hold> {
    if signals.is_empty() || !is_main_thread() {
        return None;
    }
    let mut desk = lock(&DESK);
    if desk.holder.is_some() {
        return None;
    }
    let held: Vec<_> = signals.iter().filter_map(|&signal| desk.install(signal).ok().flatten()).collect();
    if held.is_empty() {
        return None;
    }
    for signal in &held {
        signal.arrived.store(false, Ordering::Release);
        signal.idle.store(false, Ordering::Release);
    }
    desk.holder = Some(Holder { control: control.clone(), signals: held });
    Some(Hold { control: control.clone() })
}

impl Drop for Hold {
    fn drop(&mut self) {
        let holder = lock(&DESK).holder.take();
        let Some(holder) = holder else { return };
        holder.let_go();
        // One that came during the run, and that the watching thread had no time for.
        if holder.took_one() {
            self.control.interrupt();
        }
    }
}

impl Desk {
    /// None when somebody else has the signal.
    fn install(&mut self, signal: i32) -> io::Result<Option<Installed>> {
        if let Some(known) = self.installed.get(&signal) {
            return Ok(Some(known.clone()));
        }
        if !has_default_disposition(signal) {
            return Ok(None);
        }
        let bell = match &self.bell {
            Some(bell) => bell.try_clone()?,
            None => {
                let (bell, ear) = UnixStream::pair()?;
                std::thread::Builder::new().name("runward-signals".into()).spawn(move || watch(ear))?;
                self.bell.insert(bell).try_clone()?
            }
        };
        let installed =
            Installed { idle: Arc::new(AtomicBool::new(true)), arrived: Arc::new(AtomicBool::new(false)) };
        // Handlers run in this order. The first one stays even if the others fail: it is what
        // stands for the default disposition from now on.
        flag::register_conditional_default(signal, installed.idle.clone())?;
        flag::register(signal, installed.arrived.clone())?;
        low_level::pipe::register(signal, bell)?;
        self.installed.insert(signal, installed.clone());
        Ok(Some(installed))
    }
}

/// A thread of its own, for the loop's threads may all be stuck when the second interrupt comes.
fn watch(mut ear: UnixStream) {
    let mut rung = [0; 64];
    loop {
        match ear.read(&mut rung) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                tracing::error!(%error, "signals are no longer watched");
                return;
            }
        }
        let desk = lock(&DESK);
        if let Some(holder) = desk.holder.as_ref().filter(|holder| holder.took_one())
            && holder.control.interrupt() == Response::Abandon
        {
            // If the run cannot end because its main task is stuck in the very thread that waits
            // for it, then the next one ends the process.
            holder.let_go();
        }
    }
}

fn is_main_thread() -> bool {
    thread_local! {
        static IS_MAIN: bool = std::fs::read_link("/proc/thread-self").ok().is_some_and(|link| {
            let mut parts = link.iter();
            let process = parts.next();
            process.is_some() && parts.next_back() == process
        });
    }
    IS_MAIN.with(|is_main| *is_main)
}

/// Neither caught nor ignored, by the bit masks in `/proc/self/status` (proc_pid_status(5)).
fn has_default_disposition(signal: i32) -> bool {
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else { return false };
    let Some(bit) = signal.checked_sub(1).and_then(|at| 1_u64.checked_shl(at.cast_unsigned())) else {
        return false;
    };
    let is_set = |field: &str| {
        let mask = status.lines().find_map(|line| line.strip_prefix(field))?;
        u64::from_str_radix(mask.trim(), 16).ok().map(|mask| mask & bit != 0)
    };
    is_set("SigIgn:") == Some(false) && is_set("SigCgt:") == Some(false)
}
