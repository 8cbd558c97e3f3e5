//! Scripts: a file that an interpreter reads.

use std::{ffi::OsString, io, path::Path};

/// What runs a script that does not say.
const SHELL: &str = "/bin/sh";

/// The name of its file.
pub(super) const NAME: &str = "script";

/// Writes the script beside the output of its attempts, where it stays as long as they do. Blocking.
pub(super) fn write(runner_dir: &Path, source: &str) -> io::Result<()> {
    std::fs::write(runner_dir.join(NAME), source)
}

/// How to run it. The kernel's rule for `#!`, applied here: the file needs no permission to be executed, and
/// its file system may forbid that.
pub(super) fn argv(source: &str, path: &Path, args: &[String]) -> Vec<OsString> {
    let (interpreter, argument) = interpreter(source);
    let first = [Some(interpreter), argument].into_iter().flatten().map(OsString::from);
    first.chain([path.into()]).chain(args.iter().map(OsString::from)).collect()
}

/// The interpreter, and the one argument that it may be given.
pub(super) fn interpreter(source: &str) -> (&str, Option<&str>) {
    let line = source.lines().next().and_then(|line| line.strip_prefix("#!")).map(str::trim).unwrap_or(SHELL);
    let line = if line.is_empty() { SHELL } else { line };
    match line.split_once([' ', '\t']) {
        Some((interpreter, argument)) => (interpreter, Some(argument.trim())),
        None => (line, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_chooses_the_interpreter() {
        let argv = |source| argv(source, Path::new("/s"), &["a".into()]);
        assert_eq!(argv("echo hi"), ["/bin/sh", "/s", "a"]);
        assert_eq!(
            argv("#!/usr/bin/env -S python3 -u\nprint()"),
            ["/usr/bin/env", "-S python3 -u", "/s", "a"]
        );
        assert_eq!(argv("#! /bin/bash\n"), ["/bin/bash", "/s", "a"]);
        assert_eq!(argv("#!\n"), ["/bin/sh", "/s", "a"]);
        assert_eq!(argv(""), ["/bin/sh", "/s", "a"]);
    }
}
