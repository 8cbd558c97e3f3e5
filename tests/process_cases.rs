//! scratch
use runward::process::*;
use std::time::*;
fn main() {
    let dir = tempfile::tempdir().unwrap();
    let lock = std::fs::File::create(dir.path().join("lock")).unwrap();
    let tier = match std::env::args().nth(1).as_deref() {
        Some("cg") => {
            let base = std::path::PathBuf::from("/sys/fs/cgroup/unified/runward-test");
            std::fs::create_dir_all(&base).unwrap();
            containment::Tier::Cgroup { base }
        }
        _ => containment::Tier::Subreaper,
    };
    let link = fork_keeper(KeeperSetup { children_lock: lock.into(), tier }).unwrap();
    let rt = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    rt.block_on(async {
        let (launcher, watch) = link.attach().unwrap();
        let n: u128 = 300;
        let t = Instant::now();
        for i in 0..n {
            let mut spec = Launch::new(
                dir.path().join(format!("a{i}")),
                vec!["/bin/true".into()],
                vec![("PATH".into(), "/bin".into())],
                "/".into(),
            );
            if i == 0 {
                spec.argv = vec!["sh".into(), "-c".into(), "echo hi; echo err >&2; id; exit 3".into()];
            }
            if i == 1 {
                spec.argv = vec!["nope".into()];
            }
            let mut shim = launcher.launch(i, &spec).await.unwrap();
            shim.go().await.unwrap();
            loop {
                let e = shim.next().await;
                if i < 2 {
                    println!("{e:?}");
                }
                match e {
                    ShimEvent::Exited(_) | ShimEvent::StartFailed { .. } => shim.ack().await.unwrap(),
                    ShimEvent::Gone { .. } => break,
                    _ => {}
                }
            }
            if i == 0 {
                let mut r = log::LogReader::new(&spec.dir, 0);
                while let Some(x) = r.next_item().unwrap() {
                    println!("{x:?}");
                }
            }
        }
        println!("{:?} each", t.elapsed() / n as u32);
        drop(launcher);
        println!("{:?}", watch.ended().await);
    });
}
