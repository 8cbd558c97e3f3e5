//! Context variables: `cargo run --example context --no-default-features`.

use runward::runner::{Cancelled, ContextVar, Runner, current_task};

static REQUEST: ContextVar<u32> = ContextVar::new("request");

/// Any function down the stack knows which request it works for.
fn log(text: &str) {
    let task = current_task().map_or_else(|| "blocking work".to_owned(), |task| task.name());
    println!("[request {:?}] {task}: {text}", REQUEST.get());
}

fn main() {
    let mut runner = Runner::builder().name("main").build();
    let value = runner.run_scoped(|scope| async move {
        let mut requests = Vec::new();
        for request in 1..=3 {
            let token = REQUEST.set(request);
            // The task begins with a copy of this context, as it is now.
            requests.push(scope.spawn_scoped(|scope| async move {
                log("begins");
                scope.checkpoint().await?;
                drop(scope.spawn_blocking(|| log("computes")).await);
                Ok::<_, Cancelled>(())
            }));
            REQUEST.reset(token).expect("it is this variable's, from this context");
        }
        log("waits");
        for mut request in requests {
            drop(scope.join(&mut request).await);
        }
        Ok::<_, Cancelled>(())
    });
    println!("{value:?}");
}
