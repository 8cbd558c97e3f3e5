//! The smallest program: `cargo run --example hello --no-default-features`.

use std::time::Duration;

use runward::runner::{self, RunError};

async fn main_task() -> &'static str {
    println!("hello …");
    tokio::time::sleep(Duration::from_millis(200)).await;
    "… world"
}

fn main() -> Result<(), RunError> {
    println!("{}", runner::run(main_task())?);
    Ok(())
}
