//! What a process job may take: limits of each process, and limits of the whole job.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::state::words;

words! {
    /// What each process of a job may be limited in, as in `setrlimit(2)`.
    #[derive(PartialOrd, Ord)]
    Resource {
        /// Address space, bytes.
        As = "as",
        /// Core file, bytes.
        Core = "core",
        /// Processor time, seconds.
        Cpu = "cpu",
        /// Data segment, bytes.
        Data = "data",
        /// Size of a file written, bytes.
        Fsize = "fsize",
        /// Locked memory, bytes.
        Memlock = "memlock",
        /// Open descriptors.
        Nofile = "nofile",
        /// Processes of the user.
        Nproc = "nproc",
        /// Main thread's stack, bytes.
        Stack = "stack",
    }
}

/// Limits of each process.
pub type Rlimits = BTreeMap<Resource, Rlimit>;

/// A limit that a process may raise itself, up to one that it may not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// The limit in force.
    pub soft: Bound,
    /// What it may be raised to.
    pub hard: Bound,
}

/// A number, or none: `1024`, `"unlimited"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// Any amount.
    Unlimited,
    /// So much.
    #[serde(untagged)]
    Number(u64),
}

impl Bound {
    /// As the kernel has it, which writes unlimited as the largest number.
    pub fn get(self) -> u64 {
        match self {
            Self::Unlimited => u64::MAX,
            Self::Number(number) => number,
        }
    }
}

words! {
    /// What a whole job may be limited in, by its cgroup.
    #[derive(PartialOrd, Ord)]
    Controller {
        /// Memory, the page cache included; without swap.
        Memory = "memory",
        /// Processor time.
        Cpu = "cpu",
        /// Processes and threads at once.
        Pids = "pids",
    }
}

/// Limits of a whole job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// Processors; 1.5 is one and a half.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<f64>,
    /// Processes and threads at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<u64>,
}

impl Limits {
    /// What they need.
    pub fn controllers(&self) -> impl Iterator<Item = Controller> {
        let Self { memory, cpu, pids } = self;
        [memory.map(|_| Controller::Memory), cpu.map(|_| Controller::Cpu), pids.map(|_| Controller::Pids)]
            .into_iter()
            .flatten()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.controllers().next().is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_stored_in_words() {
        let rlimits = Rlimits::from([
            (Resource::Nofile, Rlimit { soft: Bound::Number(64), hard: Bound::Unlimited }),
            (Resource::As, Rlimit { soft: Bound::Number(u64::MAX - 1), hard: Bound::Number(u64::MAX) }),
        ]);
        let text = serde_json::to_string(&rlimits).expect("JSON");
        assert_eq!(
            text,
            r#"{"as":{"soft":18446744073709551614,"hard":18446744073709551615},"nofile":{"soft":64,"hard":"unlimited"}}"#
        );
        assert_eq!(serde_json::from_str::<Rlimits>(&text).expect("readable"), rlimits);
        let limits = Limits { cpu: Some(1.5), ..Limits::default() };
        assert_eq!(serde_json::to_string(&limits).expect("JSON"), r#"{"cpu":1.5}"#);
    }
}
