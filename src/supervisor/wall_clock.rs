//! An alarm by the wall clock. It also rings when somebody sets that clock, so that nothing has to look at it from
//! time to time.

use std::{future::pending, io, os::fd::OwnedFd};

use jiff::Timestamp;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::{Interest, unix::AsyncFd};

const NEVER: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// An alarm that is made when it is first needed.
#[derive(Debug, Default)]
pub(super) struct WallClock {
    timer: Option<AsyncFd<OwnedFd>>,
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

    fn arm(&mut self) -> io::Result<()> {
        let timer = match &mut self.timer {
            Some(timer) => timer,
            none => {
                let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
                let timer = timerfd_create(TimerfdClockId::Realtime, flags)?;
                #[expect(deprecated, reason = "what it is deprecated for can't happen to an OwnedFd")]
                let timer = AsyncFd::with_interest(timer, Interest::READABLE)?;
                none.insert(timer)
            }
        };
        let at = self.at.map_or(NEVER, |at| Timespec {
            tv_sec: at.as_second().max(0),
            // All zeros would switch it off.
            tv_nsec: at.subsec_nanosecond().max(1).into(),
        });
        let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
        timerfd_settime(timer, flags, &Itimerspec { it_interval: NEVER, it_value: at })?;
        Ok(())
    }

    /// Waits for it. Cancel-safe.
    pub(super) async fn rings(&mut self) {
        let Some(timer) = &self.timer else { return pending().await };
        let Ok(mut ready) = timer.readable().await else { return pending().await };
        // Whether its time has come or somebody set the clock: whoever waits looks at the clock now.
        drop(ready.try_io(|timer| Ok(rustix::io::read(timer, &mut [0_u8; 8])?)));
        ready.clear_ready();
        self.at = None;
    }
}
