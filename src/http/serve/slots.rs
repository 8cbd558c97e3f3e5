//! The connections of one transport: how many, and who goes when they are too many.

use std::{
    collections::HashMap,
    future::poll_fn,
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::{Context, Poll, ready},
};

use axum::body::{Body, Bytes};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep_until},
};

use crate::http::{
    access::Peer,
    problem::{Kind, Problem},
    timing,
};

/// The connections of one transport.
pub(super) struct Slots {
    limit: usize,
    taken: Mutex<Taken>,
    /// Answers that may be held open.
    held: Arc<Semaphore>,
}

#[derive(Default)]
struct Taken {
    next: u64,
    places: HashMap<u64, Arc<Place>>,
}

/// A connection's place among those of its transport.
pub(in crate::http) struct Place {
    /// Who is at the other end.
    pub(in crate::http) peer: Peer,
    slots: Weak<Slots>,
    waits: Mutex<Waits>,
    evicted: Notify,
}

/// Since when the daemon waits for the client. Two clocks: an answer may be complete, and its last bytes not taken.
struct Waits {
    /// For a request or the rest of one.
    request: Option<Instant>,
    /// Whether that is the body of one.
    body: bool,
    /// To take what was written.
    room: Option<Instant>,
    /// When it last had taken that.
    taken: Instant,
    /// Whether its answer is held open.
    holds: bool,
}

/// The right to a place; it is free again when this is dropped.
pub(super) struct Slot {
    slots: Arc<Slots>,
    number: u64,
    place: Arc<Place>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Slots {
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, taken: Mutex::default(), held: Arc::new(Semaphore::new((limit / 2).max(1))) })
    }

    /// How many places there are.
    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// A place for a new connection, if need be that of the connection that has kept us waiting longest; `None` if
    /// all are being served.
    pub(super) fn enter(self: &Arc<Self>, peer: Peer) -> Option<Slot> {
        let now = Instant::now();
        let waits = Waits { request: Some(now), body: false, room: None, taken: now, holds: false };
        let place = Arc::new(Place {
            peer,
            slots: Arc::downgrade(self),
            waits: Mutex::new(waits),
            evicted: Notify::new(),
        });
        let mut taken = lock(&self.taken);
        if taken.places.len() >= self.limit && !taken.evict_oldest(Waits::since) {
            return None;
        }
        let number = taken.next;
        taken.next += 1;
        taken.places.insert(number, Arc::clone(&place));
        Some(Slot { slots: Arc::clone(self), number, place })
    }

    /// Lets the connection go that has kept us waiting longest, if there is one.
    pub(super) fn evict_oldest(&self) {
        lock(&self.taken).evict_oldest(Waits::since);
    }
}

impl Waits {
    fn since(&self) -> Option<Instant> {
        self.request.into_iter().chain(self.room).min()
    }

    /// For the headers of a request, and for nothing else: who has not taken an answer yet may have asked already.
    fn headers_since(&self) -> Option<Instant> {
        self.request.filter(|_| !self.body && self.room.is_none()).map(|since| since.max(self.taken))
    }

    /// Of one that holds an answer open, and seems to be dead.
    fn dead_since(&self) -> Option<Instant> {
        self.room.filter(|since| self.holds && since.elapsed() >= timing::DEAD)
    }
}

impl Taken {
    /// Gives up the place for which `since` is longest ago; `false` where it is for none.
    fn evict_oldest(&mut self, since: impl Fn(&Waits) -> Option<Instant>) -> bool {
        let waiting =
            self.places.iter().filter_map(|(number, place)| Some((since(&lock(&place.waits))?, *number)));
        let Some((_, number)) = waiting.min() else { return false };
        if let Some(place) = self.places.remove(&number) {
            place.evicted.notify_one();
        }
        true
    }
}

impl Place {
    /// Whether it has no request, or only a part of one, and has taken all that was written.
    pub(super) fn idle(&self) -> bool {
        let waits = lock(&self.waits);
        waits.request.is_some() && waits.room.is_none()
    }

    /// Resolves when the place was given to another.
    pub(super) async fn evicted(&self) {
        self.evicted.notified().await;
    }

