//! Signals to the daemon, read on a thread of their own: they are heard when every runtime worker is stuck.

use std::{
    io,
    sync::{Arc, atomic::AtomicBool},
    thread,
    time::Duration,
};

use signal_hook::{
    SigId,
    consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2},
    flag::register_conditional_shutdown,
    iterator::{Handle, Signals},
    low_level::unregister,
};
use tokio::sync::mpsc;

use crate::{
    daemon::Code,
    http::{AskedBy, Reload, ReloadRequest},
    process::reap,
    supervisor::Urgent,
};

/// After a second signal the supervisor has this long to kill everything and to record it. It gives up by
/// itself before that; this is for a supervisor that is stuck.
const FORCED: Duration = Duration::from_millis(450);

/// Ends the process on SIGINT and SIGTERM where it stands, until this is dropped: nothing runs yet that had to be
/// stopped first, but what an earlier daemon left may take a while. A process that was started with these ignored, or
/// as PID 1, would not hear them.
#[derive(Debug)]
pub struct WhileStarting([SigId; 2]);

impl WhileStarting {
    /// Starts listening. Makes no thread.
    ///
    /// # Errors
    /// When the handlers can't be had.
    pub fn start() -> io::Result<Self> {
        let ends = |signal| {
            register_conditional_shutdown(
                signal,
                i32::from(Code::Stopped as u8),
                Arc::new(AtomicBool::new(true)),
            )
        };
        Ok(Self([ends(SIGINT)?, ends(SIGTERM)?]))
    }
}

impl Drop for WhileStarting {
    fn drop(&mut self) {
        for id in self.0 {
            unregister(id);
        }
    }
}

/// The signal thread. It ends when this is dropped.
#[derive(Debug)]
pub struct SignalThread {
    handle: Handle,
    thread: Option<thread::JoinHandle<()>>,
}

impl SignalThread {
    /// Starts listening. `keeper`: the child whose end somebody else waits for.
    ///
    /// # Errors
    /// When the handlers or the thread can't be had.
    pub fn start(urgent: mpsc::Sender<Urgent>, reload: Reload, keeper: i32) -> io::Result<Self> {
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2, SIGCHLD])?;
        // Then orphans of the whole container are handed to us.
        let is_init = std::process::id() == 1;
        let handle = signals.handle();
        let thread = thread::Builder::new().name("runward-signals".into()).spawn(move || {
            let mut stops = 0;
            for signal in signals.forever() {
                match signal {
                    SIGCHLD => {
                        reap::resume(keeper);
                        if is_init && let Err(error) = reap::strays(&[keeper]) {
                            tracing::warn!(%error, "orphans could not be reaped");
                        }
                    }
                    // Full only if as many wait: each of them reads what this one would.
                    SIGHUP => drop(reload.try_send(ReloadRequest { by: AskedBy::Signal, answer: None })),
                    // They end a process that does not expect them: a slip of somebody's must not.
                    SIGUSR1 | SIGUSR2 => {
                        tracing::info!(signal, "SIGUSR1 and SIGUSR2 mean nothing here; ignored")
                    }
                    stop => {
                        stops += 1;
                        stopped(stops, stop, &urgent);
                    }
                }
            }
        })?;
        Ok(Self { handle, thread: Some(thread) })
    }
}

impl Drop for SignalThread {
    fn drop(&mut self) {
        self.handle.close();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the signal thread panicked");
        }
    }
}

/// The first drains, the second forces, the third ends the process whatever it is doing.
fn stopped(count: u32, signal: i32, urgent: &mpsc::Sender<Urgent>) {
    let name = if signal == SIGINT { "SIGINT" } else { "SIGTERM" };
    if count >= 3 {
        leave(Code::Forced);
    }
    // Full only if the supervisor is stuck; then the thread below ends the process.
    drop(urgent.try_send(Urgent::Signal(name)));
    if count == 2 {
        let timer = thread::Builder::new().name("runward-forced".into()).spawn(|| {
            thread::sleep(FORCED);
            leave(Code::Forced);
        });
        if timer.is_err() {
            leave(Code::Forced);
        }
    }
}

/// Ends the process where it stands. Every lifeline closes with it, so every tree dies, and the next start
/// records it.
fn leave(code: Code) -> ! {
    signal_hook::low_level::exit(i32::from(code as u8))
}
