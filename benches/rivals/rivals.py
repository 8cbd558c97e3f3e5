"""Those who run jobs, each with the same face: see Rival."""

import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys

from common import HERE, alive, command_line, descendants, kept, kill, now, pids, timed, until

TRUE = ["true"]


class Rival:
    """What is asked of each. A job is an argv."""

    name = ""
    how = ""  # How a job is submitted, for the table.
    sleeps = 200  # How many jobs may run at once to weigh one.
    backlog = (0, 1000, 10_000)  # Empty where it has no queue.

    def __init__(self, place, runward):
        self.place, self.runward = place, runward
        self.dir = place.path / "state" / type(self).__name__.lower()

    def fresh(self):
        shutil.rmtree(self.dir, ignore_errors=True)
        self.dir.mkdir(parents=True)

    def start(self, at_a_time):
        raise NotImplementedError

    def stop(self):
        """Ends the daemon; what is left is killed by whoever called."""
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def pids(self):
        """The daemon: its main process first."""
        return [self.process.pid]

    def submit(self, count, argv):
        """Submits so many, one after another; the seconds that each took."""
        return [timed(self.submit_one, argv) for _ in range(count)]

    def fill(self, count):
        """So many that wait."""
        self.submit(count, TRUE)

    def wait(self, count):
        """Until so many have ended since the start."""
        raise NotImplementedError

    def one(self):
        """Seconds from the submission of one job until its end is known."""
        raise NotImplementedError


