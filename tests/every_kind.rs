//! Every kind of job × everything that can become of it: the outcome, the exit, the receipt, the explanation and
//! the log that are documented. The daemon under test is this very program, because it embeds handlers.

mod common;

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    process::ExitCode,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use common::{Daemon, Setup, processes_of, python_is_there};
use libtest_mimic::{Arguments, Trial};
use nix::sys::signal::Signal;
use runward::{
    daemon::Daemon as Embedded,
    kinds::{Call, HandlerError, Handlers},
    settings::Flags,
};
use serde_json::{Value, json};

/// The argument that makes this program the daemon.
const ROLE: &str = "--as-daemon";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if arguments.get(1).is_some_and(|role| role == ROLE) {
        return serve(&arguments[2..]);
    }
    let trials = KINDS.iter().flat_map(|kind| {
        CASES.iter().filter(move |case| kind.can(case)).map(move |case| {
            Trial::test(format!("{}_{}", kind.name, case.name), move || {
                check(kind, case);
                Ok(())
            })
        })
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}

/// A kind of job, as one that does what each case asks for. `{file}` stands for a file of its own, `{server}` for the
/// address of a server.
struct Kind {
    name: &'static str,
    /// Writes "hello" and succeeds.
    succeeds: &'static str,
    fails: &'static str,
    /// Fails the first time.
    flaky: &'static str,
    /// Writes "ready", and "tidied" when it is asked to stop.
    tidies: &'static str,
    /// Writes "ready", and does not stop when it is asked to.
    stubborn: Option<&'static str>,
    /// Whether it is a process.
    process: bool,
}

const TIDIES: &str = "trap 'echo tidied; exit 0' TERM; echo ready; while :; do sleep 0.05; done";
const STUBBORN: &str = "trap '' TERM; echo ready; while :; do sleep 0.05; done";
const FLAKY: &str = "if test -e {file}; then echo hello; else touch {file}; exit 3; fi";

const PYTHON_TIDIES: &str = "import asyncio\nasync def main():\n  try:\n    print('ready', flush=True)\n    \
                             await asyncio.sleep(600)\n  finally:\n    print('tidied', flush=True)\n";
const PYTHON_STUBBORN: &str = "import asyncio, signal\nasync def main():\n  \
                               signal.signal(signal.SIGINT, signal.SIG_IGN)\n  print('ready', flush=True)\n  \
                               await asyncio.sleep(600)\n";
const PYTHON_FLAKY: &str = "import os\nasync def main():\n  if not os.path.exists('{file}'):\n    \
                            open('{file}', 'w').close()\n    raise ValueError('once')\n  print('hello')\n";

const KINDS: &[Kind] = &[
    Kind {
        name: "command",
        succeeds: r#"{"command": ["echo", "hello"]}"#,
        fails: r#"{"command": ["sh", "-c", "exit 3"]}"#,
        flaky: r#"{"command": ["sh", "-c", "FLAKY"]}"#,
        tidies: r#"{"command": ["sh", "-c", "TIDIES"]}"#,
        stubborn: Some(r#"{"command": ["sh", "-c", "STUBBORN"]}"#),
        process: true,
    },
    Kind {
        name: "script",
        succeeds: r#"{"script": "echo hello"}"#,
        fails: r#"{"script": "exit 3"}"#,
        flaky: r#"{"script": "FLAKY"}"#,
        tidies: r#"{"script": "TIDIES"}"#,
        stubborn: Some(r#"{"script": "STUBBORN"}"#),
        process: true,
    },
    Kind {
        name: "python",
        succeeds: r#"{"python": "async def main():\n  print('hello')\n"}"#,
        fails: r#"{"python": "async def main():\n  raise ValueError('no')\n"}"#,
        flaky: r#"{"python": "PYTHON_FLAKY"}"#,
        tidies: r#"{"python": "PYTHON_TIDIES"}"#,
        stubborn: Some(r#"{"python": "PYTHON_STUBBORN"}"#),
        process: true,
    },
    Kind {
        name: "http",
        succeeds: r#"{"http": "http://{server}/hello"}"#,
        fails: r#"{"http": "http://{server}/nothing"}"#,
        flaky: r#"{"http": "http://{server}/flaky{file}"}"#,
        tidies: r#"{"http": "http://{server}/ready"}"#,
        // A request has nothing to clean up: it is dropped where it waits.
        stubborn: None,
        process: false,
    },
    Kind {
        name: "handler",
        succeeds: r#"{"handler": "hello"}"#,
        fails: r#"{"handler": "fails"}"#,
        flaky: r#"{"handler": {"name": "flaky", "args": "{file}"}}"#,
        tidies: r#"{"handler": "tidies"}"#,
        stubborn: Some(r#"{"handler": "stubborn"}"#),
        process: false,
    },
];

impl Kind {
    fn can(&self, case: &Case) -> bool {
        self.stubborn.is_some() || case.outcome != "killed"
    }

    fn job(&self, what: &str, daemon: &Daemon, server: &Server) -> Value {
        let file = daemon.state_dir().join("flag");
        let texts = [
            ("PYTHON_FLAKY", PYTHON_FLAKY),
            ("PYTHON_TIDIES", PYTHON_TIDIES),
            ("PYTHON_STUBBORN", PYTHON_STUBBORN),
            ("FLAKY", FLAKY),
            ("TIDIES", TIDIES),
            ("STUBBORN", STUBBORN),
        ];
        let mut job = what.to_owned();
        for (name, text) in texts {
            let quoted = Value::from(text).to_string();
            job = job.replace(name, quoted.trim_matches('"'));
        }
        let job = job.replace("{file}", &file.display().to_string());
        let job = job.replace("{server}", &server.address.to_string());
        serde_json::from_str(&job).unwrap_or_else(|error| panic!("{job}: {error}"))
    }
}

/// What becomes of a job.
struct Case {
    name: &'static str,
    /// Brings it about, and gives the closed Runner.
    happens: fn(&Kind, &mut World) -> Value,
    outcome: &'static str,
    /// What `explain` says.
    reason: fn(&Kind) -> &'static str,
    sentence: &'static str,
    /// What the steps of the receipt are, beside signals; empty: there is none.
    steps: &'static [&'static str],
    log: &'static str,
}

const CASES: &[Case] = &[
    Case {
        name: "succeeds",
        happens: |kind, world| world.run(kind, kind.succeeds, json!({})),
        outcome: "succeeded",
        reason: |_| "succeeded",
        sentence: "It succeeded",
        steps: &[],
        log: "hello",
    },
    Case {
        name: "fails",
        happens: |kind, world| world.run(kind, kind.fails, json!({})),
        outcome: "failed",
        reason: |kind| match kind.name {
            "command" | "script" => "exit_code",
            _ => "error",
        },
        sentence: "It failed",
        steps: &[],
        log: "",
    },
    Case {
        name: "fails_once_and_is_tried_again",
        happens: |kind, world| world.run(kind, kind.flaky, json!({"retry": {"max_attempts": 3}})),
        outcome: "succeeded",
        reason: |_| "succeeded",
        sentence: "It succeeded after 2 attempts",
        steps: &[],
        log: "hello",
    },
    Case {
        name: "is_cancelled_and_cleans_up",
        happens: |kind, world| {
            let id = world.ready(kind, kind.tidies, json!({}));
            world.daemon().cancel(&id);
            world.daemon().closed(&id)
        },
        outcome: "cancelled",
        reason: |_| "cancelled",
        sentence: "cancelled by",
        steps: &["requested", "ended"],
        log: "tidied",
    },
    Case {
        name: "is_killed_by_a_second_cancel",
        happens: |kind, world| {
            let id = world.ready(kind, kind.stubborn.expect("see `can`"), json!({"cancel_grace": "1h"}));
            world.daemon().cancel(&id);
            world.daemon().cancel(&id);
            world.daemon().closed(&id)
        },
        outcome: "killed",
        reason: |_| "killed",
        sentence: "killed",
        steps: &["requested", "force_requested", "ended"],
        log: "ready",
    },
    Case {
        name: "takes_too_long",
        happens: |kind, world| {
            let id = world.ready(kind, kind.tidies, json!({"timeout": "5s"}));
            world.daemon().closed(&id)
        },
        outcome: "timed_out",
        reason: |_| "timed_out",
        sentence: "timeout of 5s",
        steps: &["requested", "ended"],
        log: "tidied",
    },
    Case {
        name: "is_lost_with_the_daemon",
        happens: |kind, world| {
            let id = world.ready(kind, kind.tidies, json!({}));
            world.restart(Signal::SIGKILL);
            assert_eq!(processes_of(&id), [] as [i32; 0]);
            world.daemon().closed(&id)
        },
        outcome: "lost",
        reason: |_| "lost_with_daemon",
        sentence: "lost",
        steps: &[],
        log: "",
    },
    Case {
        name: "is_stopped_by_a_shutdown",
        happens: |kind, world| {
            let id = world.ready(kind, kind.tidies, json!({}));
            world.restart(Signal::SIGTERM);
            world.daemon().closed(&id)
        },
        outcome: "cancelled",
        reason: |_| "shutdown",
        sentence: "the daemon was shut down (SIGTERM)",
        steps: &["requested", "ended"],
        log: "tidied",
    },
    Case {
        name: "is_stopped_by_a_shutdown_and_runs_again",
        happens: |kind, world| {
            let id = world.ready(kind, kind.tidies, json!({"on_shutdown": "requeue"}));
            world.restart(Signal::SIGTERM);
            let attempts = |runner: &Value| runner["runs"][0]["attempts"].as_array().map_or(0, Vec::len);
            let again = |runner: &Value| attempts(runner) == 2 && runner["state"] == "running";
            world.daemon().runner_when(&id, "its second attempt runs", again);
            if kind.name != "http" {
                world.daemon().output_with(&id, "ready");
            }
            world.daemon().cancel(&id);
            world.daemon().closed(&id)
        },
        outcome: "cancelled",
        reason: |_| "cancelled",
        sentence: "cancelled by",
        steps: &["requested", "ended"],
        log: "tidied",
    },
];

/// What a case happens in.
struct World {
    daemon: Option<Daemon>,
    server: Server,
}

impl World {
    fn body(&self, kind: &Kind, what: &str, more: Value) -> Value {
        let mut body = json!({"job": kind.job(what, self.daemon(), &self.server)});
        let more = more.as_object().expect("an object").clone();
        body.as_object_mut().expect("an object").extend(more);
        body
    }

    fn run(&self, kind: &Kind, what: &str, more: Value) -> Value {
        self.daemon().run(self.body(kind, what, more))
    }

    /// A job that has begun what it has to clean up.
    fn ready(&self, kind: &Kind, what: &str, more: Value) -> String {
        let id = self.daemon().submit(self.body(kind, what, more));
        match kind.name {
            "http" => self.server.asked("/ready"),
            _ => drop(self.daemon().output_with(&id, "ready")),
        }
        // It may write before that is on record.
        self.daemon().running(&id);
        id
    }

    /// Ends the daemon and starts another on what it left.
    fn restart(&mut self, signal: Signal) {
        let daemon = self.daemon.take().expect("a daemon");
        daemon.signal(signal);
        self.daemon = Some(daemon.restart());
    }

    fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().expect("a daemon")
    }
}

fn check(kind: &Kind, case: &Case) {
    if kind.name == "python" {
        python_is_there();
    }
    let daemon = Setup::of(std::env::current_exe().expect("this program"), ROLE).start();
    let mut world = World { daemon: Some(daemon), server: Server::start() };
    let runner = (case.happens)(kind, &mut world);
    let id = runner["id"].as_str().expect("an id");
    assert_eq!(runner["outcome"], case.outcome, "{runner}");
    assert_eq!(processes_of(id), [] as [i32; 0], "nothing of it lives");

    let attempts = runner["runs"][0]["attempts"].as_array().expect("attempts");
    let last = attempts.last().expect("an attempt");
    assert_eq!(last["pid"].is_null(), !kind.process, "{last}");
    let exit = &last["exit"];
    match (kind.process, case.outcome) {
        (false, _) => assert_eq!(exit, &Value::Null, "no process, no exit"),
        (true, "succeeded") => assert_eq!(exit, &json!({"code": 0})),
        (true, "failed") => assert_eq!(exit["code"].as_i64().map(|code| code != 0), Some(true), "{exit}"),
        (true, "killed") => assert_eq!(exit, &json!({"signal": 9})),
        (true, _) => {}
    }

    let receipt = &runner["cancel"];
    if case.steps.is_empty() {
        assert_eq!(receipt, &Value::Null);
    } else {
        let steps: Vec<_> = receipt["steps"].as_array().expect("steps").iter().collect();
        let mut actions = steps.iter().filter_map(|step| step["action"].as_str());
        for step in case.steps {
            assert!(actions.any(|action| action == *step), "{step} is in its place: {receipt}");
        }
        assert_eq!(receipt["survivors"], 0);
        let times: Vec<_> = steps.iter().filter_map(|step| step["at"].as_str()).collect();
        assert!(times.is_sorted(), "{times:?}");
    }

    let why = world.daemon().get(&format!("/v1/runners/{id}/explain"));
    let sentence = why["sentence"].as_str().expect("a sentence");
    assert_eq!(why["facts"]["reason"], (case.reason)(kind), "{why}");
    assert!(sentence.contains(case.sentence) && sentence.ends_with('.'), "{sentence}");

    let log = world.daemon().text(&format!("/v1/runners/{id}/logs"));
    let log_of = |text: &str| match (kind.name, text) {
        // What a server says is the log of a request; one that was not answered has none.
        ("http", "tidied" | "ready") => String::new(),
        (_, text) => text.to_owned(),
    };
    assert!(log.contains(&log_of(case.log)), "{log}");
}

/// The daemon.
fn serve(arguments: &[String]) -> ExitCode {
    let values = |name: &str| -> Vec<String> {
        arguments.windows(2).filter(|pair| pair[0] == name).map(|pair| pair[1].clone()).collect()
    };
    let flags = Flags {
        config: None,
        state_dir: values("--state-dir").first().map(Into::into),
        listen: values("--listen"),
        ..Flags::default()
    };
    let handlers = Handlers::new()
        .register("hello", |call: Call| async move {
            call.print("hello").await;
            Ok(Value::Null)
        })
        .register("fails", |_| async { Err(HandlerError::new("no", "it can't be done")) })
        .register("flaky", |call: Call| async move {
            let file: String = call.args()?;
            if std::fs::exists(&file)? {
                call.print("hello").await;
                return Ok(Value::Null);
            }
            std::fs::write(&file, "")?;
            Err(HandlerError::new("once", "only once"))
        })
        .register_scoped("tidies", |call: Call| async move {
            call.print("ready").await;
            let slept = call.scope().sleep(Duration::from_secs(600)).await;
            call.print("tidied").await;
            slept?;
            Ok(Value::Null)
        })
        .register_scoped("stubborn", |call: Call| async move {
            call.print("ready").await;
            loop {
                drop(call.scope().sleep(Duration::from_secs(600)).await);
            }
        });
    ExitCode::from(Embedded::new(flags).handlers(handlers).serve() as u8)
}

/// A server for requests: `/hello` says so, `/flaky…` fails the first time, `/ready` never answers, and there is
/// nothing else.
struct Server {
    address: SocketAddr,
    asked: Arc<Mutex<BTreeSet<String>>>,
}

impl Server {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let asked = Arc::<Mutex<BTreeSet<String>>>::default();
        let paths = Arc::clone(&asked);
        // Both end with this process.
        thread::spawn(move || {
            let mut held = Vec::new();
            for stream in listener.incoming().flatten() {
                held.extend(answer(stream, &paths));
            }
        });
        Self { address, asked }
    }

    fn asked(&self, path: &str) {
        common::until("the server was asked", || self.asked.lock().expect("unpoisoned").contains(path));
    }
}

/// Gives back the connection where nobody is to be answered.
fn answer(mut stream: TcpStream, asked: &Mutex<BTreeSet<String>>) -> Option<TcpStream> {
    let mut lines = BufReader::new(stream.try_clone().ok()?).lines().map_while(Result::ok);
    let path = lines.next()?.split(' ').nth(1)?.to_owned();
    lines.take_while(|line| !line.is_empty()).for_each(drop);
    let first = asked.lock().expect("unpoisoned").insert(path.clone());
    let status = match path.as_str() {
        "/ready" => return Some(stream),
        "/hello" => "200 OK",
        flaky if flaky.starts_with("/flaky") => {
            if first {
                "500 Oops"
            } else {
                "200 OK"
            }
        }
        _ => "404 Not Found",
    };
    drop(write!(stream, "HTTP/1.1 {status}\r\ncontent-length: 6\r\nconnection: close\r\n\r\nhello\n"));
    None
}
