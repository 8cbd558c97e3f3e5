//! What a cancellation is to a task, in plain synchronous code: counted, delivered once to each
//! await that stands, and taken back by `uncancel`.

use super::sync::{Arc, Mutex};
use super::{Cancelled, sync};

/// A stretch of a task's code that can be cancelled: the whole task, or the inside of a timeout or
/// a task group.
pub(crate) struct Region {
    outer: Option<Arc<Region>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// asyncio's `cancelling()`.
    requests: u32,
    /// Grows with each request, so that an await can tell that one came since it began.
    epoch: u32,
    /// Nobody has seen the last request yet: the next await will.
    pending: bool,
    message: Option<std::sync::Arc<str>>,
}

/// Where an await stands: the epochs it has seen. Begins empty.
#[derive(Default, Clone, Copy)]
pub(crate) struct Standing(Option<u32>);

impl Region {
    pub(crate) fn root() -> Self {
        Region { outer: None, state: Mutex::default() }
    }

    pub(crate) fn inside(outer: Arc<Region>) -> Self {
        Region { outer: Some(outer), state: Mutex::default() }
    }

    pub(crate) fn cancel(&self, message: Option<&str>) {
        let mut state = sync::lock(&self.state);
        state.requests += 1;
        state.epoch += 1;
        state.pending = true;
        state.message = message.map(std::sync::Arc::from);
    }

    pub(crate) fn cancelling(&self) -> u32 {
        sync::lock(&self.state).requests
    }

    /// Takes one request back; with the last one goes what nobody has seen yet.
    pub(crate) fn uncancel(&self) -> u32 {
        let mut state = sync::lock(&self.state);
        state.requests = state.requests.saturating_sub(1);
        if state.requests == 0 {
            state.pending = false;
        }
        state.requests
    }

    /// The last request, seen or not.
    pub(crate) fn last(&self) -> Option<Cancelled> {
        let state = sync::lock(&self.state);
        (state.epoch > 0).then(|| Cancelled::from_message(state.message.clone()))
    }

    /// Whether a request waits for an await to see it.
    pub(crate) fn is_pending(&self) -> bool {
        sync::lock(&self.state).pending
    }

    /// Asked by an await each time it is polled. Gives the cancellation to the first await that
    /// asks, and to every other one that already stood there when it came.
    pub(crate) fn deliver(&self, standing: &mut Standing) -> Option<Cancelled> {
        let mut epochs = 0_u32;
        let (mut waiting, mut last) = (None, None);
        let mut region = Some(self);
        while let Some(at) = region {
            let mut state = sync::lock(&at.state);
            epochs = epochs.wrapping_add(state.epoch);
            if state.epoch > 0 {
                last = Some(state.message.clone());
            }
            if std::mem::take(&mut state.pending) {
                waiting = Some(state.message.clone());
            }
            drop(state);
            region = at.outer.as_deref();
        }
        let came_since = standing.0.replace(epochs).is_some_and(|seen| seen != epochs);
        let message = if came_since { waiting.or(last) } else { waiting };
        message.map(Cancelled::from_message)
    }
}