    /// Resolves when headers have not come in time ([`timing::HEADERS`]). To be polled after the connection: it takes
    /// note of what became of that. hyper's own timer is made anew for each request, and wakes the loop for it; this
    /// one is left as it is while requests come.
    pub(super) async fn late(&self) {
        let mut timer = pin!(sleep_until(Instant::now() + timing::HEADERS));
        poll_fn(|context| {
            loop {
                let Some(since) = lock(&self.waits).headers_since() else { return Poll::Pending };
                ready!(timer.as_mut().poll(context));
                let due = since + timing::HEADERS;
                if due <= Instant::now() {
                    return Poll::Ready(());
                }
                timer.as_mut().reset(due);
            }
        })
        .await;
    }

    /// From now on the daemon waits for the rest of a request, until what is returned is dropped.
    pub(in crate::http) fn reading(&self) -> impl Drop + '_ {
        let mut waits = lock(&self.waits);
        (waits.request, waits.body) = (Some(Instant::now()), true);
        drop(waits);
        Reading(self)
    }

    /// Whether the client takes what is written.
    pub(super) fn takes(&self, takes: bool) {
        let mut waits = lock(&self.waits);
        match takes {
            true => {
                if waits.room.take().is_some() {
                    waits.taken = Instant::now();
                }
            }
            false => {
                waits.room.get_or_insert_with(Instant::now);
            }
        }
    }

    /// The right to hold an answer open for long. If need be a client loses his that has stopped
    /// taking his answer.
    ///
    /// # Errors
    /// A [`Problem`] when as many are open as may be, and each is taken.
    pub(in crate::http) async fn hold(self: &Arc<Self>) -> Result<Held, Problem> {
        let too_many = || {
            Problem::new(
                Kind::TooManyConnections,
                "as many answers are held open (follow, wait, event streams) as may be; ask without, or later",
            )
        };
        let slots = self.slots.upgrade().ok_or_else(too_many)?;
        let free = Arc::clone(&slots.held);
        let permit = match Arc::clone(&free).try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) if lock(&slots.taken).evict_oldest(Waits::dead_since) => {
                // Its connection ends now, and gives back what it held.
                free.acquire_owned().await.map_err(|_| too_many())?
            }
            Err(_) => return Err(too_many()),
        };
        lock(&self.waits).holds = true;
        Ok(Held { place: Arc::clone(self), _permit: permit })
    }
}

/// The right to hold an answer open, until it is dropped.
pub(in crate::http) struct Held {
    place: Arc<Place>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Held {
    fn drop(&mut self) {
        lock(&self.place.waits).holds = false;
    }
}

struct Reading<'a>(&'a Place);

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        let mut waits = lock(&self.0.waits);
        (waits.request, waits.body) = (None, false);
    }
}

impl Slot {
    pub(super) fn place(&self) -> Arc<Place> {
        Arc::clone(&self.place)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        lock(&self.slots.taken).places.remove(&self.number);
    }
}

/// The daemon works on a request, until its answer is complete.
pub(super) struct Busy(Arc<Place>);

impl Busy {
    pub(super) fn new(place: &Arc<Place>) -> Self {
        lock(&place.waits).request = None;
        Self(Arc::clone(place))
    }

    /// Stays so as long as this body lives.
    pub(super) fn during(self, body: Body) -> Answer {
        Answer { body, _busy: self }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        lock(&self.0.waits).request = Some(Instant::now());
    }
}

/// The body of an answer.
pub(super) struct Answer {
    body: Body,
    _busy: Busy,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::poll;
    use tokio::time::advance;

    use super::*;

    fn enter(slots: &Arc<Slots>) -> Option<Slot> {
        slots.enter(Peer::Unix { uid: 0 })
    }

    #[test]
    fn the_one_that_waits_longest_makes_room() {
        let slots = Slots::new(2);
        let first = enter(&slots).expect("free");
        let second = enter(&slots).expect("free");
        let busy = Busy::new(&first.place);
        let _third = enter(&slots).expect("takes the place of the second");
        assert!(!lock(&slots.taken).places.contains_key(&second.number));
        let _busy_too = Busy::new(&_third.place);
        assert!(enter(&slots).is_none(), "all are being served");
        drop(busy);
        assert!(enter(&slots).is_some(), "the first is idle");
        drop((first, second));
    }

