//! The floors of the code: an arrow down is allowed, never up.

use std::{fs, path::Path};

/// A part of the code and the parts that it may use. Everything may use `text`, which uses nothing.
const FLOORS: &[(&str, &[&str])] = &[
    ("text", &[]),
    ("json", &[]),
    ("private_file", &[]),
    ("runner", &[]),
    ("process", &[]),
    ("job", &[]),
    ("metrics", &["job"]),
    ("settings", &["job", "text"]),
    ("telemetry", &["json", "settings"]),
    ("state_dir", &[]),
    ("descriptors", &["settings"]),
    ("secrets", &["job", "private_file"]),
    ("supervisor", &["job", "metrics"]),
    ("kinds", &["job", "json", "process", "runner", "secrets", "supervisor"]),
    ("store", &["job", "json", "supervisor"]),
    ("http", &["job", "json", "metrics", "private_file", "process", "secrets", "supervisor", "text"]),
    ("reload", &["http", "job", "kinds", "metrics", "settings", "supervisor", "telemetry"]),
    ("retention", &["job", "settings", "store", "supervisor"]),
    ("webhooks", &["http", "job", "kinds", "metrics", "secrets", "store", "supervisor"]),
    ("systemd", &["supervisor"]),
    ("signals", &["daemon", "http", "process", "supervisor"]),
    (
        "daemon",
        &[
            "descriptors",
            "http",
            "job",
            "kinds",
            "metrics",
            "private_file",
            "process",
            "reload",
            "retention",
            "secrets",
            "settings",
            "signals",
            "state_dir",
            "store",
            "supervisor",
            "systemd",
            "telemetry",
            "webhooks",
        ],
    ),
    // It speaks HTTP; of the daemon's own it knows where one says that it is, and how settings are read.
    ("cli", &["settings", "state_dir", "text"]),
    ("main", &["cli", "daemon", "settings"]),
    ("lib", &[]),
];

/// The first path segments that a source names after `crate::` (or `runward::`, in `main.rs`).
fn uses(source: &str) -> Vec<String> {
    let code: String = source
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .map(|line| format!("{line}\n"))
        .collect();
    let mut found = Vec::new();
    for root in ["crate::", "runward::"] {
        for (at, _) in code.match_indices(root) {
            let rest = &code[at + root.len()..];
            match rest.strip_prefix('{') {
                Some(group) => found.extend(first_segments(group)),
                None => found.extend(segment(rest)),
            }
        }
    }
    found
}

/// The first segment of each path of a `{…}` group.
fn first_segments(group: &str) -> Vec<String> {
    let mut depth = 0;
    let mut at_start = true;
    let mut found = Vec::new();
    for (at, letter) in group.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => at_start = true,
            letter if at_start && letter.is_alphabetic() => {
                found.extend(segment(&group[at..]));
                at_start = false;
            }
            _ => {}
        }
    }
    found
}

fn segment(path: &str) -> Option<String> {
    let name: String = path.chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect();
    (!name.is_empty()).then_some(name)
}

fn sources(path: &Path, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(path).expect("the sources are readable") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name =
                path.strip_prefix(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).expect("below src");
            let text = fs::read_to_string(&path).expect("a source is UTF-8");
            found.push((name.display().to_string(), text));
        }
    }
}

fn violations(sources: &[(String, String)]) -> Vec<String> {
    let parts: Vec<&str> = FLOORS.iter().map(|(part, _)| *part).collect();
    let mut wrong = Vec::new();
    for (file, text) in sources {
        let part = file.split(['/', '.']).next().unwrap_or_default();
        let Some((_, allowed)) = FLOORS.iter().find(|(name, _)| *name == part) else {
            wrong.push(format!("src/{file}: the part `{part}` has no floor; give it one in tests/floors.rs"));
            continue;
        };
        for used in uses(text) {
            if used != part && parts.contains(&used.as_str()) && !allowed.contains(&used.as_str()) {
                wrong.push(format!("src/{file} uses `{used}`, which `{part}` may not"));
            }
        }
    }
    wrong
}

#[test]
fn no_part_uses_one_of_a_floor_above() {
    let mut found = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    assert!(found.len() > 20, "the sources were found");
    let wrong = violations(&found);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_check_sees_a_forbidden_arrow_in_each_form() {
    for text in [
        "use crate::http;",
        "use crate::{\n    job::{self, Record},\n    http::Problem,\n};",
        "fn f() { crate::http::serve() }",
    ] {
        let planted = [("supervisor/actor.rs".to_owned(), text.to_owned())];
        assert_eq!(violations(&planted), ["src/supervisor/actor.rs uses `http`, which `supervisor` may not"]);
    }
    let comment = [("job/mod.rs".to_owned(), "//! see crate::http".to_owned())];
    assert!(violations(&comment).is_empty());
}

#[test]
fn unsafe_code_is_in_keeper_and_shim_only() {
    let mut found = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    let allowed = ["process/keeper", "process/shim", "process/inherited.rs"];
    for (file, text) in found {
        let has = text.contains("expect(unsafe_code") || text.contains("allow(unsafe_code");
        assert!(!has || allowed.iter().any(|place| file.starts_with(place)), "src/{file} has unsafe code");
    }
}
