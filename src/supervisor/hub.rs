//! Tells those who wait that something was committed. Nobody who listens slowly holds anybody up: a
//! listener sees the latest state, and reads what it missed from the store.

use std::sync::{Arc, Mutex, PoisonError};

use foldhash::HashMap;
use tokio::sync::watch;

use crate::job::{Record, RunnerId};

type Slot = watch::Sender<Option<Arc<Record>>>;

/// Who waits for what.
#[derive(Debug)]
pub struct Hub {
    slots: Mutex<HashMap<RunnerId, Slot>>,
    last: watch::Sender<u64>,
}

/// The committed changes of one Runner, from the subscription on.
#[derive(Debug)]
pub struct Subscription {
    hub: Arc<Hub>,
    id: RunnerId,
    changes: watch::Receiver<Option<Arc<Record>>>,
}

impl Hub {
    /// A hub; `last` is the place of the last committed event.
    pub fn new(last: u64) -> Arc<Self> {
        Arc::new(Self { slots: Mutex::default(), last: watch::Sender::new(last) })
    }

    /// The place of the last committed event, and its changes.
    pub fn last(&self) -> watch::Receiver<u64> {
        self.last.subscribe()
    }

    /// Listens to one Runner. Subscribe first and read the store then: nothing is missed.
    pub fn subscribe(self: &Arc<Self>, id: RunnerId) -> Subscription {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let changes = slots.entry(id).or_insert_with(|| watch::Sender::new(None)).subscribe();
        Subscription { hub: Arc::clone(self), id, changes }
    }

    /// Tells what was committed.
    pub(super) fn publish(&self, records: &[Arc<Record>], last: u64) {
        {
            let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            if !slots.is_empty() {
                for record in records {
                    if let Some(slot) = slots.get(&record.id) {
                        slot.send_replace(Some(Arc::clone(record)));
                    }
                }
            }
        }
        self.last.send_replace(last);
    }
}

impl Subscription {
    /// The next committed state. Cancel-safe.
    pub async fn changed(&mut self) -> Arc<Record> {
        loop {
            // The slot lives at least as long as its subscriptions.
            self.changes.changed().await.expect("a subscribed slot is not dropped");
            if let Some(record) = self.changes.borrow_and_update().clone() {
                return record;
            }
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut slots = self.hub.slots.lock().unwrap_or_else(PoisonError::into_inner);
        // This one is still counted.
        if slots.get(&self.id).is_some_and(|slot| slot.receiver_count() <= 1) {
            slots.remove(&self.id);
        }
    }
}
