//! `timeout`, task groups.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use libtest_mimic::Trial;
use runward::runner::{Cancelled, LoopFactory, RunError, Runner, Scope, ScopeError, TaskGroup, TimedOut};

use crate::runner_support::{Dropped, expect_panics};

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        a_timeout_lets_the_body_clean_up,
        a_timeout_drops_a_body_that_cannot_hear,
        a_cancellation_wins_over_a_timeout,
        a_body_that_swallows_its_timeout_keeps_its_value,
        timeouts_nest,
        the_first_error_cancels_the_others,
        errors_are_collected,
        the_body_is_cancelled_by_a_failing_member,
        a_failing_body_cancels_the_members,
        a_panic_of_a_member_is_collected,
        a_cancellation_reaches_all_and_waits_for_them,
        a_dropped_group_cancels_its_members,
    ]
}

const LONG: Duration = Duration::from_secs(3600);

type Error = Box<dyn std::error::Error + Send + Sync>;

fn in_scope<F, Fut, T, E>(main: F) -> Result<Result<T, E>, RunError>
where
    F: FnOnce(Scope) -> Fut + Send + 'static,
    Fut: Future<Output = Result<T, E>> + Send + 'static,
    T: Send + 'static,
    E: ScopeError + Send + 'static,
{
    let factory = LoopFactory::from_fn(|| {
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build()
    });
    Runner::builder().loop_factory(factory).build().run_scoped(main)
}

fn a_timeout_lets_the_body_clean_up() {
    let took = in_scope(|scope| async move {
        let began = tokio::time::Instant::now();
        let body = |scope: Scope| async move {
            let cancelled = scope.sleep(LONG).await;
            scope.sleep(Duration::from_secs(5)).await?;
            cancelled
        };
        assert_eq!(scope.timeout(Duration::from_secs(10), body).await, Err(TimedOut));
        assert_eq!(scope.task().cancelling(), 0, "the task itself was not cancelled");
        scope.checkpoint().await?;
        Ok::<_, Cancelled>(began.elapsed().as_secs())
    });
    assert_eq!(took.unwrap(), Ok(15));
}

fn a_timeout_drops_a_body_that_cannot_hear() {
    let dropped = Arc::new(AtomicUsize::new(0));
    let guard = Dropped(dropped.clone());
    let ended = in_scope(|scope| async move {
        let body = |_| async move {
            let _guard = guard;
            std::future::pending::<Result<(), Cancelled>>().await
        };
        let ended = scope.timeout(Duration::from_secs(1), body).await;
        Ok::<_, Cancelled>((ended, dropped.load(SeqCst)))
    });
    assert_eq!(ended.unwrap(), Ok((Err(TimedOut), 1)));
}

fn a_cancellation_wins_over_a_timeout() {
    let ended = in_scope(|scope| async move {
        let body = |scope: Scope| async move {
            let cancelled = scope.sleep(LONG).await;
            scope.task().cancel("and the task too");
            cancelled
        };
        scope.timeout(Duration::from_secs(1), body).await.expect("not the timeout")
    });
    assert!(matches!(ended, Err(RunError::Cancelled(_))));
}

fn a_body_that_swallows_its_timeout_keeps_its_value() {
    let ended = in_scope(|scope| async move {
        let body = |scope: Scope| async move {
            assert!(scope.sleep(LONG).await.is_err());
            Ok::<_, Cancelled>(42)
        };
        Ok::<_, Cancelled>(scope.timeout(Duration::from_secs(1), body).await)
    });
    assert_eq!(ended.unwrap(), Ok(Ok(Ok(42))));
}

fn timeouts_nest() {
    let ended = in_scope(|scope| async move {
        let outer = |scope: Scope| async move {
            let inner = |scope: Scope| async move { scope.sleep(LONG).await };
            assert_eq!(scope.timeout(Duration::from_secs(1), inner).await, Err(TimedOut));
            scope.timeout(LONG, inner).await.expect("the outer one is first")
        };
        Ok::<_, Cancelled>(scope.timeout(Duration::from_secs(10), outer).await)
    });
    assert_eq!(ended.unwrap(), Ok(Err(TimedOut)));
}

