//! Input and output.

use std::fs;
use std::process::Command;

use runward::process::log::{Frame, Item, LogReader, Stream, TailStart, tail};
use runward::process::{Ending, Launch};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

use crate::world::{World, event, eventually, fifo, finish, output, stat, text};

pub(crate) async fn case_21_stdin(world: &World) {
    let job = world.job(&["readlink", "/proc/self/fd/0"]);
    world.run(&job).await;
    assert_eq!(text(&job.1.dir), "/dev/null\n");

    // More than pipes hold, both ways at once.
    let bytes: Vec<u8> = (0..1u32 << 18).flat_map(u32::to_le_bytes).collect();
    let mut job = world.job(&["cat"]);
    job.1.stdin = Some(bytes.clone());
    assert_eq!(world.run(&job).await.output_bytes, bytes.len() as u64);
    assert!(output(&job.1.dir, None) == bytes, "the input came back changed");

    let mut job = world.job(&["true"]);
    job.1.stdin = Some(bytes);
    assert_eq!(world.run(&job).await.ending, Ending::Code(0), "not reading is no failure");
    let mut job = world.job(&["cat"]);
    job.1.stdin = Some(Vec::new());
    assert_eq!(world.run(&job).await.ending, Ending::Code(0), "an empty input ends");
}

struct OnDisk {
    bytes: u64,
    data: Vec<u8>,
    first: u64,
    lost_marks: usize,
}

fn on_disk(spec: &Launch) -> OnDisk {
    let files =
        fs::read_dir(&spec.dir).expect("list segments").map(|entry| entry.expect("an entry").metadata());
    let bytes = files.map(|file| file.expect("metadata").len()).sum();
    let mut framed = 0;
    let mut reader = LogReader::new(&spec.dir, 0);
    let mut found = OnDisk { bytes, data: Vec::new(), first: 0, lost_marks: 0 };
    while let Some(item) = reader.next_item().expect("read the log") {
        match item {
            Item::Gap { from: 0, to } => found.first = to,
            Item::Gap { from, to } => panic!("a gap in the middle, {from}..{to}"),
            Item::Frame(frame) => {
                found.lost_marks += usize::from(frame.lost_before);
                framed += frame.next - frame.offset;
                found.data.extend(frame.bytes);
            }
        }
    }
    assert_eq!(found.bytes, framed, "bytes on disk that no quota counts");
    found
}

pub(crate) async fn case_24_quota(world: &World) {
    let (attempt, mut spec) = world.script("yes | head -c 50000000; echo the end");
    (spec.segment_bytes, spec.max_log_bytes) = (128 << 10, 1 << 20);
    let report = world.run(&(attempt, spec.clone())).await;
    assert_eq!((report.ending, report.output_bytes), (Ending::Code(0), 50_000_008));
    let found = on_disk(&spec);
    assert!(found.bytes <= spec.max_log_bytes, "{} bytes on disk", found.bytes);
    assert!(found.bytes > spec.max_log_bytes / 2, "only {} bytes kept", found.bytes);
    assert!(found.first > 0, "the reader tells the gap");
    assert_eq!(report.dropped_bytes + found.data.len() as u64, report.output_bytes);
    assert!(found.data.ends_with(b"y\nthe end\n"), "the newest output is kept");
}

pub(crate) async fn case_25_bytes(world: &World) {
    let job =
        world.script(r"printf '\377\000\033[31m\r'; head -c 3000000 /dev/zero | tr '\0' x; printf end >&2");
    let report = world.run(&job).await;
    assert_eq!(report.output_bytes, 8 + 3_000_000 + 3);
    let out = output(&job.1.dir, Some(Stream::Stdout));
    assert_eq!(out.len(), 8 + 3_000_000);
    assert_eq!(out[..8], *b"\xff\0\x1b[31m\r");
    assert!(out[8..].iter().all(|byte| *byte == b'x'));
    assert_eq!(output(&job.1.dir, Some(Stream::Stderr)), b"end");
}

/// A file may not grow past a limit: every write, or every second one, fails, for any user.
pub(crate) async fn case_26_no_space(world: &World) {
    for limit in [0, 1, 15, 16, 17, 100_000] {
        let gate = fifo(world.dir.path(), &format!("gate-26-{limit}"));
        let job = world.script(&format!("read line < {}; yes | head -c 3000000; exit 4", gate.display()));
        let (mut shim, pid) = world.start(&job).await;
        let (_, parent) = stat(pid).expect("the job is there");
        let parent = Pid::from_raw(parent);
        let maximum = getrlimit(Resource::Fsize).maximum;
        prlimit(parent, Resource::Fsize, Rlimit { current: Some(limit), maximum }).expect("limit the shim");
        fs::write(&gate, "\n").expect("open the gate");
        let report = finish(&mut shim).await;
        assert_eq!((report.ending, report.output_bytes), (Ending::Code(4), 3_000_000));
        let found = on_disk(&job.1);
        assert_eq!(report.dropped_bytes + found.data.len() as u64, report.output_bytes, "limit {limit}");
        assert!(report.dropped_bytes > 0, "limit {limit}");
        if limit == 100_000 {
            assert!(!found.data.is_empty() && found.lost_marks > 0, "what was lost is marked");
        }
    }
}

