//! Every schedule of the races between interrupt, cancel and finish, by loom: the synchronous state
//! machines of the Runner are compiled here once more, on loom's locks.

use loom::model;
use loom::thread;

/// Stands for the library's own, whose constructor is private.
struct Cancelled;

impl Cancelled {
    fn from_message(_: Option<std::sync::Arc<str>>) -> Self {
        Cancelled
    }
}

mod sync {
    pub(crate) use loom::sync::{Arc, Mutex, MutexGuard};

    pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        mutex.lock().unwrap()
    }
}

#[path = "../src/runner/cancel.rs"]
#[expect(dead_code, reason = "this test uses a part")]
mod cancel;

#[path = "../src/runner/interrupt.rs"]
mod interrupt;

use cancel::{Region, Standing};
use interrupt::{Interrupts, Main, Response};
use sync::{Arc, Mutex, lock};

/// Whatever the order, the await or the next one sees a request, and no later one does.
#[test]
fn a_cancellation_is_seen_once() {
    model(|| {
        let region = Arc::new(Region::root());
        let canceller = thread::spawn({
            let region = region.clone();
            move || region.cancel(None)
        });
        let mut standing = Standing::default();
        let first = region.deliver(&mut standing).is_some();
        let second = !first && region.deliver(&mut standing).is_some();
        canceller.join().unwrap();
        let third = region.deliver(&mut Standing::default()).is_some();
        assert_eq!([first, second, third].iter().filter(|seen| **seen).count(), 1);
        assert_eq!(region.cancelling(), 1);
    });
}

/// A cancellation and its withdrawal leave nothing behind that an await could see.
#[test]
fn a_withdrawn_request_is_seen_by_nobody_later() {
    model(|| {
        let region = Arc::new(Region::root());
        let canceller = thread::spawn({
            let region = region.clone();
            move || {
                region.cancel(None);
                assert_eq!(region.uncancel(), 0);
            }
        });
        let _maybe = region.deliver(&mut Standing::default());
        canceller.join().unwrap();
        assert!(!region.is_pending());
        assert!(region.deliver(&mut Standing::default()).is_none());
    });
}

/// An inner region and its outer one, cancelled at the same time: the inner await is told at least
/// once, and afterwards neither has anything left.
#[test]
fn inner_and_outer_at_once() {
    model(|| {
        let outer = Arc::new(Region::root());
        let inner = Arc::new(Region::inside(outer.clone()));
        let one = thread::spawn({
            let outer = outer.clone();
            move || outer.cancel(None)
        });
        inner.cancel(None);
        let mut standing = Standing::default();
        assert!(inner.deliver(&mut standing).is_some());
        one.join().unwrap();
        let _rest = inner.deliver(&mut standing);
        assert!(!inner.is_pending() && !outer.is_pending());
    });
}

/// Two interrupts race with the end of the main task: exactly one of them cancels it, or none if it
/// was done; and two never leave the run waiting.
#[test]
fn two_interrupts_and_the_end() {
    model(|| {
        let state = Arc::new(Mutex::new((Interrupts::default(), Main::Alive)));
        lock(&state).0.begin_run();
        let interrupt = |state: &Arc<Mutex<(Interrupts, Main)>>| {
            let mut state = lock(state);
            let main = state.1;
            state.0.interrupt(main)
        };
        let other = thread::spawn({
            let state = state.clone();
            move || interrupt(&state)
        });
        let ending = thread::spawn({
            let state = state.clone();
            move || lock(&state).1 = Main::Done
        });
        let mine = interrupt(&state);
        let theirs = other.join().unwrap();
        ending.join().unwrap();
        let cancels = [mine, theirs].iter().filter(|response| **response == Response::Cancel).count();
        assert!(cancels <= 1);
        assert!([mine, theirs].contains(&Response::Abandon));
        assert!(lock(&state).0.is_abandoned() && lock(&state).0.was_interrupted());
    });
}
