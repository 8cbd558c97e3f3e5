//! stub
use crate::supervisor::Supervisor;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
#[derive(Debug, thiserror::Error)]
#[error("x")]
pub struct TokenError;
pub struct Token;
pub mod token {
    pub fn load_or_create(_: &std::path::Path) -> Result<super::Token, super::TokenError> {
        Ok(super::Token)
    }
}
pub mod access {
    pub struct Access {
        pub token: super::Token,
        pub hosts: Vec<String>,
        pub uid: u32,
    }
}
pub struct Config {
    pub max_body: usize,
    pub drain_timeout: std::time::Duration,
}
impl Default for Config {
    fn default() -> Self {
        Config { max_body: 0, drain_timeout: Default::default() }
    }
}
pub struct Api {
    pub supervisor: Supervisor,
    pub access: access::Access,
    pub config: Config,
    pub info: Info,
}
pub struct Info {
    pub version: String,
    pub pid: u32,
    pub boot_id: String,
    pub started_at: jiff::Timestamp,
    pub started: std::time::Instant,
    pub containment: Containment,
    pub limits: Limits,
}
pub struct Containment {
    pub tier: String,
    pub detail: String,
}
pub struct Limits {
    pub max_running: usize,
    pub max_queued: usize,
    pub cancel_grace: std::time::Duration,
    pub shutdown: std::time::Duration,
}
pub struct Listener;
impl Listener {
    pub fn bind_unix(_: &Path) -> io::Result<Self> {
        Ok(Self)
    }
    pub fn bind_tcp(_: SocketAddr) -> io::Result<Self> {
        Ok(Self)
    }
    pub fn address(&self) -> String {
        String::new()
    }
}
pub async fn serve(_: Vec<Listener>, api: Api, stop: impl Future<Output = ()>) {
    let s = &api.supervisor;
    let spec = |argv: &[&str]| {
        std::sync::Arc::new(crate::job::Spec {
            job: crate::job::Job::Command(crate::job::Command {
                argv: argv.iter().map(|s| s.to_string()).collect(),
                ..Default::default()
            }),
            name: None,
            queue: "default".into(),
            priority: 0,
            labels: Default::default(),
            context: Default::default(),
            timeout: None,
            cancel_grace: None,
            drain_timeout: std::time::Duration::from_secs(300),
            on_lost: Default::default(),
            debug: None,
        })
    };
    let t = std::time::Instant::now();
    for cmd in [&["/bin/echo", "hi"][..], &["/bin/sh", "-c", "exit 3"], &["/nope"], &["/bin/sleep", "100"]] {
        let id = crate::job::RunnerId::new();
        let mut sub = s.subscribe(id);
        println!("{:?}", s.submit(id, spec(cmd), None).await);
        if cmd[0] == "/bin/sleep" {
            loop {
                if sub.changed().await.state == crate::job::State::Running {
                    break;
                }
            }
            println!("{:?}", s.cancel(id, crate::job::Requester("me".into())).await);
        }
        loop {
            let r = sub.changed().await;
            println!("{} {:?}", r.state, t.elapsed());
            if r.state == crate::job::State::Closed {
                println!("{}", serde_json::to_string(&*r).unwrap());
                break;
            }
        }
    }
    let n = 1000;
    let t = std::time::Instant::now();
    let mut set = tokio::task::JoinSet::new();
    for _ in 0..64 {
        let s = s.clone();
        set.spawn(async move {
            for _ in 0..n / 64 + 1 {
                let id = crate::job::RunnerId::new();
                let mut sub = s.subscribe(id);
                let sp = std::sync::Arc::new(crate::job::Spec {
                    job: crate::job::Job::Command(crate::job::Command {
                        argv: vec!["/bin/true".into()],
                        ..Default::default()
                    }),
                    name: None,
                    queue: "default".into(),
                    priority: 0,
                    labels: Default::default(),
                    context: Default::default(),
                    timeout: None,
                    cancel_grace: None,
                    drain_timeout: std::time::Duration::from_secs(300),
                    on_lost: Default::default(),
                    debug: None,
                });
                s.submit(id, sp, None).await.unwrap();
                while sub.changed().await.state != crate::job::State::Closed {}
            }
        });
    }
    while set.join_next().await.is_some() {}
    println!("{} jobs/s", (n as f64) / t.elapsed().as_secs_f64());
    stop.await
}
