//! What the daemon tells the service manager that started it: `sd_notify(3)`. Without one nobody is told.

use std::{
    env, io,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixDatagram},
    },
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::time::{ClockId, clock_gettime};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::supervisor::{Refusal, Stage, Status, Supervisor};

/// The status line changes so often at most: it is for people, and the manager has other things to do.
const PACE: Duration = Duration::from_secs(1);

/// How much more time is asked for while jobs clean up, and how often. The manager's own limit may be shorter than what
/// the jobs were promised; a daemon that is stuck asks no more.
const EXTENSION: Duration = Duration::from_secs(30);
const EXTEND_EVERY: Duration = Duration::from_secs(10);

/// The way to the service manager.
#[derive(Clone, Debug)]
pub struct Notifier(Option<Arc<Manager>>);

#[derive(Debug)]
struct Manager {
    socket: UnixDatagram,
    address: SocketAddr,
    /// Within this time it wants to hear from us again and again.
    watchdog: Option<Duration>,
}

impl Notifier {
    /// To the manager that the environment names, if any.
    ///
    /// # Errors
    /// A sentence about a variable that makes no sense, or the system's.
    pub fn from_environment() -> io::Result<Self> {
        let variable = |name| env::var(name).ok();
        let Some(name) = variable("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else {
            return Ok(Self(None));
        };
        let watchdog = watchdog(variable("WATCHDOG_USEC"), variable("WATCHDOG_PID"), std::process::id())?;
        Self::to(&name, watchdog)
    }

    /// To the manager that listens at this address, a path or `@` and a name. `watchdog`: within this time it wants to
    /// hear from the daemon again and again.
    ///
    /// # Errors
    /// Where it is no such address, or the system's.
    pub fn to(name: &str, watchdog: Option<Duration>) -> io::Result<Self> {
        let address = match name.strip_prefix('@') {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None if name.starts_with('/') => SocketAddr::from_pathname(name)?,
            None => {
                let message = format!("NOTIFY_SOCKET is {name:?}, but must be a path or begin with @");
                return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
            }
        };
        let socket = UnixDatagram::unbound()?;
        // A manager that does not read must not hold up the daemon.
        socket.set_nonblocking(true)?;
        Ok(Self(Some(Arc::new(Manager { socket, address, watchdog }))))
    }

    /// The settings are being read again; [`Notifier::ready`] says that this is over.
    pub fn reloading(&self) {
        let Ok(since) = Duration::try_from(clock_gettime(ClockId::Monotonic)) else { return };
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={}", since.as_micros()));
    }

    /// The daemon takes jobs.
    pub fn ready(&self) {
        self.send("READY=1");
    }

    fn send(&self, message: &str) {
        let Some(manager) = &self.0 else { return };
        if let Err(error) = manager.socket.send_to_addr(message.as_bytes(), &manager.address) {
            tracing::warn!(%error, message, "the service manager could not be told");
        }
    }

    /// Tells of this supervisor from now on, until the tasks are dropped: when it is ready, what it does, that it is
    /// not stuck.
    pub fn follow(&self, supervisor: &Supervisor) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        if let Some(manager) = &self.0 {
            tasks.spawn(tell(self.clone(), supervisor.status()));
            tasks.spawn(feed(self.clone(), manager.watchdog, supervisor.clone()));
        }
        tasks
    }
}

/// The watchdog's limit, if it is meant for this process.
fn watchdog(limit: Option<String>, pid: Option<String>, own: u32) -> io::Result<Option<Duration>> {
    let Some(limit) = limit.filter(|_| pid.is_none_or(|pid| pid == own.to_string())) else { return Ok(None) };
    match limit.parse().map(Duration::from_micros) {
        Ok(limit) => Ok(Some(limit).filter(|limit| !limit.is_zero())),
        Err(_) => {
            let message = format!("WATCHDOG_USEC is {limit:?}, but must be a number of microseconds");
            Err(io::Error::new(io::ErrorKind::InvalidInput, message))
        }
    }
}

/// Tells what the supervisor does, when that changes.
async fn tell(notifier: Notifier, mut status: watch::Receiver<Status>) {
    let mut was = Stage::Recovering;
    loop {
        let now = status.borrow_and_update().clone();
        if let Some(message) = message(&was, &now, Instant::now()) {
            notifier.send(&message);
        }
        let draining = matches!(now.stage, Stage::Draining { .. });
        was = now.stage;
        sleep(PACE).await;
        // While it drains the time that is left changes by itself.
        if was == Stage::Ended || !draining && status.changed().await.is_err() {
            return;
        }
    }
}

