//! Why it ended.

use super::*;

#[test]
fn why_it_ended_by_itself() {
    let end = |with: fn(&mut Spec), end: EventKind, outcome| to_the_end(spec(with), vec![(3, end)], outcome);
    let succeeded = end(|_| {}, ended(Outcome::Succeeded, code(0)), Outcome::Succeeded);
    let facts = check(
        &succeeded,
        None,
        Reason::Succeeded,
        "It succeeded: it exited with code 0 at 2030-01-31T06:00:03Z.",
    );
    assert_eq!((facts.outcome, facts.since), (Some(Outcome::Succeeded), Some(at(91))));
    check(
        &end(|_| {}, ended(Outcome::Failed, code(3)), Outcome::Failed),
        None,
        Reason::ExitCode,
        "It failed: it exited with code 3 at 2030-01-31T06:00:03Z.",
    );
    let facts = check(
        &end(|_| {}, ended(Outcome::Failed, signal(11)), Outcome::Failed),
        None,
        Reason::Signal,
        "It failed: it was ended at 2030-01-31T06:00:03Z by SIGSEGV, which runward did not send.",
    );
    assert_eq!((facts.exit, facts.signal_is_ours), (signal(11), Some(false)));
    let oom = Failure::new("oom", "out of memory: it needed more than its limit of 512M");
    check(
        &end(|_| {}, failed(Outcome::Failed, signal(9), Some(oom)), Outcome::Failed),
        None,
        Reason::OutOfMemory,
        "It failed: it was killed at 2030-01-31T06:00:03Z, out of memory: it needed more than its limit of 512M.",
    );
    let oom = Failure::new("oom", "out of memory: it needed more than its limit of 512M");
    check(
        &end(|_| {}, failed(Outcome::Failed, code(1), Some(oom)), Outcome::Failed),
        None,
        Reason::OutOfMemory,
        "It failed: it exited with code 1 at 2030-01-31T06:00:03Z, out of memory: it needed more than its limit of 512M.",
    );
    let no_program = Failure {
        stage: Some("exec".into()),
        errno: Some(2),
        ..Failure::new(
            "start_failed",
            "its program could not be executed: No such file or directory (os error 2)",
        )
    };
    let facts = check(
        &end(|_| {}, failed(Outcome::Failed, None, Some(no_program)), Outcome::Failed),
        None,
        Reason::StartFailed,
        "It could not be started: its program could not be executed: No such file or directory (os error 2).",
    );
    assert_eq!(facts.error.and_then(|error| error.stage).as_deref(), Some("exec"));
    let raised = Failure::new("raised", "ValueError: no such table");
    check(
        &end(|_| {}, failed(Outcome::Failed, code(1), Some(raised)), Outcome::Failed),
        None,
        Reason::Error,
        "It failed: ValueError: no such table; it exited with code 1 at 2030-01-31T06:00:03Z.",
    );
    check(
        &end(|_| {}, lost(), Outcome::Lost),
        None,
        Reason::LostWithDaemon,
        "It was lost with the daemon: the daemon or the host died under attempt 1, as the next start found at \
         2030-01-31T06:00:03Z.",
    );
    let shim = Failure::new("shim_lost", "the job's shim was killed; its processes were killed");
    check(
        &end(|_| {}, failed(Outcome::Lost, None, Some(shim)), Outcome::Lost),
        None,
        Reason::Lost,
        "It was lost at 2030-01-31T06:00:03Z: the job's shim was killed; its processes were killed.",
    );
}

#[test]
fn how_often_it_was_tried() {
    let twice = |retry: Rare<Retry>, second: EventKind, outcome| {
        let then = vec![
            (3, ended(Outcome::Failed, code(75))),
            (3, again(RequeueReason::Retry, false, Some(5))),
            (5, starting(1, 2)),
            (6, running()),
            (7, second),
        ];
        to_the_end(spec(|spec| spec.retry = retry), then, outcome)
    };
    let facts = check(
        &twice(tried(2), ended(Outcome::Failed, code(1)), Outcome::Failed),
        None,
        Reason::ExitCode,
        "It failed after 2 attempts, as many as it may have: the last one exited with code 1 at 2030-01-31T06:00:07Z.",
    );
    assert_eq!((facts.attempt, facts.max_attempts), (Some(2), Some(2)));
    check(
        &twice(tried(3), ended(Outcome::Succeeded, code(0)), Outcome::Succeeded),
        None,
        Reason::Succeeded,
        "It succeeded after 2 attempts: the last one exited with code 0 at 2030-01-31T06:00:07Z.",
    );
    let some_codes = Retry { on_exit_codes: vec![75], max_attempts: 5, ..Retry::default() }.into();
    check(
        &twice(some_codes, ended(Outcome::Failed, code(1)), Outcome::Failed),
        None,
        Reason::ExitCode,
        "It failed after 2 attempts, and what happened is not tried again: the last one exited with code 1 at \
         2030-01-31T06:00:07Z.",
    );
}

