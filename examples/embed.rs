//! A daemon with handlers of its own: everything that `runward serve` does, and jobs that are async Rust functions.
//!
//! ```text
//! cargo run --example embed -- /tmp/embed &
//! curl -sS --unix-socket /tmp/embed/api.sock 'http://localhost/v1/runners?wait=30s' -H 'content-type: application/json' \
//!   -d '{"job": {"handler": {"name": "resize", "args": {"width": 1600, "height": 900, "to": 400}}}}'
//! ```

use std::process::ExitCode;

use runward::{
    daemon::Daemon,
    kinds::{Call, HandlerError, HandlerResult, Handlers},
    settings::Flags,
};
use serde_json::json;

#[derive(serde::Deserialize)]
struct Resize {
    width: u32,
    height: u32,
    to: u32,
}

async fn resize(call: Call) -> HandlerResult {
    let Resize { width, height, to } = call.args()?;
    if width == 0 {
        return Err(HandlerError::new("empty_image", "an image without width can't be resized"));
    }
    call.print(&format!("{width}x{height} to a width of {to}")).await;
    // Work that blocks belongs on the Runner's executor.
    let height =
        call.scope().spawn_blocking(move || u64::from(height) * u64::from(to) / u64::from(width)).await?;
    Ok(json!({"width": to, "height": height}))
}

fn main() -> ExitCode {
    let Some(dir) = std::env::args().nth(1) else {
        eprintln!("usage: embed STATE_DIRECTORY");
        return ExitCode::from(2);
    };
    let flags =
        Flags { state_dir: Some(dir.into()), listen: vec!["unix:api.sock".into()], ..Flags::default() };
    let code = Daemon::new(flags).handlers(Handlers::new().register("resize", resize)).serve();
    ExitCode::from(code as u8)
}
