//! An alarm by the wall clock. It also rings when somebody sets that clock, so that nothing has to look at it from
//! time to time.

use std::{future::pending, time::Duration};

use jiff::Timestamp;
use nix::sys::{
    time::TimeSpec,
    timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
};
use tokio::io::{Interest, unix::AsyncFd};

/// An alarm that is made when it is first needed.
#[derive(Debug, Default)]
pub(super) struct WallClock {
    timer: Option<AsyncFd<TimerFd>>,
    at: Option<Timestamp>,
}

impl WallClock {
    /// Rings at that time, or not at all.
    pub(super) fn set(&mut self, at: Option<Timestamp>) {
        if self.at == at {
            return;
        }
        self.at = at;
        if let Err(error) = self.arm() {
            tracing::error!(%error, "no alarm by the wall clock: jobs that wait for a time of day start late");
        }
    }

    fn arm(&mut self) -> std::io::Result<()> {
        let Some(at) = self.at else {
            return self.timer.as_ref().map_or(Ok(()), |timer| Ok(timer.get_ref().unset()?));
        };
        let timer = match &mut self.timer {
            Some(timer) => timer,
            none => {
                let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
                let timer = TimerFd::new(ClockId::CLOCK_REALTIME, flags)?;
                none.insert(AsyncFd::with_interest(timer, Interest::READABLE)?)
            }
        };
        // All zeros would switch it off.
        let since_epoch = Duration::try_from(at.duration_since(Timestamp::UNIX_EPOCH)).unwrap_or_default();
        let at = TimeSpec::from_duration(since_epoch.max(Duration::from_nanos(1)));
        let flags = TimerSetTimeFlags::TFD_TIMER_ABSTIME | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET;
        Ok(timer.get_ref().set(Expiration::OneShot(at), flags)?)
    }

    /// Waits for it. Cancel-safe.
    pub(super) async fn rings(&mut self) {
        let Some(timer) = &self.timer else { return pending().await };
        let Ok(mut ready) = timer.readable().await else { return pending().await };
        // Whether its time has come or the clock was set, somebody looks at the clock now.
        drop(ready.try_io(|timer| timer.get_ref().wait().map_err(std::io::Error::from)));
        ready.clear_ready();
        self.at = None;
    }
}
