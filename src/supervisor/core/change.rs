//! Changes that concern no single Runner under way.

use std::sync::Arc;

use super::{Answer, Change, turn::Turn};
use crate::{
    job::{ContextValue, SharedContext, Variable},
    supervisor::ports::ContextChange,
};

impl Turn<'_> {
    pub(super) fn change(&mut self, change: Change) -> Answer {
        match change {
            Change::Settings(limits, queues) => {
                self.core.limits = limits;
                self.core.line.reconfigure(&queues);
                Answer::Accepted
            }
            Change::Queue(name, settings) => {
                self.core.line.change(&name, settings);
                self.out.batch.queues.push((name, settings));
                Answer::Accepted
            }
            Change::Variable(name, value) => self.set_variable(name, value),
            Change::Purge(ids) => {
                // The store looks again whether they are closed.
                let closed =
                    |id: &_| self.core.waiting.get(*id).is_none() && !self.core.active.contains_key(id);
                self.out.batch.purged.extend(ids.into_iter().filter(closed));
                Answer::Accepted
            }
            Change::Delivered(id, delivery) => {
                self.out.batch.webhooks.push((id, delivery));
                Answer::Accepted
            }
        }
    }

    /// Runners that started before keep what they copied.
    fn set_variable(&mut self, name: String, value: Option<ContextValue>) -> Answer {
        if value.is_none() && !self.core.context.variables.contains_key(&name) {
            return Answer::AlreadySo;
        }
        let mut context = SharedContext::clone(&self.core.context);
        context.version += 1;
        let version = context.version;
        let variable = value.map(|value| Variable { value, version, set_at: self.now.wall });
        match &variable {
            Some(variable) => drop(context.variables.insert(name.clone(), variable.clone())),
            None => drop(context.variables.remove(&name)),
        }
        self.core.context = Arc::new(context);
        self.out.batch.context.push(ContextChange { version, name, variable });
        Answer::Version(version)
    }
}
