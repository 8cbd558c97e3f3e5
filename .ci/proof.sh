# What the proofs have in common; sourced.

passed=0 failed=0 done=''

step() { printf '\n== %s\n' "$*" >&2; }
die() {
    printf 'FAILED: %s\n' "$*" >&2
    exit 1
}
# Told what went wrong besides, once.
on_failure() { :; }

# check TEXT COMMAND…: one line, whether it holds or not; the rest goes on.
check() {
    local text=$1
    shift
    if "$@"; then
        passed=$((passed + 1))
        printf 'ok      %s\n' "$text"
    else
        failed=$((failed + 1))
        printf 'FAILED  %s\n' "$text"
        on_failure
    fi
}
# What can't be shown here, and why.
skip() { printf 'skipped %s: %s\n' "$1" "$2"; }
# Whether we have a capability, by its number.
capable() { (((0x$(sed -n 's/^CapEff:\t//p' /proc/self/status) >> $1) & 1)); }
finish() {
    done=yes
    printf '\n%s checks passed, %s failed\n' "$passed" "$failed"
    [ "$failed" -eq 0 ]
}

equal() { [ "$1" = "$2" ] || { printf '        found %q, expected %q\n' "$1" "$2" >&2 && false; }; }
contains() { [[ $1 == *"$2"* ]] || { printf '        found %q, expected it to hold %q\n' "$1" "$2" >&2 && false; }; }
without() {
    local text=$1 word
    shift
    for word in "$@"; do
        [[ $text != *"$word"* ]] || { printf '        found %q in %q\n' "$word" "$text" >&2 && return 1; }
    done
}
# A command that has nothing to say.
nothing() {
    local said
    said=$("$@" 2>&1) && [ -z "$said" ] || { printf '        it says %q\n' "$said" >&2 && false; }
}
# within SECONDS COMMAND…: until it succeeds.
within() {
    local until=$((SECONDS + $1))
    shift
    until "$@"; do
        [ "$SECONDS" -lt "$until" ] || return 1
        sleep 0.1
    done
}
# A part of the JSON on standard input, as Python says it: r["id"].
field() { python3 -c "import json, sys; r = json.load(sys.stdin); print($1)"; }
# The lines of the block of a Markdown file that follows the comment <!-- NAME -->.
block() { awk -v mark="<!-- $2 -->" '$0 == mark { found = 1; next } found && /^```/ { if (inside) exit; inside = 1; next } inside' "$1"; }

need_root() { [ "$(id -u)" -eq 0 ] || die "this needs root: it makes namespaces and mounts"; }
# need PROGRAM PACKAGE
need() {
    command -v "$1" >/dev/null && return
    step "installing $2"
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends "$2" >/dev/null; } ||
        die "$1 is missing, and apt-get could not install the package $2: see what it said above"
}
# The program to be proven: as given, or built.
release_program() {
    local program=${1:-target/release/runward}
    [ -n "${1:-}" ] || cargo build --locked --release --quiet >&2
    [ -x "$program" ] || die "$program is no program"
    realpath "$program"
}
# debian_tree DIRECTORY SUITE PACKAGES: as debootstrap makes it, kept for the next time.
debian_tree() {
    [ -e "$1/etc/os-release" ] && return
    step "a Debian tree in $1"
    mkdir -p "$(dirname "$1")"
    rm -rf --one-file-system "$1.part"
    debootstrap --variant=minbase ${3:+"--include=$3"} "$2" "$1.part" "${DEBIAN_MIRROR:-http://deb.debian.org/debian}" >&2 ||
        die "debootstrap could not make a Debian tree; is a mirror reachable? (DEBIAN_MIRROR names another)"
    umount --quiet --recursive "$1.part/proc" "$1.part/sys" 2>/dev/null || true
    rm -rf "$1.part/var/cache/apt/archives" "$1.part"/var/lib/apt/lists/* "$1.part/usr/share/doc" "$1.part/usr/share/man"
    mv "$1.part" "$1"
}

# What is started from here on is in a cgroup of its own, which goes with leave_cgroup.
proof_groups=()
enter_cgroup() {
    local top
    for top in /sys/fs/cgroup/unified /sys/fs/cgroup/systemd; do
        # Elsewhere systemd-nspawn asks the machine's systemd for one.
        if [ -w "$top/cgroup.procs" ] && [ ! -d /run/systemd/system ] && mkdir "$top/$1" 2>/dev/null; then
            proof_groups+=("$top/$1")
            echo $$ >"$top/$1/cgroup.procs"
        fi
    done
}
leave_cgroup() {
    local group
    for group in "${proof_groups[@]}"; do
        echo $$ >"$(dirname "$group")/cgroup.procs"
        within 10 eval "find '$group' -depth -type d -exec rmdir {} + 2>/dev/null" || true
    done
}
