//! A store with nothing in it, for tests of the supervisor that read none of its records.

use runward::{
    job::{Event, Record, RunnerId, State},
    supervisor::{
        Archive, Filter, Listed, Reading,
        ports::{Records, Unreadable},
    },
};

/// Holds nothing.
pub(crate) struct Nothing;

impl Records for Nothing {
    fn load(&self, _: RunnerId) -> Result<Option<Record>, Unreadable> {
        Ok(None)
    }

    fn load_at(&self, _: u64) -> Result<Option<Record>, Unreadable> {
        Ok(None)
    }
}

impl Archive for Nothing {
    fn record(&self, _: RunnerId) -> Reading<Option<Record>> {
        Box::pin(async { Ok(None) })
    }

    fn list(&self, _: Filter) -> Reading<Listed> {
        Box::pin(async { Ok(Listed { found: Vec::new(), next: None, looked: 0 }) })
    }

    fn list_states(&self, _: Filter) -> Reading<Listed<(RunnerId, State)>> {
        Box::pin(async { Ok(Listed { found: Vec::new(), next: None, looked: 0 }) })
    }

    fn events(&self, _: u64, _: Option<RunnerId>, _: usize) -> Reading<Vec<Event>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn keyed(&self, _: String) -> Reading<Option<(RunnerId, [u8; 32])>> {
        Box::pin(async { Ok(None) })
    }
}
