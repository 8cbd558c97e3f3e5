//! The writer of log segments, for counting its instructions: `.ci/instructions` runs this under callgrind.
//!
//! `segment N` writes N MiB of output in pieces of 4 KiB. What is taken once is the difference to a run with a smaller N.

use std::process::ExitCode;

use runward::process::log::{LogWriter, Stream};

fn segment(mib: u32) {
    let dir = tempfile::tempdir().expect("a directory");
    let mut log = LogWriter::new(dir.path().to_owned(), 8 << 20, 64 << 20);
    let piece = [b'x'; 4096];
    for number in 0..u64::from(mib) * 256 {
        log.append(Stream::Stdout, number, &piece);
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    match arguments.iter().map(|argument| argument.parse()).collect::<Vec<_>>()[..] {
        [Ok(mib)] => segment(mib),
        // `cargo bench` runs all benchmarks; this one is for `.ci/instructions`.
        [] => eprintln!("segment: run `.ci/instructions`"),
        _ => return ExitCode::FAILURE,
    }
    ExitCode::SUCCESS
}
