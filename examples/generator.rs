//! An asynchronous generator that is left half-way and still cleans up:
//! `cargo run --example generator --no-default-features`.

use std::time::Duration;

use runward::runner::{Exit, RunError, Runner, Yielder, generator};

async fn countdown(y: Yielder<u32>) -> Result<(), Exit> {
    for n in (0..10).rev() {
        if let Err(exit) = y.yield_(n).await {
            println!("closing the countdown …");
            tokio::time::sleep(Duration::from_millis(100)).await;
            println!("… closed");
            return Err(exit);
        }
    }
    Ok(())
}

fn main() -> Result<(), RunError> {
    let mut runner = Runner::new();
    runner.run(async {
        let mut numbers = generator(countdown);
        while let Ok(Some(n)) = numbers.next().await {
            println!("{n}");
            if n == 7 {
                break;
            }
        }
    })?;
    println!("the run is over, the Runner closes");
    println!("{:?}", runner.close());
    Ok(())
}