    #[test]
    fn who_does_not_take_his_answer_can_be_let_go() {
        let slots = Slots::new(1);
        let slot = enter(&slots).expect("free");
        let _busy = Busy::new(&slot.place);
        assert!(enter(&slots).is_none());
        slot.place.takes(false);
        slot.place.takes(true);
        assert!(enter(&slots).is_none());
        slot.place.takes(false);
        assert!(enter(&slots).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_his_answer_bit_by_bit_is_let_go_before_who_came_after_him() {
        let slots = Slots::new(2);
        let slow = enter(&slots).expect("free");
        advance(Duration::from_secs(1)).await;
        let other = enter(&slots).expect("free");
        advance(Duration::from_secs(1)).await;
        slow.place.takes(false);
        slow.place.takes(true);
        let _third = enter(&slots).expect("takes the place of the slow one");
        let places = &lock(&slots.taken).places;
        assert!(!places.contains_key(&slow.number) && places.contains_key(&other.number));
    }

    #[test]
    fn who_dribbles_a_body_can_be_let_go() {
        let slots = Slots::new(1);
        let slot = enter(&slots).expect("free");
        let _busy = Busy::new(&slot.place);
        let reading = slot.place.reading();
        drop(reading);
        assert!(enter(&slots).is_none());
        let _reading = slot.place.reading();
        assert!(enter(&slots).is_some());
    }

    #[test]
    fn a_place_is_free_when_its_connection_ends() {
        let slots = Slots::new(1);
        let slot = enter(&slots).expect("free");
        let _busy = Busy::new(&slot.place);
        drop(slot);
        assert!(enter(&slots).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn who_sends_no_headers_in_time_is_late_and_who_is_served_or_sends_a_body_is_not() {
        let slots = Slots::new(1);
        let slot = enter(&slots).expect("free");
        let mut late = pin!(slot.place.late());
        let nearly = timing::HEADERS - Duration::from_millis(1);
        assert!(poll!(late.as_mut()).is_pending());
        advance(nearly).await;
        let busy = Busy::new(&slot.place);
        advance(10 * timing::HEADERS).await;
        assert!(poll!(late.as_mut()).is_pending(), "it is being served");
        let reading = slot.place.reading();
        advance(10 * timing::HEADERS).await;
        assert!(poll!(late.as_mut()).is_pending(), "a body has a time of its own");
        drop(reading);
        drop(busy);
        assert!(poll!(late.as_mut()).is_pending());
        advance(nearly).await;
        assert!(poll!(late.as_mut()).is_pending(), "since the last answer");
        slot.place.takes(false);
        advance(10 * timing::HEADERS).await;
        assert!(poll!(late.as_mut()).is_pending(), "it has not taken that yet");
        slot.place.takes(true);
        assert!(poll!(late.as_mut()).is_pending());
        advance(nearly).await;
        assert!(poll!(late.as_mut()).is_pending(), "since it has");
        let before = Instant::now();
        late.await;
        assert_eq!(before.elapsed(), Duration::from_millis(1));
    }

    #[tokio::test]
    async fn half_may_be_held_open() {
        let slots = Slots::new(4);
        let slot = enter(&slots).expect("free");
        let other = enter(&slots).expect("free");
        let first = slot.place.hold().await.expect("free");
        let second = other.place.hold().await.expect("free");
        let third = enter(&slots).expect("free");
        assert_eq!(
            third.place.hold().await.err().map(|problem| problem.kind()),
            Some(Kind::TooManyConnections)
        );
        drop(first);
        assert!(third.place.hold().await.is_ok());
        drop(second);
    }

    #[tokio::test]
    async fn who_does_not_take_his_answer_loses_it_to_another() {
        let slots = Slots::new(2);
        let dead = enter(&slots).expect("free");
        let held = dead.place.hold().await.expect("free");
        dead.place.takes(false);
        assert!(dead.place.hold().await.is_err(), "it may only be slow");
        lock(&dead.place.waits).room = Instant::now().checked_sub(timing::DEAD);
        let alive = enter(&slots).expect("free");
        let (taken, ()) = tokio::join!(alive.place.hold(), async {
            dead.place.evicted().await;
            drop(held);
        });
        assert!(taken.is_ok());
    }
}