pub(crate) async fn case_26_full_disk(world: &World) {
    if !world.root {
        println!("  case_26_full_disk: only root mounts; case_26_no_space shows the same with another errno");
        return;
    }
    let disk = world.dir.path().join("disk");
    fs::create_dir(&disk).expect("mkdir");
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=256k", "none"]).arg(&disk).status();
    assert!(mounted.is_ok_and(|status| status.success()), "mount a small disk");
    let mut job = world.script("yes | head -c 3000000; exit 4");
    job.1.dir = disk.join("attempt");
    let report = world.run(&job).await;
    let found = on_disk(&job.1);
    let unmounted = Command::new("umount").arg(&disk).status();
    assert!(unmounted.is_ok_and(|status| status.success()), "unmount it");
    assert_eq!((report.ending, report.output_bytes), (Ending::Code(4), 3_000_000));
    assert_eq!(report.dropped_bytes + found.data.len() as u64, report.output_bytes);
    assert!(found.data.len() > 100_000, "{} bytes kept", found.data.len());
}

pub(crate) async fn both_streams_in_order(world: &World) {
    let gates: Vec<_> =
        (1..=6).map(|number| fifo(world.dir.path(), &format!("gate-order-{number}"))).collect();
    let gate = world.dir.path().join("gate-order-");
    let job = world.script(&format!(
        "for i in 1 3 5; do echo $i; read x < {0}$i; i=$((i+1)); echo $i >&2; read x < {0}$i; done",
        gate.display()
    ));
    let (mut shim, _pid) = world.start(&job).await;
    let mut wanted = String::new();
    for (number, gate) in (1..).zip(&gates) {
        wanted += &format!("{number}\n");
        eventually("the line is in the log", || text(&job.1.dir) == wanted);
        fs::write(gate, "\n").expect("open the gate");
    }
    finish(&mut shim).await;
    assert_eq!(output(&job.1.dir, Some(Stream::Stderr)), b"2\n4\n6\n");
}

pub(crate) async fn tail_and_follow(world: &World) {
    let gate = fifo(world.dir.path(), "gate-tail");
    let (attempt, mut spec) =
        world.script(&format!("seq 1 9000; seq 9001 9009 >&2; read x < {}; printf last", gate.display()));
    spec.segment_bytes = 4096;
    let (mut shim, _pid) = world.start(&(attempt, spec.clone())).await;
    eventually("all lines are there", || {
        text(&spec.dir).ends_with("9009\n") && text(&spec.dir).contains("\n9000\n")
    });

    let from = |start: TailStart, only: Option<Stream>| {
        let mut reader = LogReader::new(&spec.dir, start.offset);
        let mut all = Vec::new();
        let mut skip = start.skip;
        while let Some(Item::Frame(Frame { bytes, stream, .. })) = reader.next_item().expect("read") {
            if only.is_none_or(|only| only == stream) {
                all.extend_from_slice(&bytes[skip..]);
                skip = 0;
            }
        }
        (String::from_utf8(all).expect("text"), reader)
    };
    let lines =
        |range: std::ops::RangeInclusive<u32>| range.map(|line| format!("{line}\n")).collect::<String>();
    let out = Some(Stream::Stdout);
    for count in [1, 2, 500, 5000, 9000] {
        let (seen, _) = from(tail(&spec.dir, count, out).expect("tail"), out);
        assert_eq!(seen, lines(9001 - count as u32..=9000), "{count}");
    }
    assert_eq!(from(tail(&spec.dir, 20_000, out).expect("tail"), out).0, lines(1..=9000));
    let (seen, mut follower) = from(tail(&spec.dir, 0, None).expect("tail"), None);
    assert_eq!(seen, "");
    let resumed = follower.offset();

    fs::write(&gate, "\n").expect("open the gate");
    let mut item = None;
    eventually("the follower sees it", || {
        item = follower.next_item().expect("follow");
        item.is_some()
    });
    assert!(
        matches!(item, Some(Item::Frame(Frame { offset, ref bytes, .. })) if offset == resumed && bytes == b"last")
    );
    assert_eq!(follower.next_item().expect("follow"), None);
    finish(&mut shim).await;
    // An unfinished last line is a line.
    assert_eq!(from(tail(&spec.dir, 2, out).expect("tail"), out).0, "9000\nlast");
    assert!(event(&mut shim).await == event(&mut shim).await, "the last event repeats");
}
