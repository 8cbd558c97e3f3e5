//! The rule of interrupts, in plain synchronous code: the first one cancels the main task, the
//! second one abandons it; one that finds the main task done ends the run at once.

/// What the main task is doing when an interrupt comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Main {
    /// There is no run.
    None,
    Alive,
    Done,
}

/// What an interrupt does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Response {
    /// There is nothing to interrupt.
    Nothing,
    /// The main task is cancelled.
    Cancel,
    /// The run ends now, whatever its main task does.
    Abandon,
    /// The close ends now, whatever is left over.
    Force,
}

/// The interrupts of one run, and of the close.
#[derive(Debug, Default)]
pub(crate) struct Interrupts {
    count: u32,
    abandoned: bool,
    closing: bool,
    forced: bool,
}

impl Interrupts {
    /// The count starts at 0 in each run.
    pub(crate) fn begin_run(&mut self) {
        (self.count, self.abandoned) = (0, false);
    }

    pub(crate) fn begin_close(&mut self) {
        self.closing = true;
    }

    pub(crate) fn interrupt(&mut self, main: Main) -> Response {
        if self.closing {
            self.forced = true;
            return Response::Force;
        }
        if main == Main::None {
            return Response::Nothing;
        }
        self.count += 1;
        if self.count == 1 && main == Main::Alive {
            return Response::Cancel;
        }
        self.abandoned = true;
        Response::Abandon
    }

    pub(crate) fn was_interrupted(&self) -> bool {
        self.count > 0
    }

    pub(crate) fn is_abandoned(&self) -> bool {
        self.abandoned
    }

    pub(crate) fn is_forced(&self) -> bool {
        self.forced
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_cancels_second_abandons() {
        let mut rule = Interrupts::default();
        rule.begin_run();
        assert_eq!(rule.interrupt(Main::Alive), Response::Cancel);
        assert!(rule.was_interrupted() && !rule.is_abandoned());
        assert_eq!(rule.interrupt(Main::Alive), Response::Abandon);
        assert!(rule.is_abandoned());
    }

    #[test]
    fn a_main_task_that_is_done_leaves_nothing_to_cancel() {
        let mut rule = Interrupts::default();
        rule.begin_run();
        assert_eq!(rule.interrupt(Main::Done), Response::Abandon);
    }

    #[test]
    fn the_count_starts_at_zero_in_each_run() {
        let mut rule = Interrupts::default();
        rule.begin_run();
        rule.interrupt(Main::Alive);
        rule.begin_run();
        assert!(!rule.was_interrupted());
        assert_eq!(rule.interrupt(Main::Alive), Response::Cancel);
    }

    #[test]
    fn between_runs_nothing_and_in_the_close_everything() {
        let mut rule = Interrupts::default();
        assert_eq!(rule.interrupt(Main::None), Response::Nothing);
        rule.begin_close();
        assert_eq!(rule.interrupt(Main::None), Response::Force);
        assert!(rule.is_forced());
    }
}
