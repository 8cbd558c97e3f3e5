//! Rows 6 and 14: contexts.

use libtest_mimic::Trial;
use runward::runner::{
    AsyncRunner, Cancelled, Context, ContextVar, Exit, Generator, LoopFactory, ResetError, Runner, Scope,
    TaskGroup, copy_context, generator,
};

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        children_begin_with_a_copy,
        the_loop_begins_with_a_copy_of_the_callers,
        a_token_resets_once_in_its_own_context,
        contexts_do_not_leak_between_tasks_of_one_thread,
        destructors_see_the_context_of_their_task,
    ]
}

static VAR: ContextVar<&str> = ContextVar::with_default("var", "default");

/// Row 14: tasks, blocking work, generators, group members.
fn children_begin_with_a_copy() {
    let main = |scope: Scope| async move {
        VAR.set("main");
        let swap = || VAR.set("child").old_value();
        assert_eq!(scope.spawn(async move { swap() }).await.unwrap(), Some("main"));
        let scoped = scope.spawn_scoped(move |_| async move { Ok::<_, Cancelled>(swap()) });
        assert_eq!(scoped.await.unwrap(), Ok(Some("main")));
        assert_eq!(scope.spawn_blocking(swap).await.unwrap(), Some("main"));
        let mut values: Generator<_, Exit> = generator(move |y| async move {
            y.yield_(VAR.get()).await?;
            y.yield_(swap()).await?;
            y.yield_(VAR.get()).await
        });
        VAR.set("later");
        assert_eq!(values.next().await, Ok(Some(Some("main"))), "a copy of when it was made");
        assert_eq!(values.next().await, Ok(Some(Some("main"))));
        assert_eq!(values.next().await, Ok(Some(Some("child"))));
        let grouped = scope.group(|group: TaskGroup<Cancelled>| async move {
            let mut member = group.spawn(move |_| async move { Ok(swap()) });
            Ok(group.join(&mut member).await.unwrap().unwrap())
        });
        assert_eq!(grouped.await.unwrap(), Ok(Some("later")));
        assert_eq!(VAR.get(), Some("later"), "none of them has changed this one");
        Ok::<_, Cancelled>(())
    };
    Runner::new().run_scoped(main).unwrap().unwrap();
}

fn the_loop_begins_with_a_copy_of_the_callers() {
    static OWN: ContextVar<u8> = ContextVar::new("own");
    OWN.set(1);
    let mut runner = Runner::new();
    runner.get_loop().unwrap();
    OWN.set(2);
    assert_eq!(runner.run(async { OWN.set(3).old_value() }).unwrap(), Some(1));
    assert_eq!(OWN.get(), Some(2));
    runner
        .run(async {
            let mut hosted = AsyncRunner::new();
            assert_eq!(hosted.start(async { OWN.get() }).unwrap().await.unwrap(), Some(3));
        })
        .unwrap();
}

fn a_token_resets_once_in_its_own_context() {
    static OTHER: ContextVar<&str> = ContextVar::new("other");
    Context::new().run(|| {
        let first = VAR.set("one");
        let second = VAR.set("two");
        assert_eq!(second.old_value(), Some("one"));
        VAR.reset(second).unwrap();
        assert_eq!(VAR.get(), Some("one"));
        VAR.reset(first).unwrap();
        assert_eq!((VAR.get(), copy_context().len()), (Some("default"), 0));
        assert_eq!(OTHER.reset(VAR.set("three")), Err(ResetError::OtherVariable));
        let token = VAR.set("four");
        assert_eq!(copy_context().run(|| VAR.reset(token)), Err(ResetError::OtherContext));
        assert_eq!(VAR.get(), Some("four"));
    });
}

fn contexts_do_not_leak_between_tasks_of_one_thread() {
    static N: ContextVar<usize> = ContextVar::new("n");
    let main = |scope: Scope| async move {
        let tasks: Vec<_> = (0..50)
            .map(|n| {
                scope.spawn(async move {
                    assert_eq!(N.get(), None);
                    N.set(n);
                    for _ in 0..10 {
                        tokio::task::yield_now().await;
                        assert_eq!(N.get(), Some(n));
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(N.get(), None);
        Ok::<_, Cancelled>(())
    };
    Runner::new().run_scoped(main).unwrap().unwrap();
}

fn destructors_see_the_context_of_their_task() {
    static SEEN: std::sync::Mutex<Option<Option<&str>>> = std::sync::Mutex::new(None);
    struct Looks;
    impl Drop for Looks {
        fn drop(&mut self) {
            *SEEN.lock().unwrap() = Some(VAR.get());
        }
    }
    let mut runner = Runner::builder().loop_factory(LoopFactory::multi_thread(1)).build();
    let task = runner.get_loop().unwrap().spawn(async {
        VAR.set("inside");
        let _looks = Looks;
        std::future::pending::<()>().await;
    });
    while task.info().polls == 0 {
        std::thread::yield_now();
    }
    runner.close();
    assert_eq!(*SEEN.lock().unwrap(), Some(Some("inside")));
}
