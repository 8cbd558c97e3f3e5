"""What the rivals are measured with: processes, their memory, and times."""

import ctypes
import os
import pathlib
import random
import signal
import statistics
import subprocess
import time

HERE = pathlib.Path(__file__).resolve().parent
CORES = os.cpu_count()
now = time.perf_counter


class Place:
    """The directory that everything is installed in and runs in."""

    def __init__(self, path):
        self.path = pathlib.Path(path).resolve()
        path = [self.path / "cargo/bin", self.path / "venv/bin", self.path / "npm/node_modules/.bin"]
        # Small and the same for all: some keep it with each job.
        self.env = {
            "PATH": ":".join(map(str, [*path, "/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin"])),
            "HOME": str(self.path / "home"),
            "LANG": "C.UTF-8",
        }

    def run(self, *argv, **more):
        """Runs it to its end, and gives what it wrote."""
        more = {"env": self.env, "check": True, "timeout": 300, "stdin": subprocess.DEVNULL, **more}
        return subprocess.run([str(a) for a in argv], capture_output=True, text=True, **more).stdout

    def start(self, *argv, env=None, **more):
        """Starts a daemon in a session of its own."""
        (self.path / "home").mkdir(parents=True, exist_ok=True)
        with open(self.path / "log", "ab") as log:
            more = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, **more}
            return subprocess.Popen(
                [str(a) for a in argv], env={**self.env, **(env or {})}, start_new_session=True, **more
            )


def timed(work, *arguments):
    began = now()
    work(*arguments)
    return now() - began


def until(so, timeout=120, step=0.005):
    began = now()
    while not so():
        if now() - began > timeout:
            raise TimeoutError(f"not so after {timeout} s")
        time.sleep(step)


def percentile(times, part):
    return sorted(times)[min(int(len(times) * part), len(times) - 1)]


def median(times):
    return statistics.median(times)


def status(pid):
    """What /proc says of a process; nothing if it is gone."""
    try:
        with open(f"/proc/{pid}/status") as file:
            return dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    except (FileNotFoundError, ProcessLookupError):
        return {}


def alive(pid):
    return status(pid).get("State", "Z")[0] not in "ZX"


def command_line(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return [b""]


def pids():
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def descendants(root):
    children = {}
    for pid in pids():
        if parent := status(pid).get("PPid"):
            children.setdefault(int(parent), []).append(pid)
    found, todo = [], [root]
    while todo:
        for child in children.get(todo.pop(), []):
            found.append(child)
            todo.append(child)
    return found


def pss(of, field="Pss"):
    """Their memory in KiB, and of what they share their share; or another field of that."""
    total = 0
    for pid in of:
        try:
            with open(f"/proc/{pid}/smaps_rollup") as file:
                total += next(int(line.split()[1]) for line in file if line.startswith(f"{field}:"))
        except (FileNotFoundError, ProcessLookupError, StopIteration):
            pass
    return total


class Sleeps:
    """`sleep` processes that are known by how long they sleep."""

    def __init__(self):
        self.time = f"900.{random.randrange(10**6, 10**7)}"
        self.argv = ["sleep", self.time]

    def running(self):
        """The sleeps themselves, no shells or clients that name them."""
        mine = lambda argv: argv[0].endswith(b"sleep") and self.time.encode() in argv[1:2]
        return [pid for pid in pids() if mine(command_line(pid)) and alive(pid)]

    def end(self):
        for pid in self.running():
            kill(pid)


def kill(pid, how=signal.SIGKILL):
    try:
        os.kill(pid, how)
    except ProcessLookupError:
        pass


def adopt_orphans():
    """Daemons that leave their parent, and what dead ones leave behind, become children of this process."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def reap():
    """What has ended of that."""
    try:
        while os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        pass


# What serves until the end.
kept = set()


def end_all():
    """Kills everything else that this process has started, however far it has gone."""
    left = lambda: [pid for pid in descendants(os.getpid()) if pid not in kept and alive(pid)]
    until(lambda: not [kill(pid) for pid in left()], timeout=20, step=0.05)
    reap()
