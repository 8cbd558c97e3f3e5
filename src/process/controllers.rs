//! Which limits of a whole tree can be had: the controllers of cgroup v2 that reach the daemon, handed on to its
//! attempts.
//!
//! ```text
//! own/                    cgroup.subtree_control: +memory +cpu +pids
//! ├── runward-…-daemon/   the daemon: a group that hands on controllers may have no processes
//! └── runward-…/          base; cgroup.subtree_control: the same
//!     └── <attempt>/      memory.max, cpu.max, pids.max
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::containment::Tier;

/// For each limit whether it can be had, or a sentence for people why not and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LimitSupport {
    /// Of memory.
    pub memory: Result<(), String>,
    /// Of processor time.
    pub cpu: Result<(), String>,
    /// Of processes.
    pub pids: Result<(), String>,
}

impl LimitSupport {
    /// All of them for the same reason not.
    pub fn none(why: &str) -> Self {
        let why = || Err(why.to_owned());
        Self { memory: why(), cpu: why(), pids: why() }
    }

    /// The limits by name.
    pub fn each(&self) -> [(&'static str, &Result<(), String>); 3] {
        let Self { memory, cpu, pids } = self;
        [("memory", memory), ("cpu", cpu), ("pids", pids)]
    }

    fn each_mut(&mut self) -> [(&'static str, &mut Result<(), String>); 3] {
        let Self { memory, cpu, pids } = self;
        [("memory", memory), ("cpu", cpu), ("pids", pids)]
    }
}

/// Hands the controllers that are there on to the attempts' cgroups. It may move the calling process into a group
/// of its own: call it in `main` after [`probe`](super::containment::probe), before the keeper is forked.
pub fn hand_on(tier: &Tier) -> LimitSupport {
    let Tier::Cgroup { base } = tier else {
        return LimitSupport::none(
            "jobs have no cgroups here, see `containment` in /v1/info; it takes cgroup v2 and a daemon that may make \
             groups in it, as root or in a service with `Delegate=yes`",
        );
    };
    let Some(own) = base.parent() else { return LimitSupport::none("the daemon's cgroup has no directory") };
    let legacy = fs::read_to_string("/proc/cgroups").unwrap_or_default();
    hand_on_in(own, base, &legacy, std::process::id())
}

/// As [`hand_on`], with the directories of the daemon's group and of the base, what `/proc/cgroups` says, and who asks.
fn hand_on_in(own: &Path, base: &Path, legacy: &str, daemon: u32) -> LimitSupport {
    let offered = words(&own.join("cgroup.controllers"));
    let mut support = LimitSupport { memory: Ok(()), cpu: Ok(()), pids: Ok(()) };
    for (name, support) in support.each_mut() {
        if !offered.iter().any(|offered| offered == name) {
            *support = Err(missing(name, own, legacy));
        }
    }
    let handed_on = words(&own.join("cgroup.subtree_control"));
    let new = support.each().iter().any(|(name, is)| is.is_ok() && !handed_on.iter().any(|on| on == name));
    if new && let Err(why) = make_room(own, base, daemon) {
        for (_, support) in support.each_mut() {
            if support.is_ok() {
                *support = Err(why.clone());
            }
        }
    }
    for group in [own, base] {
        enable(group, &mut support);
    }
    support
}

/// Why a controller is not there.
fn missing(name: &str, own: &Path, legacy: &str) -> String {
    let hierarchy = legacy.lines().find_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        (fields.next() == Some(name)).then(|| fields.next().unwrap_or("0").to_owned())
    });
    if hierarchy.is_some_and(|number| number != "0") {
        return format!(
            "the {name} controller is taken by cgroup v1 on this machine; start it with cgroup v2 alone \
             (kernel parameter systemd.unified_cgroup_hierarchy=1)"
        );
    }
    format!(
        "the {name} controller does not reach the daemon's cgroup {}; run the daemon in a service with `Delegate=yes`",
        own.display()
    )
}

/// Sees to it that nobody is in the group itself: the kernel hands controllers on from no group that has processes,
/// but for the root of all.
fn make_room(own: &Path, base: &Path, daemon: u32) -> Result<(), String> {
    if !own.join("cgroup.events").exists() {
        return Ok(());
    }
    let inside = words(&own.join("cgroup.procs"));
    if inside.is_empty() {
        return Ok(());
    }
    if inside.iter().any(|pid| *pid != daemon.to_string()) {
        return Err(format!(
            "the daemon's cgroup {} has other processes, so the kernel hands no controllers on from it; run the daemon \
             in a service of its own with `Delegate=yes`, or with systemd-run --scope -p Delegate=yes",
            own.display()
        ));
    }
    let leaf = leaf(base);
    let moved = match fs::create_dir(&leaf) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        Ok(()) | Err(_) => fs::write(leaf.join("cgroup.procs"), "0"),
    };
    moved.map_err(|error| {
        fs::remove_dir(&leaf).ok();
        format!(
            "the daemon can't move into the cgroup {}: {error}; give it the group that it is in",
            leaf.display()
        )
    })
}

