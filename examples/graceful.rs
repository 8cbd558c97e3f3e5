//! A server that cleans up on Ctrl-C: `cargo run --example graceful --no-default-features`.
//!
//! Press Ctrl-C once and the clients are told; press it twice and it ends at once.

use std::time::Duration;

use runward::runner::{Cancelled, RunError, Runner, Scope, TaskGroup};

async fn serve(scope: Scope) -> Result<(), Cancelled> {
    let served = scope.group(|group: TaskGroup<Cancelled>| async move {
        for client in 1_u32.. {
            group.sleep(Duration::from_millis(500)).await?;
            group.spawn(move |scope| connection(scope, client)).set_name(&format!("client {client}"));
            print!("{}", group.event_loop().task_tree());
        }
        Ok(())
    });
    served.await.expect("no connection fails")
}

async fn connection(scope: Scope, client: u32) -> Result<(), Cancelled> {
    let stopped = scope.sleep(Duration::from_secs(3)).await;
    // The cancellation arrived at the await above; the farewell may await again.
    scope.sleep(Duration::from_millis(300)).await?;
    println!("said goodbye to client {client}");
    stopped
}

fn main() {
    let mut runner = Runner::builder().name("server").signals(&[2, 15]).build();
    match runner.run_scoped(serve) {
        Err(RunError::Interrupted) => println!("stopped by a signal"),
        ended => println!("ended: {ended:?}"),
    }
    println!("{:?}", runner.close());
}
