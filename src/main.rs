//! runward
fn main() {}