/// All at once, and where that fails one by one.
fn enable(group: &Path, support: &mut LimitSupport) {
    let file = group.join("cgroup.subtree_control");
    let on = |names: &[&str]| {
        let words: Vec<_> = names.iter().map(|name| format!("+{name}")).collect();
        fs::write(&file, words.join(" "))
    };
    let names: Vec<_> = support.each().iter().filter(|(_, is)| is.is_ok()).map(|(name, _)| *name).collect();
    if names.is_empty() || on(&names).is_ok() {
        return;
    }
    for (name, support) in support.each_mut() {
        if support.is_ok()
            && let Err(error) = on(&[name])
        {
            *support = Err(format!(
                "the {name} controller can't be handed on by the cgroup {}: {error}; run the daemon in a service with \
                 `Delegate=yes`",
                group.display()
            ));
        }
    }
}

/// Takes back that the daemon moved, at its end: else the group that it was started in stays closed to processes.
pub(super) fn move_back(base: &Path) -> io::Result<()> {
    let (leaf, Some(own)) = (leaf(base), base.parent()) else { return Ok(()) };
    if !leaf.exists() {
        return Ok(());
    }
    let off: Vec<_> =
        words(&own.join("cgroup.subtree_control")).iter().map(|name| format!("-{name}")).collect();
    fs::write(own.join("cgroup.subtree_control"), off.join(" "))?;
    fs::write(own.join("cgroup.procs"), "0")?;
    fs::remove_dir(leaf)
}

/// Where the daemon itself goes.
fn leaf(base: &Path) -> PathBuf {
    let mut name = base.file_name().unwrap_or_default().to_owned();
    name.push("-daemon");
    base.with_file_name(name)
}

