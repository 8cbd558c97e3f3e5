//! Apart from `cancel.rs`, which `tests/runner_schedules.rs` compiles once more on other locks.

use super::Cancelled;
use super::cancel::{Region, Standing};
use super::sync::Arc;

#[test]
fn the_next_await_sees_a_request_once() {
    let region = Region::root();
    region.cancel(Some("why"));
    assert_eq!(region.deliver(&mut Standing::default()), Some(Cancelled::new("why")));
    assert_eq!(region.deliver(&mut Standing::default()), None);
    assert_eq!(region.cancelling(), 1);
}

#[test]
fn every_standing_await_sees_it() {
    let region = Region::root();
    let (mut a, mut b) = (Standing::default(), Standing::default());
    assert!(region.deliver(&mut a).is_none() && region.deliver(&mut b).is_none());
    region.cancel(None);
    assert!(region.deliver(&mut a).is_some() && region.deliver(&mut b).is_some());
    assert!(region.deliver(&mut a).is_none() && region.deliver(&mut Standing::default()).is_none());
}

#[test]
fn uncancel_takes_back_what_nobody_saw() {
    let region = Region::root();
    region.cancel(None);
    region.cancel(None);
    assert_eq!(region.uncancel(), 1);
    assert_eq!(region.uncancel(), 0);
    assert!(region.deliver(&mut Standing::default()).is_none());
    assert_eq!(region.uncancel(), 0);
}

#[test]
fn an_inner_region_hears_the_outer_one_but_not_the_reverse() {
    let outer = Arc::new(Region::root());
    let inner = Region::inside(outer.clone());
    inner.cancel(None);
    assert!(outer.deliver(&mut Standing::default()).is_none());
    assert!(inner.deliver(&mut Standing::default()).is_some());
    outer.cancel(None);
    assert!(inner.deliver(&mut Standing::default()).is_some());
    assert!(outer.deliver(&mut Standing::default()).is_none(), "the inner await has taken it");
}
