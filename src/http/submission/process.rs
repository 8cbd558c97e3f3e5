//! How a job's processes run: as whom, and within which limits. What this daemon may not do is refused here, by name.

use std::collections::BTreeSet;

use nix::{
    errno::Errno,
    unistd::{Gid, Group, Uid, User},
};
use serde_json::Value;

use super::missing;
use crate::{
    http::{
        fields::{Fields, invalid},
        nearest,
        problem::{Kind, Problem},
    },
    job::{Bound, Controller, Job, Limits, Process, Resource, Rlimit, Rlimits},
    json::join,
    process::{self, Permits},
};

/// The limits of a whole job.
pub(in crate::http) const LIMITS: [&str; 3] = ["cpu", "memory", "pids"];
const RLIMIT: [&str; 2] = ["soft", "hard"];
const UNLIMITED: &str = "unlimited";

/// The least memory that is a limit and not a mistake in the unit: no program starts with less.
const MIN_MEMORY: u64 = 1 << 20;
/// The kernel gives no less than 1 ms of processor time in each 100 ms.
const MIN_CPU: f64 = 0.01;
/// More processors than any machine has.
const MAX_CPU: f64 = 65_536.0;

const SIZE: &str = "a size such as \"512M\" (K, M, G and T are powers of 1024), or a number of bytes";

/// `umask`, as four octal digits.
pub(super) fn umask(fields: &mut Fields) -> Result<Option<String>, Problem> {
    let Some(value) = fields.value("umask") else { return Ok(None) };
    let digits =
        value.as_str().filter(|text| text.len() <= 4 && text.bytes().all(|c| (b'0'..=b'7').contains(&c)));
    let mask = digits.and_then(|text| u32::from_str_radix(text, 8).ok()).filter(|mask| *mask <= 0o777);
    let expected = "a text of octal digits such as \"0027\"; a JSON number would not say whether it is octal";
    mask.map(|mask| Some(format!("{mask:04o}"))).ok_or_else(|| invalid(&fields.path("umask"), expected))
}

pub(super) fn nice(fields: &mut Fields) -> Result<Option<i32>, Problem> {
    let path = fields.path("nice");
    let nice = fields.integer("nice")?;
    if nice.is_some_and(|nice| !(-20..=19).contains(&nice)) {
        return Err(invalid(&path, "a whole number from -20, the most favoured, to 19"));
    }
    Ok(nice)
}

pub(super) fn success_exit_codes(fields: &mut Fields) -> Result<Vec<i32>, Problem> {
    let Some(value) = fields.value("success_exit_codes") else { return Ok(Vec::new()) };
    let path = fields.path("success_exit_codes");
    let Value::Array(list) = value else { return Err(invalid(&path, "a list of exit codes, as in [0, 3]")) };
    if list.is_empty() {
        return Err(invalid(&path, "a list of one exit code at the least; leave it out for [0]"));
    }
    let codes: Result<BTreeSet<i32>, Problem> = list
        .iter()
        .enumerate()
        .map(|(index, value)| {
            let code = value.as_i64().and_then(|code| u8::try_from(code).ok());
            code.map(i32::from)
                .ok_or_else(|| invalid(&format!("{path}[{index}]"), "an exit code, from 0 to 255"))
        })
        .collect();
    Ok(codes?.into_iter().collect())
}

pub(super) fn rlimits(fields: &mut Fields) -> Result<Rlimits, Problem> {
    let Some(value) = fields.value("rlimits") else { return Ok(Rlimits::new()) };
    let path = fields.path("rlimits");
    let names: Vec<_> = Resource::ALL.iter().map(|resource| resource.as_str()).collect();
    let Value::Object(map) = value else {
        return Err(invalid(&path, "an object with limits by name, as in {\"nofile\": 1024}").allowed(names));
    };
    let mut rlimits = Rlimits::new();
    for (name, value) in map {
        let path = join(&path, &name);
        let Some(resource) = Resource::from_word(&name) else {
            return Err(Problem::new(Kind::UnknownField, nearest::unknown("limit", &name, &names))
                .field(path)
                .allowed(names));
        };
        if !value.is_null() {
            rlimits.insert(resource, rlimit(resource, value, &path)?);
        }
    }
    Ok(rlimits)
}