/// What a file lists; nothing when it can't be read.
fn words(file: &Path) -> Vec<String> {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.split_ascii_whitespace().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::cgroup::Cgroup;
    use crate::process::{Oom, TreeLimits};

    const DAEMON: u32 = 17;

    /// A directory that stands for the daemon's cgroup, as the kernel shows it, and the base in it.
    struct Group {
        own: tempfile::TempDir,
        base: PathBuf,
    }

    impl Group {
        fn new(controllers: &str, procs: &str) -> Self {
            let own = tempfile::tempdir().expect("a directory");
            let base = own.path().join("runward-1");
            let leaf = own.path().join("runward-1-daemon");
            for dir in [&base, &leaf] {
                fs::create_dir(dir).expect("made");
            }
            for (file, text) in [
                ("cgroup.controllers", controllers),
                ("cgroup.events", "populated 1\n"),
                ("cgroup.procs", procs),
                ("cgroup.subtree_control", ""),
                ("runward-1/cgroup.subtree_control", ""),
                ("runward-1-daemon/cgroup.procs", ""),
            ] {
                fs::write(own.path().join(file), text).expect("written");
            }
            Self { own, base }
        }

        fn hand_on(&self) -> LimitSupport {
            hand_on_in(self.own.path(), &self.base, "memory\t0\t9\t1\npids\t8\t1\t1\n", DAEMON)
        }

        fn text(&self, file: &str) -> String {
            fs::read_to_string(self.own.path().join(file)).expect("readable")
        }
    }

    #[test]
    fn controllers_are_handed_on_and_the_daemon_makes_room() {
        let group = Group::new("cpuset cpu io memory hugetlb pids", "17\n");
        assert_eq!(group.hand_on(), LimitSupport { memory: Ok(()), cpu: Ok(()), pids: Ok(()) });
        assert_eq!(group.text("runward-1-daemon/cgroup.procs"), "0");
        assert_eq!(group.text("cgroup.subtree_control"), "+memory +cpu +pids");
        assert_eq!(group.text("runward-1/cgroup.subtree_control"), "+memory +cpu +pids");
    }

    #[test]
    fn the_root_group_may_have_processes() {
        let group = Group::new("memory cpu pids", "1\n2\n17\n");
        fs::remove_file(group.own.path().join("cgroup.events")).expect("removed");
        assert!(group.hand_on().each().iter().all(|(_, is)| is.is_ok()));
        assert_eq!(group.text("runward-1-daemon/cgroup.procs"), "");
    }

    #[test]
    fn a_group_that_hands_on_already_is_left_as_it_is() {
        let group = Group::new("memory cpu pids", "1\n17\n");
        fs::write(group.own.path().join("cgroup.subtree_control"), "cpu io memory pids\n").expect("written");
        assert!(group.hand_on().each().iter().all(|(_, is)| is.is_ok()));
        assert_eq!(group.text("runward-1-daemon/cgroup.procs"), "");
    }

    #[test]
    fn a_group_shared_with_others_hands_nothing_on_and_says_what_to_do() {
        let group = Group::new("memory pids", "17\n99\n");
        let support = group.hand_on();
        for (name, is) in support.each() {
            let why = is.as_ref().expect_err(name);
            assert!(why.contains("Delegate=yes"), "{name}: {why}");
        }
        assert!(support.memory.expect_err("not").contains("other processes"));
        assert_eq!(group.text("cgroup.subtree_control"), "", "nothing is changed");
        assert_eq!(group.text("runward-1-daemon/cgroup.procs"), "");
    }

    #[test]
    fn a_controller_that_is_missing_is_named_with_who_has_it() {
        let group = Group::new("cpu", "17\n");
        let LimitSupport { memory, cpu, pids } = group.hand_on();
        assert_eq!(cpu, Ok(()));
        assert!(memory.expect_err("not").contains("does not reach the daemon's cgroup"));
        assert!(pids.expect_err("not").contains("taken by cgroup v1"));
        assert_eq!(group.text("cgroup.subtree_control"), "+cpu");
    }

    #[test]
    fn the_daemon_moves_back_at_its_end() {
        let group = Group::new("cpu", "");
        fs::write(group.own.path().join("cgroup.subtree_control"), "cpu memory\n").expect("written");
        fs::remove_file(group.own.path().join("runward-1-daemon/cgroup.procs")).expect("removed");
        move_back(&group.base).expect("moved");
        assert_eq!(group.text("cgroup.subtree_control"), "-cpu -memory");
        assert_eq!(group.text("cgroup.procs"), "0");
        assert!(!group.own.path().join("runward-1-daemon").exists());
    }

    /// An attempt's group, as the kernel makes it.
    fn attempt(files: &[&str]) -> (tempfile::TempDir, Cgroup) {
        let dir = tempfile::tempdir().expect("a directory");
        for file in files {
            fs::write(dir.path().join(file), "").expect("written");
        }
        let group = Cgroup::at(dir.path().to_owned());
        (dir, group)
    }

    #[test]
    fn limits_are_written_as_the_kernel_reads_them() {
        let files = ["memory.max", "memory.swap.max", "memory.oom.group", "cpu.max", "pids.max"];
        let limits = TreeLimits { memory: Some(512 << 20), cpu: Some(150_000), pids: Some(64) };
        let (dir, group) = attempt(&files);
        group.limit(&limits).expect("all are there");
        let texts = files.map(|file| fs::read_to_string(dir.path().join(file)).expect("readable"));
        assert_eq!(texts, ["536870912", "0", "1", "150000 100000", "64"]);
        let (_dir, group) = attempt(&["memory.max", "memory.oom.group"]);
        group.limit(&TreeLimits { memory: Some(1), ..TreeLimits::default() }).expect("without swap");
    }

    #[test]
    fn a_limit_without_its_controller_fails_and_no_file_is_made_up() {
        for limits in [
            TreeLimits { memory: Some(1 << 20), ..TreeLimits::default() },
            TreeLimits { cpu: Some(1_000), ..TreeLimits::default() },
            TreeLimits { pids: Some(1), ..TreeLimits::default() },
        ] {
            let (dir, group) = attempt(&[]);
            let error = group.limit(&limits).expect_err("refused");
            assert_eq!(error.kind(), io::ErrorKind::NotFound, "{limits:?}");
            assert_eq!(fs::read_dir(dir.path()).expect("readable").count(), 0);
        }
    }

    #[test]
    fn out_of_memory_is_told_from_the_groups_events() {
        let (dir, group) = attempt(&["memory.events"]);
        let events = |text: &str| fs::write(dir.path().join("memory.events"), text).expect("written");
        events("low 0\nhigh 0\nmax 4\noom 0\noom_kill 0\noom_group_kill 0\n");
        assert_eq!(group.oom(Some(9)), None);
        events("low 0\nhigh 0\nmax 31\noom 1\noom_kill 3\noom_group_kill 1\n");
        assert_eq!(group.oom(Some(9)), Some(Oom { kills: 3, limit: Some(9) }));
        events("low 0\nhigh 0\nmax 0\noom 0\noom_kill 1\noom_group_kill 0\n");
        assert_eq!(group.oom(Some(9)), Some(Oom { kills: 1, limit: None }), "the machine had no more");
        assert_eq!(attempt(&[]).1.oom(Some(9)), None, "no controller");
    }
}