fn the_first_error_cancels_the_others() {
    let cleaned = Arc::new(AtomicUsize::new(0));
    let counted = cleaned.clone();
    let ended = in_scope(move |scope| async move {
        let group = scope.group(|group: TaskGroup<Error>| async move {
            for _ in 0..3 {
                let counted = counted.clone();
                group.spawn(|scope| async move {
                    let cancelled = scope.sleep(LONG).await;
                    scope.sleep(Duration::from_secs(1)).await?;
                    counted.fetch_add(1, SeqCst);
                    Ok(cancelled?)
                });
            }
            group.spawn(|scope| async move {
                scope.sleep(Duration::from_secs(1)).await?;
                Err::<(), Error>("spam".into())
            });
            Ok(())
        });
        let error = group.await.unwrap_err();
        Ok::<_, Error>((error.errors.len(), error.errors[0].to_string(), scope.event_loop().live_tasks()))
    });
    assert_eq!(ended.unwrap().unwrap(), (1, "spam".to_owned(), 1));
    assert_eq!(cleaned.load(SeqCst), 3);
}

fn errors_are_collected() {
    let ended = in_scope(|scope| async move {
        let group = scope.group(|group: TaskGroup<Error>| async move {
            for text in ["one", "two"] {
                group.spawn(move |scope| async move {
                    // The second one fails in its clean-up.
                    let ended =
                        if text == "two" { scope.sleep(LONG).await } else { scope.checkpoint().await };
                    drop(ended);
                    Err::<(), Error>(text.into())
                });
            }
            Ok(group.sleep(LONG).await?)
        });
        Ok::<_, Error>(group.await.unwrap_err().to_string())
    });
    assert_eq!(ended.unwrap().unwrap(), "2 errors in a task group: one; two");
}

fn the_body_is_cancelled_by_a_failing_member() {
    for listens in [true, false] {
        let dropped = Arc::new(AtomicUsize::new(0));
        let guard = Dropped(dropped.clone());
        let ended = in_scope(move |scope| async move {
            let group = scope.group(|group: TaskGroup<Error>| async move {
                let _guard = guard;
                let mut member = group.spawn(|_| async { Err::<(), Error>("spam".into()) });
                if listens {
                    assert!(group.sleep(LONG).await.is_err());
                    assert_eq!((&mut member).await.unwrap().unwrap_err().to_string(), "spam");
                } else {
                    std::future::pending::<()>().await;
                }
                Ok(())
            });
            Ok::<_, Error>((group.await.unwrap_err().errors.len(), scope.task().cancelling()))
        });
        assert_eq!(ended.unwrap().unwrap(), (1, 0));
        assert_eq!(dropped.load(SeqCst), 1);
    }
}

fn a_failing_body_cancels_the_members() {
    let ended = in_scope(|scope| async move {
        let group = scope.group(|group: TaskGroup<Error>| async move {
            group.spawn(|scope| async move { Ok(scope.sleep(LONG).await?) });
            Err::<(), Error>("body".into())
        });
        let text = group.await.unwrap_err().to_string();
        Ok::<_, Error>((text, scope.event_loop().live_tasks()))
    });
    assert_eq!(ended.unwrap().unwrap(), ("1 error in a task group: body".to_owned(), 1));
}

fn a_panic_of_a_member_is_collected() {
    expect_panics();
    let ended = in_scope(|scope| async move {
        let group = scope.group(|group: TaskGroup<Error>| async move {
            group.spawn(|scope| async move { Ok(scope.sleep(LONG).await?) });
            group.spawn(|_| async { panic!("on purpose") as Result<(), Error> });
            Ok(group.sleep(LONG).await?)
        });
        Ok::<_, Error>(group.await.unwrap_err().panics)
    });
    assert_eq!(ended.unwrap().unwrap(), ["on purpose"]);
}

fn a_cancellation_reaches_all_and_waits_for_them() {
    let cleaned = Arc::new(AtomicUsize::new(0));
    let counted = cleaned.clone();
    let ended = in_scope(move |scope| async move {
        let main = scope.task();
        drop(scope.spawn(async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            main.cancel("stop");
        }));
        let group = scope.group(|group: TaskGroup<Cancelled>| async move {
            group.spawn(|scope| async move {
                let cancelled = scope.sleep(LONG).await;
                scope.sleep(Duration::from_secs(1)).await?;
                counted.fetch_add(1, SeqCst);
                cancelled
            });
            Ok(())
        });
        group.await.expect("nothing failed")
    });
    assert!(matches!(ended, Err(RunError::Cancelled(_))));
    assert_eq!(cleaned.load(SeqCst), 1);
}

fn a_dropped_group_cancels_its_members() {
    let ended = in_scope(|scope| async move {
        let group = scope.group(|group: TaskGroup<Cancelled>| async move {
            group.spawn(|scope| async move { scope.sleep(LONG).await });
            group.sleep(LONG).await
        });
        // A plain time-out drops it where it stands.
        assert!(tokio::time::timeout(Duration::from_secs(1), group).await.is_err());
        while scope.event_loop().live_tasks() > 1 {
            scope.checkpoint().await?;
        }
        Ok::<_, Cancelled>(())
    });
    ended.unwrap().unwrap();
}