/// What is told of a stage that came after another.
fn message(was: &Stage, Status { stage, counts }: &Status, now: Instant) -> Option<String> {
    let (running, queued) = (counts.active, counts.queued);
    let news = match (was, stage) {
        (_, Stage::Recovering) => return None,
        (Stage::Recovering, Stage::Ready | Stage::StoreFailing { .. }) => "READY=1\n",
        (Stage::Recovering | Stage::Ready | Stage::StoreFailing { .. }, Stage::Draining { .. }) => {
            "STOPPING=1\n"
        }
        (_, Stage::Ready | Stage::StoreFailing { .. } | Stage::Draining { .. } | Stage::Ended) => "",
    };
    let extension = format!("EXTEND_TIMEOUT_USEC={}\n", EXTENSION.as_micros());
    Some(match stage {
        Stage::Recovering => return None,
        Stage::Ready => format!("{news}STATUS={running} running, {queued} queued"),
        Stage::StoreFailing { reason } => {
            let reason = reason.replace('\n', " ");
            format!("{news}STATUS=The store takes nothing ({reason}); {running} running, {queued} queued")
        }
        Stage::Draining { deadline } => {
            let left = deadline.saturating_duration_since(now).as_secs();
            let first = if news.is_empty() { "" } else { extension.as_str() };
            format!(
                "{news}{first}STATUS=Stopping: {running} jobs clean up, {left} s left; {queued} stay queued"
            )
        }
        Stage::Ended => format!("{extension}WATCHDOG=1\nSTATUS=Stopped: closing the store"),
    })
}

/// Tells that all is well, as long as a round trip through supervisor and store shows it.
async fn feed(notifier: Notifier, watchdog: Option<Duration>, supervisor: Supervisor) {
    let mut status = supervisor.status();
    loop {
        // Twice within the limit, as its manual asks.
        let period = watchdog.map_or(EXTEND_EVERY, |limit| EXTEND_EVERY.min(limit / 2));
        if watchdog.is_none() {
            // Nobody asks before the end.
            let draining =
                status.wait_for(|status| matches!(status.stage, Stage::Draining { .. } | Stage::Ended));
            if draining.await.is_err() {
                return;
            }
        }
        match timeout(period, supervisor.pulse()).await {
            Ok(Ok(())) => {
                let draining = matches!(supervisor.status().borrow().stage, Stage::Draining { .. });
                let extension = match draining {
                    true => format!("\nEXTEND_TIMEOUT_USEC={}", EXTENSION.as_micros()),
                    false => String::new(),
                };
                notifier.send(&format!("WATCHDOG=1{extension}"));
                sleep(period).await;
            }
            Ok(Err(Refusal::Ended)) => return,
            Ok(Err(refusal)) => tracing::error!(%refusal, "the supervisor does not answer as it should"),
            Err(_) => tracing::error!(
                "the supervisor or its store has not answered for {} s: the watchdog is not fed",
                period.as_secs_f32()
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::core::Counts;

    fn status(stage: Stage) -> Status {
        Status { stage, counts: Counts { active: 2, queued: 3 } }
    }

    #[test]
    fn each_stage_is_told_once() {
        let now = Instant::now();
        let draining = Stage::Draining { deadline: now + Duration::from_secs(90) };
        let told = |was: &Stage, stage: &Stage| message(was, &status(stage.clone()), now).unwrap_or_default();
        assert_eq!(told(&Stage::Recovering, &Stage::Recovering), "");
        assert_eq!(told(&Stage::Recovering, &Stage::Ready), "READY=1\nSTATUS=2 running, 3 queued");
        assert_eq!(told(&Stage::Ready, &Stage::Ready), "STATUS=2 running, 3 queued");
        let first = told(&Stage::Ready, &draining);
        assert!(first.starts_with("STOPPING=1\nEXTEND_TIMEOUT_USEC=30000000\n"), "{first}");
        let then = "STATUS=Stopping: 2 jobs clean up, 90 s left; 3 stay queued";
        assert!(first.ends_with(then), "{first}");
        assert_eq!(told(&draining, &draining), then);
        let failing = Stage::StoreFailing { reason: "no\nroom".into() };
        let told = told(&Stage::Ready, &failing);
        assert_eq!(told, "STATUS=The store takes nothing (no room); 2 running, 3 queued");
    }

    #[test]
    fn a_watchdog_for_another_process_is_not_ours() {
        let some = |text: &str| Some(text.to_owned());
        let ten = Some(Duration::from_secs(10));
        assert_eq!(watchdog(some("10000000"), some("7"), 7).expect("a number"), ten);
        assert_eq!(watchdog(some("10000000"), None, 7).expect("a number"), ten);
        assert_eq!(watchdog(some("10000000"), some("8"), 7).expect("a number"), None);
        assert_eq!(watchdog(None, None, 7).expect("none"), None);
        assert!(watchdog(some("soon"), None, 7).is_err());
    }

    #[test]
    fn both_kinds_of_socket_are_reached() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("notify");
        let name = format!("runward-test-{}", std::process::id());
        let abstract_address = SocketAddr::from_abstract_name(&name).expect("an address");
        let sockets = [
            (path.display().to_string(), UnixDatagram::bind(&path).expect("bound")),
            (format!("@{name}"), UnixDatagram::bind_addr(&abstract_address).expect("bound")),
        ];
        for (name, socket) in sockets {
            let notifier = Notifier::to(&name, None).expect("a notifier");
            notifier.ready();
            notifier.reloading();
            let mut bytes = [0; 256];
            let mut next = || {
                let length = socket.recv(&mut bytes).expect("a message");
                String::from_utf8_lossy(&bytes[..length]).into_owned()
            };
            assert_eq!(next(), "READY=1");
            assert!(next().starts_with("RELOADING=1\nMONOTONIC_USEC="));
        }
        assert!(Notifier::to("vsock:2:1", None).is_err());
    }
}
