//! The Runner beside bare tokio doing the same: `cargo bench --bench runner --no-default-features`.
//! `benches/side_by_side.rs` has the goals, measured against Python too.

use std::hint::black_box;
use std::time::Duration;

use divan::Bencher;
use runward::runner::{AsyncRunner, Cancelled, Context, ContextVar, LoopFactory, Runner};
use tokio::runtime::Runtime;

fn main() {
    divan::main();
}

/// The two flavours of a loop.
#[derive(Debug, Clone, Copy)]
enum Flavour {
    CurrentThread,
    MultiThread1,
}

use Flavour::{CurrentThread, MultiThread1};

impl Flavour {
    fn runner(self) -> Runner {
        let factory = match self {
            CurrentThread => LoopFactory::current_thread(),
            MultiThread1 => LoopFactory::multi_thread(1),
        };
        Runner::builder().loop_factory(factory).build()
    }

    fn tokio(self) -> Runtime {
        let mut builder = match self {
            CurrentThread => tokio::runtime::Builder::new_current_thread(),
            MultiThread1 => tokio::runtime::Builder::new_multi_thread(),
        };
        builder.worker_threads(1).enable_all().build().unwrap()
    }
}

#[divan::bench_group]
mod new_run_close {
    use super::*;

    #[divan::bench(args = [CurrentThread, MultiThread1])]
    fn runward(flavour: Flavour) -> u32 {
        let mut runner = flavour.runner();
        let value = runner.run(async { black_box(42) }).unwrap();
        runner.close();
        value
    }

    #[divan::bench(args = [CurrentThread, MultiThread1])]
    fn tokio(flavour: Flavour) -> u32 {
        let runtime = flavour.tokio();
        runtime.block_on(runtime.spawn(async { black_box(42) })).unwrap()
    }
}

#[divan::bench_group]
mod run_on_an_open_one {
    use super::*;

    #[divan::bench(args = [CurrentThread, MultiThread1])]
    fn runward(bencher: Bencher, flavour: Flavour) {
        let mut runner = flavour.runner();
        bencher.bench_local(|| runner.run(async { black_box(42) }).unwrap());
    }

    #[divan::bench(args = [CurrentThread, MultiThread1])]
    fn tokio(bencher: Bencher, flavour: Flavour) {
        let runtime = flavour.tokio();
        bencher.bench_local(|| runtime.block_on(runtime.spawn(async { black_box(42) })).unwrap());
    }
}

/// A hundred tasks spawned and joined, inside of one run.
#[divan::bench_group]
mod spawn_and_join_100 {
    use super::*;

    #[divan::bench(args = [CurrentThread, MultiThread1])]
    fn runward(bencher: Bencher, flavour: Flavour) {
        let mut runner = flavour.runner();
        bencher.bench_local(|| {
            let main = |scope: runward::runner::Scope| async move {
                let tasks: Vec<_> = (0..100).map(|n| scope.spawn(async move { black_box(n) })).collect();
                for task in tasks {
                    black_box(task.await.unwrap());
                }
                Ok::<_, Cancelled>(())
            };
            runner.run_scoped(main).unwrap().unwrap();
        });
    }

    #[divan::bench(args = [CurrentThread, MultiThread1])]
    fn tokio(bencher: Bencher, flavour: Flavour) {
        let runtime = flavour.tokio();
        let handle = runtime.handle().clone();
        bencher.bench_local(|| {
            let handle = handle.clone();
            let main = async move {
                let tasks: Vec<_> = (0..100).map(|n| handle.spawn(async move { black_box(n) })).collect();
                for task in tasks {
                    black_box(task.await.unwrap());
                }
            };
            runtime.block_on(runtime.spawn(main)).unwrap();
        });
    }
}

/// From the cancel of a task that waits until its end is known, inside of one run.
#[divan::bench_group]
mod spawn_cancel_and_join {
    use super::*;

    #[divan::bench]
    fn runward(bencher: Bencher) {
        let mut runner = CurrentThread.runner();
        bencher.bench_local(|| {
            let main = |scope: runward::runner::Scope| async move {
                let task = scope.spawn(std::future::pending::<()>());
                tokio::task::yield_now().await;
                task.cancel(None);
                black_box(task.await.unwrap_err());
                Ok::<_, Cancelled>(())
            };
            runner.run_scoped(main).unwrap().unwrap();
        });
    }

    #[divan::bench]
    fn tokio(bencher: Bencher) {
        let runtime = CurrentThread.tokio();
        let handle = runtime.handle().clone();
        bencher.bench_local(|| {
            let handle = handle.clone();
            let main = async move {
                let task = handle.spawn(std::future::pending::<()>());
                tokio::task::yield_now().await;
                task.abort();
                black_box(task.await.unwrap_err());
            };
            runtime.block_on(runtime.spawn(main)).unwrap();
        });
    }
}

/// What a daemon does for each job.
#[divan::bench_group]
mod hosted {
    use super::*;

    #[divan::bench]
    fn new_start_close(bencher: Bencher) {
        let runtime = MultiThread1.tokio();
        bencher.bench_local(|| {
            runtime.block_on(async {
                let mut runner = AsyncRunner::new();
                let value = runner.start(async { black_box(42) }).unwrap().await.unwrap();
                runner.close().await;
                value
            })
        });
    }

    #[divan::bench]
    fn tokio_spawn(bencher: Bencher) {
        let runtime = MultiThread1.tokio();
        bencher.bench_local(|| {
            runtime.block_on(async { runtime.spawn(async { black_box(42) }).await.unwrap() })
        });
    }
}

static VAR: ContextVar<u64> = ContextVar::with_default("var", 0);

tokio::task_local! {
    static LOCAL: u64;
}

#[divan::bench_group(sample_size = 1000)]
mod context {
    use super::*;

    #[divan::bench]
    fn get(bencher: Bencher) {
        Context::new().run(|| {
            VAR.set(1);
            bencher.bench_local(|| VAR.get());
        });
    }

    #[divan::bench]
    fn set(bencher: Bencher) {
        Context::new().run(|| bencher.bench_local(|| VAR.set(black_box(1))));
    }

    #[divan::bench]
    fn copy(bencher: Bencher) {
        Context::new().run(|| {
            VAR.set(1);
            bencher.bench_local(runward::runner::copy_context);
        });
    }

    #[divan::bench]
    fn tokio_task_local_get(bencher: Bencher) {
        LOCAL.sync_scope(1, || bencher.bench_local(|| LOCAL.get()));
    }

    #[divan::bench]
    fn tokio_task_local_scope(bencher: Bencher) {
        bencher.bench_local(|| LOCAL.sync_scope(black_box(1), || black_box(Duration::ZERO)));
    }
}