#[test]
fn who_stopped_it() {
    let somebody = || cancel("token from 127.0.0.1:4", CancelReason::Requested, false);
    let by_term =
        |action: EventKind| vec![(3, somebody()), (3, action), (4, ended(Outcome::Cancelled, signal(15)))];
    let facts = check(
        &to_the_end(
            plain(),
            by_term(step(Action::Signal, "SIGTERM to process group 4711")),
            Outcome::Cancelled,
        ),
        None,
        Reason::Cancelled,
        "It was cancelled by token from 127.0.0.1:4 at 2030-01-31T06:00:03Z; it was ended at 2030-01-31T06:00:04Z by \
         SIGTERM, which runward sent.",
    );
    assert_eq!((facts.signal_is_ours, facts.by.as_deref()), (Some(true), Some("token from 127.0.0.1:4")));
    // Somebody else was faster.
    let facts = check(
        &to_the_end(
            plain(),
            by_term(step(Action::Signal, "SIGINT to process group 4711")),
            Outcome::Cancelled,
        ),
        None,
        Reason::Cancelled,
        "It was cancelled by token from 127.0.0.1:4 at 2030-01-31T06:00:03Z; it was ended at 2030-01-31T06:00:04Z by \
         SIGTERM, which runward did not send.",
    );
    assert_eq!(facts.signal_is_ours, Some(false));
    let forced = vec![
        (3, somebody()),
        (3, step(Action::Signal, "SIGTERM")),
        (33, step(Action::GraceExpired, "")),
        (33, step(Action::Kill, "the whole process tree")),
        (34, ended(Outcome::Killed, signal(9))),
    ];
    check(
        &to_the_end(plain(), forced, Outcome::Killed),
        None,
        Reason::Killed,
        "It was cancelled by token from 127.0.0.1:4 at 2030-01-31T06:00:03Z; it was killed because it was not done when \
         its grace was up; it was ended at 2030-01-31T06:00:34Z by SIGKILL, which runward sent.",
    );
    let too_long = vec![
        (62, cancel("timeout", CancelReason::Timeout, false)),
        (63, ended(Outcome::TimedOut, code(143))),
    ];
    check(
        &to_the_end(
            spec(|spec| spec.timeout = Some(Duration::from_secs(60)).into()),
            too_long,
            Outcome::TimedOut,
        ),
        None,
        Reason::TimedOut,
        "It timed out: it was asked to stop at 2030-01-31T06:01:02Z, when its timeout of 1m was up; it exited with code \
         143 at 2030-01-31T06:01:03Z.",
    );
    let too_late = vec![
        (60, cancel("deadline", CancelReason::Deadline, false)),
        (61, ended(Outcome::TimedOut, signal(15))),
    ];
    check(
        &to_the_end(
            spec(|spec| spec.deadline = Some(Duration::from_secs(60)).into()),
            too_late,
            Outcome::TimedOut,
        ),
        None,
        Reason::DeadlinePassed,
        "It timed out: it was asked to stop at 2030-01-31T06:01:00Z, when its deadline of 1m was up; it was ended at \
         2030-01-31T06:01:01Z by SIGTERM, which runward sent.",
    );
    let shutdown =
        vec![(3, cancel("SIGINT", CancelReason::Shutdown, false)), (4, ended(Outcome::Cancelled, code(0)))];
    check(
        &to_the_end(plain(), shutdown, Outcome::Cancelled),
        None,
        Reason::Shutdown,
        "It was asked to stop at 2030-01-31T06:00:03Z, when the daemon was shut down (SIGINT); it exited with code 0 at \
         2030-01-31T06:00:04Z.",
    );
}

#[test]
fn what_ended_it_in_the_queue() {
    let in_queue = |with: fn(&mut Spec), by: &str, reason, outcome| {
        record(spec(with), vec![(3, cancel(by, reason, false)), (3, closed(outcome))])
    };
    check(
        &in_queue(|_| {}, "somebody", CancelReason::Requested, Outcome::Cancelled),
        None,
        Reason::CancelledInQueue,
        "It was cancelled by somebody at 2030-01-31T06:00:03Z, before it was started.",
    );
    check(
        &in_queue(
            |spec| spec.deadline = Some(Duration::from_secs(3)).into(),
            "deadline",
            CancelReason::Deadline,
            Outcome::TimedOut,
        ),
        None,
        Reason::DeadlinePassed,
        "It timed out: its deadline of 3s was up at 2030-01-31T06:00:03Z, before it was started.",
    );
    let between_attempts = vec![
        (1, starting(1, 1)),
        (2, running()),
        (3, ended(Outcome::Failed, code(1))),
        (3, again(RequeueReason::Retry, false, Some(9))),
        (4, cancel("somebody", CancelReason::Requested, false)),
        (4, closed(Outcome::Cancelled)),
    ];
    check(
        &record(spec(|spec| spec.retry = tried(3)), between_attempts),
        None,
        Reason::CancelledInQueue,
        "It was cancelled by somebody at 2030-01-31T06:00:04Z, while it waited for attempt 2.",
    );
}

#[test]
fn a_kept_open_one_tells_of_its_last_run() {
    let events = vec![
        (1, starting(1, 1)),
        (2, running()),
        (3, ended(Outcome::Succeeded, code(0))),
        (3, EventKind::Idle),
        (4, EventKind::CloseRequested { by: Requester("somebody".into()) }),
        (4, draining()),
        (5, closed(Outcome::Succeeded)),
    ];
    check(
        &record(spec(|spec| spec.keep_open = true), events),
        None,
        Reason::Succeeded,
        "It was closed at 2030-01-31T06:00:05Z after 1 run; the last one succeeded: it exited with code 0 at \
         2030-01-31T06:00:03Z.",
    );
}