fn rlimit(resource: Resource, value: Value, path: &str) -> Result<Rlimit, Problem> {
    if !value.is_object() {
        let both = bound(resource, &value, path)?;
        return Ok(Rlimit { soft: both, hard: both });
    }
    let mut fields = Fields::open(value, path, &RLIMIT)?;
    let mut one = |name: &str| {
        let path = fields.path(name);
        let value = fields.value(name);
        let value =
            value.ok_or_else(|| missing(&path, "give both, `soft` and `hard`, or one number for both"))?;
        bound(resource, &value, &path)
    };
    let limit = Rlimit { soft: one("soft")?, hard: one("hard")? };
    if limit.soft.get() > limit.hard.get() {
        return Err(invalid(&join(path, "soft"), "no higher than `hard`"));
    }
    Ok(limit)
}

fn bound(resource: Resource, value: &Value, path: &str) -> Result<Bound, Problem> {
    if value.as_str() == Some(UNLIMITED) {
        return Ok(Bound::Unlimited);
    }
    match resource {
        Resource::As
        | Resource::Core
        | Resource::Data
        | Resource::Fsize
        | Resource::Memlock
        | Resource::Stack => size(value).map(Bound::Number).ok_or_else(|| {
            invalid(path, &format!("{SIZE}, \"{UNLIMITED}\", or {{\"soft\": …, \"hard\": …}}"))
        }),
        Resource::Cpu | Resource::Nofile | Resource::Nproc => {
            let what = if resource == Resource::Cpu { "a whole number of seconds" } else { "a whole number" };
            let expected =
                || invalid(path, &format!("{what}, \"{UNLIMITED}\", or {{\"soft\": …, \"hard\": …}}"));
            value.as_u64().map(Bound::Number).ok_or_else(expected)
        }
    }
}

pub(super) fn limits(fields: &mut Fields) -> Result<Limits, Problem> {
    let Some(value) = fields.value("limits") else { return Ok(Limits::default()) };
    let mut fields = Fields::open(value, &fields.path("limits"), &LIMITS)?;
    let memory = fields.value("memory").map(|value| {
        let bytes = size(&value).filter(|bytes| *bytes >= MIN_MEMORY);
        bytes.ok_or_else(|| invalid(&fields.path("memory"), &format!("{SIZE}, 1M at the least")))
    });
    let memory = memory.transpose()?;
    let cpu = fields.value("cpu").map(|value| {
        let processors = value.as_f64().filter(|number| (MIN_CPU..=MAX_CPU).contains(number));
        let expected = "a number of processors, 0.01 at the least: 1.5 is one and a half";
        processors.ok_or_else(|| invalid(&fields.path("cpu"), expected))
    });
    let cpu = cpu.transpose()?;
    let pids = fields.value("pids").map(|value| {
        let number = value.as_u64().filter(|number| (1..=u64::from(u32::MAX)).contains(number));
        number.ok_or_else(|| invalid(&fields.path("pids"), "a whole number of processes, 1 at the least"))
    });
    Ok(Limits { memory, cpu, pids: pids.transpose()? })
}