class Runward(Rival):
    name, how, sleeps = "runward", "HTTP, unix socket", 1000

    def start(self, at_a_time):
        self.fresh()
        path = self.dir / "state/api.sock"
        argv = [self.runward, "serve", "--listen", "unix:api.sock", "--state-dir", self.dir / "state"]
        env = {"RUNWARD__JOBS__MAX_RUNNING": str(at_a_time)}
        self.process = self.place.start(*argv, env=env)
        until(path.exists)
        self.path = str(path)
        self.socket = None
        until(self.ready)

    def ready(self):
        try:
            return self.ask("GET", "/readyz")[0] == 200
        except OSError:
            self.socket = None
            return False

    def ask(self, method, path, body=""):
        kind = "content-type: application/json\r\n" if body else ""
        head = f"{method} {path} HTTP/1.1\r\nhost: localhost\r\n{kind}content-length: {len(body)}\r\n\r\n"
        answer = b""
        while not answer:
            # The daemon lets go of a connection that rests.
            if not self.socket:
                self.socket = socket.socket(socket.AF_UNIX)
                self.socket.connect(self.path)
            try:
                self.socket.sendall((head + body).encode())
                answer = self.socket.recv(1 << 16)
            except (BrokenPipeError, ConnectionResetError):
                pass
            if not answer:
                self.socket = None
        head, _, rest = answer.partition(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        while len(rest) < length:
            rest += self.socket.recv(1 << 16)
        return int(head[9:12]), rest

    def post(self, path, argv):
        code, answer = self.ask("POST", path, json.dumps({"job": {"command": argv}}))
        if code >= 300:
            raise RuntimeError(answer)

    def submit_one(self, argv):
        self.post("/v1/runners", argv)

    def wait(self, count):
        left = "/v1/runners?limit=1&state=queued,starting,running,cancelling,draining"
        until(lambda: not json.loads(self.ask("GET", left)[1])["items"])

    def one(self):
        return timed(self.post, "/v1/runners?wait=1m", TRUE)


class RunwardCli(Runward):
    name, how = "runward", "`runward submit`"

    def cli(self, *argv):
        return self.place.run(self.runward, *argv, "--state-dir", self.dir / "state")

    def submit_one(self, argv):
        self.place.run(self.runward, "submit", "--state-dir", self.dir / "state", "--", *argv)

    def fill(self, count):
        for _ in range(count):
            self.post("/v1/runners", TRUE)

    def one(self):
        argv = [self.runward, "run", "--state-dir", self.dir / "state", "--", *TRUE]
        return timed(lambda: self.place.run(*argv))


class Pueue(Rival):
    name, how = "pueue", "`pueue add`"

    def cli(self, *argv):
        return self.place.run("pueue", "-c", self.dir / "pueue.yml", *argv, cwd=self.dir)

    def start(self, at_a_time):
        self.fresh()
        (self.dir / "pueue.yml").write_text(
            f"shared: {{pueue_directory: {self.dir}, runtime_directory: {self.dir}, use_unix_socket: true, "
            f"unix_socket_path: {self.dir}/socket}}\nclient: {{}}\ndaemon: {{}}\n"
        )
        self.process = self.place.start("pueued", "-c", self.dir / "pueue.yml")
        until((self.dir / "socket").exists)
        until(self.answers)
        self.cli("parallel", at_a_time)

    def answers(self):
        try:
            return self.cli("status")
        except subprocess.CalledProcessError:
            return False

    def submit_one(self, argv):
        self.cli("add", "--", *argv)

    def wait(self, count):
        done = lambda: sum("Done" in task["status"] for task in json.loads(self.cli("status", "--json"))["tasks"].values())
        until(lambda: done() >= count, timeout=600, step=0.2)

    def one(self):
        began = now()
        self.cli("wait", "-q", self.cli("add", "-p", "--", *TRUE).strip())
        return now() - began


class TaskSpooler(Rival):
    """Its server waits with select(), so about 1,000 jobs are all it knows."""

    name, how, sleeps, backlog = "task-spooler", "`tsp`", 200, (0, 900)

    def tsp(self, *argv):
        env = {**self.place.env, "TS_SOCKET": str(self.dir / "socket"), "TMPDIR": str(self.dir), "TS_MAXFINISHED": "20000"}
        return self.place.run("tsp", *argv, env=env)

    def start(self, at_a_time):
        self.fresh()
        before = set(pids())
        self.tsp("-S", at_a_time)
        self.pid = next(pid for pid in pids() if pid not in before and command_line(pid)[:2] == [b"tsp", b"-S"])

    def stop(self):
        if alive(self.pid):
            self.tsp("-K")

    def pids(self):
        return [self.pid]

    def submit_one(self, argv):
        self.tsp(*argv)

    def wait(self, count):
        ended = lambda: sum(line.split()[1] == "finished" for line in self.tsp("-l").splitlines()[1:])
        until(lambda: ended() >= count, step=0.05)

    def one(self):
        began = now()
        self.tsp("-w", self.tsp(*TRUE).strip())
        return now() - began


class Nq(Rival):
    """No daemon; a process waits for each job, and one runs at a time in each directory."""

    name, how, backlog = "nq", "`nq`", (0, 1000)

    def start(self, at_a_time):
        self.fresh()
        self.dirs = [self.dir / str(number) for number in range(at_a_time)]
        for path in self.dirs:
            path.mkdir()
        self.next = itertools.cycle(self.dirs)

    def stop(self):
        pass

    def pids(self):
        return []

    def nq(self, path, *argv):
        return self.place.run("nq", *argv, env={**self.place.env, "NQDIR": str(path)}, cwd=path)

    def submit_one(self, argv):
        self.nq(next(self.next), *argv)

    def wait(self, count):
        for path in self.dirs:
            self.nq(path, "-w")

    def one(self):
        path, began = next(self.next), now()
        self.nq(path, "-w", self.nq(path, *TRUE).strip())
        return now() - began


class Supervisord(Rival):
    """No queue: the programs are defined beforehand, and a job is started by its name."""

    name, how, backlog = "supervisord", "startProcess", ()

    def start(self, at_a_time):
        import xmlrpc.client

        from supervisor.xmlrpc import SupervisorTransport

        self.fresh()
        path = self.dir / "socket"
        program = lambda name, argv, count: (
            f"[program:{name}]\ncommand={argv}\nnumprocs={count}\nprocess_name=%(process_num)d\nautostart=false\n"
            "autorestart=false\nstartsecs=0\nstartretries=0\nstdout_logfile=/dev/null\nstderr_logfile=/dev/null\n"
        )
        self.config = self.dir / "config"
        self.head = (
            f"[unix_http_server]\nfile={path}\n[supervisord]\nnodaemon=true\nlogfile={self.dir}/log\n"
            f"pidfile={self.dir}/pid\nchildlogdir={self.dir}\nminfds=16000\n[rpcinterface:supervisor]\n"
            "supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface\n"
        ) + program("true", "true", 1000)
        self.program = program
        self.config.write_text(self.head)
        self.process = self.place.start("supervisord", "-c", self.config)
        until(path.exists)
        transport = SupervisorTransport(None, None, f"unix://{path}")
        self.rpc = xmlrpc.client.ServerProxy("http://127.0.0.1", transport).supervisor
        until(lambda: self.rpc.getState()["statename"] == "RUNNING")
        self.count = 0

    def submit(self, count, argv):
        if argv != TRUE:
            self.config.write_text(self.head + self.program("other", " ".join(argv), count))
            self.rpc.reloadConfig()
            self.rpc.addProcessGroup("other")
            return [timed(self.rpc.startProcess, f"other:{number}", False) for number in range(count)]
        return super().submit(count, argv)

    def submit_one(self, argv):
        name = f"true:{self.count % 1000}"
        self.count += 1
        self.rpc.startProcess(name, False)
        return name

    def wait(self, count):
        ended = lambda: sum(process["statename"] == "EXITED" for process in self.rpc.getAllProcessInfo())
        until(lambda: ended() >= count, step=0.05)

    def one(self):
        began = now()
        name = self.submit_one(TRUE)
        until(lambda: self.rpc.getProcessInfo(name)["statename"] == "EXITED", step=0.002)
        return now() - began


class Circus(Rival):
    """No queue: a job is a watcher that is added, without respawn."""

    name, how, backlog = "circus", "add a watcher", ()

    def start(self, at_a_time):
        from circus.client import CircusClient

        self.fresh()
        ports = []
        for _ in range(2):
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                ports.append(free.getsockname()[1])
        config = self.dir / "circus.ini"
        config.write_text(
            "[circus]\ncheck_delay=5\nendpoint=tcp://127.0.0.1:%d\npubsub_endpoint=tcp://127.0.0.1:%d\n" % tuple(ports)
        )
        self.process = self.place.start("circusd", config)
        until(lambda: not socket.socket().connect_ex(("127.0.0.1", ports[0])))
        self.client = CircusClient(endpoint=f"tcp://127.0.0.1:{ports[0]}", timeout=60)
        self.call("numwatchers")
        self.count = 0

    def call(self, command, **properties):
        return self.client.call({"command": command, "properties": properties})

    def stop(self):
        super().stop()
        self.client.stop()

    def submit_one(self, argv):
        name = f"job{self.count}"
        self.count += 1
        options = {"respawn": False, "numprocesses": 1, "copy_env": True, "graceful_timeout": 5}
        self.call("add", name=name, cmd=argv[0], args=argv[1:], start=True, waiting=True, options=options)
        return name

    def wait(self, count):
        until(lambda: not any(map(alive, descendants(self.process.pid))), step=0.05)

    def one(self):
        began = now()
        name = self.submit_one(TRUE)
        until(lambda: not self.call("list", name=name)["pids"], step=0.002)
        return now() - began


class Pm2(Rival):
    """No queue: a job is a process that is started without restarts."""

    name, how, backlog = "pm2", "its Node module", ()

    def env(self):
        modules = self.place.path / "npm/node_modules"
        return {**self.place.env, "PM2_HOME": str(self.dir), "NODE_PATH": str(modules), "PM2_DISCRETE_MODE": "true"}

    def start(self, at_a_time):
        self.fresh()
        self.place.run("pm2", "ping", env=self.env())
        until((self.dir / "pm2.pid").exists)
        self.pid = int((self.dir / "pm2.pid").read_text())

    def stop(self):
        kill(self.pid, signal.SIGTERM)
        until(lambda: not alive(self.pid), timeout=30)

    def pids(self):
        return [self.pid]

    def api(self, count, wait, argv):
        lines = self.place.run("node", HERE / "pm2.js", count, wait, *argv, env=self.env(), timeout=600).splitlines()
        return [tuple(map(float, line.split())) for line in lines]

    def submit(self, count, argv):
        return [submitted for submitted, _ in self.api(count, "go", argv)]

    def wait(self, count):
        jobs = lambda: json.loads(self.place.run("pm2", "jlist", env=self.env()).splitlines()[-1])
        until(lambda: sum(job["pm2_env"]["status"] == "stopped" for job in jobs()) >= count, step=0.5)

    def one(self):
        return self.api(1, "wait", TRUE)[0][1]


class Celery(Rival):
    """A task that runs the process, in a prefork worker on Redis."""

    name, how, sleeps = "Celery on Redis", "`delay()` of a task that runs it", 16
    redis = None

    def start(self, at_a_time):
        import redis

        self.fresh()
        if not self.redis:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            # One for all workers: the client keeps its connections to it.
            self.redis = self.place.start("redis-server", "--bind", "127.0.0.1", "--port", port, "--save", "")
            kept.add(self.redis.pid)
            until(lambda: not socket.socket().connect_ex(("127.0.0.1", port)))
            os.environ["RIVALS_REDIS"] = f"redis://127.0.0.1:{port}"
        redis.Redis.from_url(os.environ["RIVALS_REDIS"]).flushall()
        import tasks

        self.run, self.results = tasks.run, []
        env = {"RIVALS_REDIS": os.environ["RIVALS_REDIS"], "PYTHONPATH": str(HERE), "PYTHONDONTWRITEBYTECODE": "1"}
        argv = ["celery", "-A", "tasks", "worker", "-c", at_a_time, "-l", "warning"]
        self.process = self.place.start(*argv, env=env, cwd=self.dir)
        self.run.delay(TRUE).get(timeout=120)

    def pids(self):
        # Its forks are the daemon, what these run is not.
        worker = [pid for pid in descendants(self.process.pid) if b"celery" in b" ".join(command_line(pid))]
        return [self.process.pid, *worker, self.redis.pid]

    def submit_one(self, argv):
        self.results.append(self.run.delay(list(argv)))

    def wait(self, count):
        for result in self.results:
            result.get(timeout=300)
        self.results.clear()

    def one(self):
        began = now()
        self.run.delay(TRUE).get(timeout=60)
        return now() - began


class Asyncio(Rival):
    """A script: nothing is submitted or kept, processes are started."""

    name, how, sleeps, backlog = "asyncio script", "create_subprocess_exec", 1000, ()

    def start(self, at_a_time):
        self.at_a_time, self.todo = at_a_time, 0
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = self.place.start(sys.executable, HERE / "asyncio_worker.py", **pipes)
        self.one()

    def ask(self, *words):
        print(*words, file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def submit(self, count, argv):
        if argv == TRUE and count >= 1000:
            # They are limited by the script itself, so they start within `wait`.
            self.todo = count
            return [0.0]
        return self.ask("hold", count, *argv)

    def wait(self, count):
        if self.todo:
            self.ask("many", self.todo, self.at_a_time, *TRUE)
            self.todo = 0

    def one(self):
        return self.ask("one", *TRUE)[1]


ALL = [Runward, RunwardCli, Asyncio, TaskSpooler, Nq, Celery, Circus, Supervisord, Pm2, Pueue]