/// Bytes; `None` for what is no size.
fn size(value: &Value) -> Option<u64> {
    match value {
        Value::Number(number) => number.as_u64(),
        Value::String(text) => {
            let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
            let (number, unit) = text.split_at(digits);
            let factor: u64 = match unit {
                "" => 1,
                "K" | "KiB" => 1 << 10,
                "M" | "MiB" => 1 << 20,
                "G" | "GiB" => 1 << 30,
                "T" | "TiB" => 1 << 40,
                _ => return None,
            };
            number.parse::<u64>().ok()?.checked_mul(factor)
        }
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

/// Where the fields of a job's process are.
fn base(job: &Job) -> &'static str {
    match job {
        Job::Command(_) => "job.command",
        Job::Script(_) => "job.script",
        Job::Python(_) => "job.python",
        Job::Http(_) => "job.http",
        Job::Handler(_) => "job.handler",
    }
}

/// Checks that this daemon may do what the job asks for. All but the users, which [`check_identity`] looks up.
///
/// # Errors
/// A [`Problem`] that names the field and what it would take.
pub(in crate::http) fn check_permits(job: &Job, permits: &Permits) -> Result<(), Problem> {
    let (Some(process), base) = (job.process(), base(job)) else { return Ok(()) };
    if process.nice.is_some_and(|nice| nice < permits.lowest_nice) {
        let lowest = permits.lowest_nice;
        return Err(invalid(
            &join(base, "nice"),
            &format!(
                "{lowest} or more: this daemon may not favour a job more than that; run it as root, or raise its limit \
                 (`LimitNICE=` of a service)"
            ),
        ));
    }
    for (resource, limit) in &process.rlimits {
        let highest = permits.highest(in_kernel(*resource));
        if limit.hard.get() > highest {
            return Err(invalid(
                &join(&join(base, "rlimits"), resource.as_str()),
                &format!(
                    "{highest} at the most: this daemon may set it no higher; start it with a higher hard limit \
                     (`ulimit -H`, or `Limit…=` of a service)"
                ),
            ));
        }
    }
    for controller in process.limits.controllers() {
        let support = match controller {
            Controller::Memory => &permits.limits.memory,
            Controller::Cpu => &permits.limits.cpu,
            Controller::Pids => &permits.limits.pids,
        };
        if let Err(why) = support {
            let path = join(&join(base, "limits"), controller.as_str());
            let detail = format!(
                "`{path}` can't be had here: {why}. `containment` in /v1/info shows what can be had; leave it out to \
                 run without this limit"
            );
            return Err(Problem::new(Kind::Unavailable, detail).field(path));
        }
    }
    Ok(())
}

fn in_kernel(resource: Resource) -> process::Resource {
    match resource {
        Resource::As => process::Resource::AddressSpace,
        Resource::Core => process::Resource::Core,
        Resource::Cpu => process::Resource::Cpu,
        Resource::Data => process::Resource::Data,
        Resource::Fsize => process::Resource::FileSize,
        Resource::Memlock => process::Resource::LockedMemory,
        Resource::Nofile => process::Resource::OpenFiles,
        Resource::Nproc => process::Resource::Processes,
        Resource::Stack => process::Resource::Stack,
    }
}

/// Whether [`check_identity`] has anything to look up.
pub(in crate::http) fn names_identity(job: &Job) -> bool {
    job.process().is_some_and(|process| process.user.is_some() || process.group.is_some())
}

/// Checks that a daemon of this user may run the job as who it asks for. Asks the system's databases, which may be on a
/// network: not for an async worker.
///
/// # Errors
/// A [`Problem`]: there is no such user or group, or the daemon may not switch.
pub(in crate::http) fn check_identity(job: &Job, daemon: Uid) -> Result<(), Problem> {
    let (Some(Process { user, group, .. }), base) = (job.process(), base(job)) else { return Ok(()) };
    if let Some(name) = user {
        let path = join(base, "user");
        let uid = known(User::from_name(name).map(|user| user.map(|user| user.uid)), "user", name, &path)?;
        if !daemon.is_root() && uid != daemon {
            return Err(invalid(
                &path,
                "left out: this daemon does not run as root, so it can't run jobs as another user",
            ));
        }
    }
    if let Some(name) = group {
        let path = join(base, "group");
        let gid =
            known(Group::from_name(name).map(|group| group.map(|group| group.gid)), "group", name, &path)?;
        if !daemon.is_root() && gid != Gid::effective() {
            return Err(invalid(
                &path,
                "left out: this daemon does not run as root, so it can't run jobs as another group",
            ));
        }
    }
    Ok(())
}

fn known<T>(found: nix::Result<Option<T>>, what: &str, name: &str, path: &str) -> Result<T, Problem> {
    match found {
        Ok(Some(id)) => Ok(id),
        Ok(None) | Err(Errno::EINVAL) => {
            Err(invalid(path, &format!("the name of a {what} of this machine; it knows no {name:?}")))
        }
        Err(error) => {
            let detail =
                format!("the system's {what} database can't be read ({error}), so `{path}` can't be checked");
            Err(Problem::new(Kind::InvalidField, detail).field(path))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        http::{Config, submission},
        job,
        process::LimitSupport,
    };

    fn read(options: &Value) -> Result<std::sync::Arc<job::Spec>, Problem> {
        let mut command = options.clone();
        command["argv"] = json!(["true"]);
        let mut permits = Permits::default();
        permits.limits = LimitSupport { memory: Ok(()), cpu: Ok(()), pids: Ok(()) };
        submission::spec(json!({"job": {"command": command}}), &Config { permits, ..Config::default() })
    }

    #[test]
    fn all_options_arrive() {
        let spec = read(&json!({
            "group": "daemon", "umask": "27", "nice": 19, "success_exit_codes": [3, 0, 3],
            "rlimits": {"nofile": 64, "core": 0, "as": "2G", "cpu": {"soft": 5, "hard": "unlimited"}, "data": null},
            "limits": {"memory": "512M", "cpu": 1.5, "pids": 64},
        }))
        .expect("valid");
        let process = spec.job.process().expect("a process");
        assert_eq!((process.umask.as_deref(), process.nice), (Some("0027"), Some(19)));
        assert_eq!(
            (process.group.as_deref(), &process.success_exit_codes[..]),
            (Some("daemon"), &[0, 3][..])
        );
        let both = |number| Rlimit { soft: Bound::Number(number), hard: Bound::Number(number) };
        let cpu = Rlimit { soft: Bound::Number(5), hard: Bound::Unlimited };
        let expected = [
            (Resource::Nofile, both(64)),
            (Resource::Core, both(0)),
            (Resource::As, both(2 << 30)),
            (Resource::Cpu, cpu),
        ];
        assert_eq!(process.rlimits, Rlimits::from(expected));
        assert_eq!(process.limits, Limits { memory: Some(512 << 20), cpu: Some(1.5), pids: Some(64) });
    }

    #[test]
    fn each_fault_names_its_field() {
        for (options, kind, field) in [
            (json!({"umask": 27}), Kind::InvalidField, "umask"),
            (json!({"umask": "0o27"}), Kind::InvalidField, "umask"),
            (json!({"umask": "0888"}), Kind::InvalidField, "umask"),
            (json!({"umask": "1777"}), Kind::InvalidField, "umask"),
            (json!({"umask": ""}), Kind::InvalidField, "umask"),
            (json!({"nice": 20}), Kind::InvalidField, "nice"),
            (json!({"nice": "5"}), Kind::InvalidField, "nice"),
            (json!({"group": 5}), Kind::InvalidField, "group"),
            (json!({"success_exit_codes": []}), Kind::InvalidField, "success_exit_codes"),
            (json!({"success_exit_codes": 3}), Kind::InvalidField, "success_exit_codes"),
            (json!({"success_exit_codes": [0, 256]}), Kind::InvalidField, "success_exit_codes[1]"),
            (json!({"rlimits": 5}), Kind::InvalidField, "rlimits"),
            (json!({"rlimits": {"nofiles": 5}}), Kind::UnknownField, "rlimits.nofiles"),
            (json!({"rlimits": {"nofile": -1}}), Kind::InvalidField, "rlimits.nofile"),
            (json!({"rlimits": {"nofile": "1K"}}), Kind::InvalidField, "rlimits.nofile"),
            (json!({"rlimits": {"core": "1MB"}}), Kind::InvalidField, "rlimits.core"),
            (json!({"rlimits": {"as": "99999999T"}}), Kind::InvalidField, "rlimits.as"),
            (json!({"rlimits": {"cpu": {"soft": 2, "hard": 1}}}), Kind::InvalidField, "rlimits.cpu.soft"),
            (json!({"rlimits": {"cpu": {"soft": 2}}}), Kind::MissingField, "rlimits.cpu.hard"),
            (json!({"rlimits": {"cpu": {"max": 2}}}), Kind::UnknownField, "rlimits.cpu.max"),
            (json!({"limits": 5}), Kind::InvalidField, "limits"),
            (json!({"limits": {"io": 5}}), Kind::UnknownField, "limits.io"),
            (json!({"limits": {"memory": "lots"}}), Kind::InvalidField, "limits.memory"),
            (json!({"limits": {"memory": 512}}), Kind::InvalidField, "limits.memory"),
            (json!({"limits": {"cpu": 0}}), Kind::InvalidField, "limits.cpu"),
            (json!({"limits": {"cpu": "1"}}), Kind::InvalidField, "limits.cpu"),
            (json!({"limits": {"pids": 0}}), Kind::InvalidField, "limits.pids"),
        ] {
            let problem = read(&options).expect_err(&options.to_string());
            let field = format!("job.command.{field}");
            assert_eq!((problem.kind(), problem.at()), (kind, Some(field.as_str())), "{}", problem.detail());
        }
    }

    #[test]
    fn what_the_daemon_may_not_is_refused_by_name() {
        let (mut permits, why) = (Permits::default(), "the memory controller is taken by cgroup v1");
        permits.lowest_nice = 5;
        permits.limits.memory = Err(why.into());
        permits.limits.pids = Ok(());
        let permits = permits.with_highest(vec![(process::Resource::OpenFiles, 100)]);
        for (options, refused) in [
            (json!({"nice": 4}), Some((Kind::InvalidField, "nice", "run it as root"))),
            (json!({"nice": 5}), None),
            (
                json!({"rlimits": {"nofile": 101}}),
                Some((Kind::InvalidField, "rlimits.nofile", "100 at the most")),
            ),
            (
                json!({"rlimits": {"nofile": "unlimited"}}),
                Some((Kind::InvalidField, "rlimits.nofile", "100 at the")),
            ),
            (json!({"rlimits": {"nofile": 100, "core": "unlimited"}}), None),
            (json!({"limits": {"pids": 1, "memory": "1G"}}), Some((Kind::Unavailable, "limits.memory", why))),
            (json!({"limits": {"pids": 1}}), None),
        ] {
            let checked = check_permits(&read(&options).expect("valid").job, &permits);
            match (checked, refused) {
                (Ok(()), None) => {}
                (Err(problem), Some((kind, field, text))) => {
                    let field = format!("job.command.{field}");
                    assert_eq!((problem.kind(), problem.at()), (kind, Some(field.as_str())));
                    assert!(problem.detail().contains(text), "{}", problem.detail());
                }
                (checked, refused) => panic!("{options}: {checked:?} instead of {refused:?}"),
            }
        }
    }

    #[test]
    fn users_and_groups_are_checked() {
        let me = User::from_uid(nix::unistd::geteuid()).expect("readable").expect("known");
        let my_group = Group::from_gid(Gid::effective()).expect("readable").expect("known");
        let (root, other) = (Uid::from_raw(0), Uid::from_raw(12_345));
        for (options, daemon, refused) in [
            (json!({"user": me.name}), me.uid, None),
            (json!({"user": "no such user"}), root, Some("job.command.user")),
            (json!({"user": "root"}), other, Some("job.command.user")),
            (json!({"user": "daemon", "group": "daemon"}), root, None),
            (json!({"group": my_group.name}), other, None),
            (json!({"group": "no such group"}), root, Some("job.command.group")),
            (json!({"group": "daemon"}), other, Some("job.command.group")),
        ] {
            let checked = check_identity(&read(&options).expect("valid").job, daemon);
            assert_eq!(checked.err().as_ref().and_then(Problem::at), refused, "{options}");
        }
    }
}
