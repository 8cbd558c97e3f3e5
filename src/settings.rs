//! Settings: the defaults, a file, the environment, the command line; the last one that has a value wins.
//! An unknown key or a bad value is refused by name, with where it came from.

use std::{
    collections::BTreeMap,
    env,
    net::SocketAddr,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use config::{Config, Environment, File, FileFormat, Map, Source, Value, ValueKind};
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

mod difference;

pub use difference::Difference;

use crate::{job::QueueSettings, text};

/// The commented file that operators get is where the defaults are written, and nowhere else.
const COMMENTED: &str = include_str!("../config/runward.toml");

/// The variables that set something: `RUNWARD__JOBS__MAX_RUNNING`.
const PREFIX: &str = "RUNWARD";

/// The least that is kept of an output: `[logs]` in the commented file says so.
const MIN_LOG: u64 = 64 << 10;

/// Everything an operator decides.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Where jobs, records and output are kept.
    pub state_dir: PathBuf,
    /// Where the API is served.
    pub listen: Vec<Listen>,
    /// Jobs that run at once.
    pub max_running: u32,
    /// Jobs that run at once as tasks of the daemon's own.
    pub max_in_process: u32,
    /// What is decided of queues, by their names.
    pub queues: BTreeMap<String, QueueSettings>,
    /// Jobs that may wait.
    pub max_queued: usize,
    /// The grace of a job that sets none.
    pub cancel_grace: Duration,
    /// The drain of a job that sets none.
    pub drain_timeout: Duration,
    /// How long a shutdown may take.
    pub shutdown_timeout: Duration,
    /// The size of a file of output.
    pub segment_bytes: u64,
    /// All output of an attempt that is kept.
    pub max_bytes_per_attempt: u64,
    /// Whether each job must have a cgroup.
    pub require_cgroup: bool,
    /// The largest body of a request.
    pub max_body_bytes: usize,
    /// Names by which clients may call the daemon.
    pub allowed_hosts: Vec<String>,
    /// Whether `http` jobs may reach the daemon's own API.
    pub http_jobs_own_api: bool,
    /// Whether `http` jobs may reach link-local addresses.
    pub http_jobs_link_local: bool,
    /// What is kept of closed Runners.
    pub retention: Retention,
    /// What is logged.
    pub log_filter: String,
    /// How it is logged.
    pub log_format: LogFormat,
}

/// What is kept of closed Runners; `None`: without end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// How long.
    pub max_age: Option<Duration>,
    /// How many.
    pub max_records: Option<u64>,
    /// How much of their output, in bytes.
    pub max_log_bytes: Option<u64>,
}

/// An address to serve the API at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// A unix socket; a relative path is in the state directory.
    Unix(PathBuf),
    /// TCP, on loopback.
    Tcp(SocketAddr),
}

/// How the log looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, fields in the journal under systemd, JSON elsewhere.
    Auto,
    /// For people.
    Text,
    /// For machines.
    Json,
    /// For systemd's journal, in fields of its own.
    Journald,
}

/// What the command line sets. `None`: not given.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    /// `--config`
    pub config: Option<PathBuf>,
    /// `--state-dir`
    pub state_dir: Option<PathBuf>,
    /// `--listen`, any number of times.
    pub listen: Vec<String>,
    /// `--forget-secrets`
    pub forget_secrets: bool,
}

/// What is wrong with the settings.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A file can't be read or is not TOML.
    #[error("{path}: {reason}")]
    File {
        /// Which.
        path: String,
        /// Why.
        reason: String,
    },
    /// There is no such setting.
    #[error("{origin}: there is no setting `{key}`{hint}")]
    Unknown {
        /// Where it was found.
        origin: String,
        /// The key.
        key: String,
        /// What may have been meant.
        hint: String,
    },
    /// A value that will not do.
    #[error("{origin}: `{key}` is {found}, but must be {expected}")]
    Bad {
        /// Where it was found.
        origin: String,
        /// The key.
        key: String,
        /// What was found.
        found: String,
        /// What would do.
        expected: String,
    },
    /// No place for the state is known.
    #[error("no state directory: set --state-dir, or HOME or XDG_STATE_HOME")]
    NoStateDir,
}

/// Loads the settings.
///
/// # Errors
/// [`SettingsError`]: the first thing that is wrong, by name.
pub fn load(flags: &Flags) -> Result<Settings, SettingsError> {
    let layers = Layers::collect(flags)?;
    let listen = layers.strings("listen")?;
    let max_bytes_per_attempt = layers.number("logs.max_bytes_per_attempt", MIN_LOG, 1 << 50)?;
    Ok(Settings {
        state_dir: match layers.text("state_dir")?.as_str() {
            "auto" => default_state_dir()?,
            path => PathBuf::from(path),
        },
        listen: listen
            .iter()
            .map(|text| text.parse().map_err(|expected| layers.bad("listen", text, expected)))
            .collect::<Result<_, _>>()?,
        max_running: match layers.text("jobs.max_running")?.as_str() {
            "auto" => 4 * std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32),
            _ => layers.number("jobs.max_running", 1, 1_000_000)? as u32,
        },
        max_in_process: layers.number("jobs.max_in_process", 1, 10_000_000)? as u32,
        queues: layers.queues()?,
        max_queued: layers.number("jobs.max_queued", 1, 100_000_000)? as usize,
        cancel_grace: layers.duration("jobs.cancel_grace")?,
        drain_timeout: layers.duration("jobs.drain_timeout")?,
        shutdown_timeout: layers.duration("shutdown.timeout")?,
        segment_bytes: layers.number("logs.segment_bytes", MIN_LOG, 1 << 40)?,
        max_bytes_per_attempt,
        require_cgroup: layers.word("process.min_containment", &[("subreaper", false), ("cgroup2", true)])?,
        max_body_bytes: layers.number("http.max_body_bytes", 1 << 10, 64 << 20)? as usize,
        allowed_hosts: layers.strings("http.allowed_hosts")?,
        http_jobs_own_api: layers.flag("http_jobs.allow_own_api")?,
        http_jobs_link_local: layers.flag("http_jobs.allow_link_local")?,
        retention: Retention {
            max_age: layers.age("retention.max_age")?,
            max_records: layers.number_or_off("retention.max_records", 1 << 40)?,
            max_log_bytes: layers.max_log_bytes("retention.max_log_bytes", max_bytes_per_attempt)?,
        },
        log_filter: layers.filter("telemetry.filter")?,
        log_format: layers.word(
            "telemetry.format",
            &[
                ("auto", LogFormat::Auto),
                ("text", LogFormat::Text),
                ("json", LogFormat::Json),
                ("journald", LogFormat::Journald),
            ],
        )?,
    })
}

/// Where the state is kept: what of the settings a client needs.
///
/// # Errors
/// [`SettingsError`], where the place is not known.
pub fn state_dir(flags: &Flags) -> Result<PathBuf, SettingsError> {
    if let Some(path) = &flags.state_dir {
        return Ok(path.clone());
    }
    match Layers::collect(flags)?.text("state_dir")?.as_str() {
        "auto" => default_state_dir(),
        path => Ok(PathBuf::from(path)),
    }
}

/// Each setting with its value as written, and where that comes from.
///
/// # Errors
/// [`SettingsError`]: a source that can't be read, or an unknown setting in it.
pub fn origins(flags: &Flags) -> Result<Vec<(String, String, String)>, SettingsError> {
    let layers = Layers::collect(flags)?;
    let mut keys: Vec<&String> = layers.0.iter().flat_map(|(_, values)| values.keys()).collect();
    keys.sort();
    keys.dedup();
    let shown = |value: &Value| match &value.kind {
        ValueKind::Array(items) => items.iter().map(Value::to_string).collect::<Vec<_>>().join(", "),
        _ => value.to_string(),
    };
    let origin = |key: &String| {
        let (origin, value) = layers.get(key);
        (key.clone(), shown(value), origin.to_owned())
    };
    Ok(keys.into_iter().map(origin).collect())
}

/// What is said of a value that nobody has set.
pub const DEFAULTS: &str = "built-in defaults";

/// The defaults as a TOML document: the commented file with its settings uncommented.
fn defaults() -> String {
    let is_setting = |line: &str| line.as_bytes().get(1).is_some_and(u8::is_ascii_lowercase);
    COMMENTED
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(setting) if is_setting(line) => setting,
            Some(_) | None => line,
        })
        .collect::<Vec<_>>()
        .join("\n")
}

/// All the places a value can come from, flat: `jobs.max_running`.
struct Layers(Vec<(String, Map<String, Value>)>);

impl Layers {
    fn collect(flags: &Flags) -> Result<Self, SettingsError> {
        let mut layers = vec![(DEFAULTS.into(), parse(DEFAULTS, &defaults())?)];
        if let Some(path) = config_file(flags) {
            let origin = path.display().to_string();
            let text = std::fs::read_to_string(&path)
                .map_err(|error| SettingsError::File { path: origin.clone(), reason: error.to_string() })?;
            layers.push((origin.clone(), parse(&origin, &text)?));
        }
        layers.push(("the environment".into(), environment()));
        layers.push(("the command line".into(), command_line(flags)));
        let known = layers[0].1.keys().cloned().collect::<Vec<_>>();
        for (origin, values) in &layers {
            if let Some(key) = values.keys().find(|key| !known.contains(key) && queue_setting(key).is_none())
            {
                return Err(unknown(origin, key, &known));
            }
        }
        Ok(Self(layers))
    }

    /// What is said of queues, by their names, which are the operator's own.
    fn queues(&self) -> Result<BTreeMap<String, QueueSettings>, SettingsError> {
        let mut queues = BTreeMap::<String, QueueSettings>::new();
        for (origin, values) in &self.0 {
            for (key, value) in values {
                let Some((name, setting)) = queue_setting(key) else { continue };
                let queue = queues.entry(name.to_owned()).or_default();
                let bad = |expected: &str| SettingsError::Bad {
                    origin: origin.clone(),
                    key: key.clone(),
                    found: format!("{:?}", value.to_string()),
                    expected: expected.to_owned(),
                };
                match setting {
                    QueueSetting::MaxRunning => {
                        let number =
                            value.clone().into_uint().ok().and_then(|number| u32::try_from(number).ok());
                        queue.max_running = Some(number.ok_or_else(|| bad("a whole number from 0"))?);
                    }
                    QueueSetting::Paused => {
                        queue.paused = value.clone().into_bool().map_err(|_| bad("true or false"))?;
                    }
                }
            }
        }
        Ok(queues)
    }

    fn get(&self, key: &str) -> (&str, &Value) {
        self.0
            .iter()
            .rev()
            .find_map(|(origin, values)| Some((origin.as_str(), values.get(key)?)))
            .expect("every key has a default")
    }

    fn bad(&self, key: &'static str, found: &str, expected: impl Into<String>) -> SettingsError {
        let origin = self.get(key).0.to_owned();
        SettingsError::Bad { origin, key: key.into(), found: format!("{found:?}"), expected: expected.into() }
    }

    fn text(&self, key: &'static str) -> Result<String, SettingsError> {
        let value = self.get(key).1;
        value.clone().into_string().map_err(|_| self.bad(key, &value.to_string(), "a text"))
    }

    fn strings(&self, key: &'static str) -> Result<Vec<String>, SettingsError> {
        let value = self.get(key).1;
        if let ValueKind::String(text) = &value.kind {
            // The environment has no lists.
            return Ok(text
                .split(',')
                .map(|part| part.trim().to_owned())
                .filter(|part| !part.is_empty())
                .collect());
        }
        let list =
            value.clone().into_array().map_err(|_| self.bad(key, &value.to_string(), "a list of texts"))?;
        list.into_iter()
            .map(|item| match &item.kind {
                ValueKind::String(text) => Ok(text.clone()),
                other => Err(self.bad(key, &other.to_string(), "a list of texts")),
            })
            .collect()
    }

    fn number(&self, key: &'static str, min: u64, max: u64) -> Result<u64, SettingsError> {
        let text = self.text(key)?;
        let number = text.parse().ok().filter(|number| (min..=max).contains(number));
        number.ok_or_else(|| self.bad(key, &text, format!("a whole number from {min} to {max}")))
    }

    fn number_or_off(&self, key: &'static str, max: u64) -> Result<Option<u64>, SettingsError> {
        match self.text(key)?.as_str() {
            "off" | "0" => Ok(None),
            text => match text.parse() {
                Ok(number) if number <= max => Ok(Some(number)),
                Ok(_) | Err(_) => {
                    Err(self.bad(key, text, format!("\"off\", or a whole number from 1 to {max}")))
                }
            },
        }
    }

    /// Less than one job may write would forget its record with the output as soon as it has closed.
    fn max_log_bytes(&self, key: &'static str, one_job: u64) -> Result<Option<u64>, SettingsError> {
        let limit = self.number_or_off(key, 1 << 60)?;
        match limit {
            Some(bytes) if bytes < one_job => Err(self.bad(
                key,
                &bytes.to_string(),
                format!(
                    "\"off\", or no less than `logs.max_bytes_per_attempt`, which is {one_job}: a job that writes as much \
                     would be forgotten as soon as it has closed; change one of the two"
                ),
            )),
            Some(_) | None => Ok(limit),
        }
    }

    /// Days too, which are no unit of a duration: those of the clock's changes have fewer or more hours.
    fn age(&self, key: &'static str) -> Result<Option<Duration>, SettingsError> {
        let text = self.text(key)?;
        let days = text.strip_suffix('d').and_then(|days| days.trim().parse::<u32>().ok());
        let age = match (text.as_str(), days) {
            ("off", _) => return Ok(None),
            (_, Some(days)) => parse_duration(&format!("{}h", u64::from(days) * 24)),
            (text, None) => parse_duration(text),
        };
        match age {
            Some(age) => Ok((!age.is_zero()).then_some(age)),
            None => Err(self.bad(key, &text, r#""off", or a duration such as "30d", "12h" or "90m""#)),
        }
    }

    fn duration(&self, key: &'static str) -> Result<Duration, SettingsError> {
        let text = self.text(key)?;
        parse_duration(&text)
            .ok_or_else(|| self.bad(key, &text, r#"a duration such as "30s", "5m" or "1h30m""#))
    }

    fn flag(&self, key: &'static str) -> Result<bool, SettingsError> {
        let text = self.text(key)?;
        text.parse().map_err(|_| self.bad(key, &text, "true or false"))
    }

    /// What is to be logged.
    fn filter(&self, key: &'static str) -> Result<String, SettingsError> {
        const LEVELS: &str =
            r#"error, warn, info, debug, trace, off, or by module such as "info,hyper=debug""#;
        let text = self.text(key)?;
        // A word alone would be a module's name, and nothing at all would be logged.
        if text.bytes().all(|byte| byte.is_ascii_alphabetic()) && text.parse::<LevelFilter>().is_err() {
            return Err(self.bad(key, &text, LEVELS));
        }
        match EnvFilter::builder().parse(&text) {
            Ok(_) => Ok(text),
            Err(error) => Err(self.bad(key, &text, format!("{LEVELS} ({error})"))),
        }
    }

    fn word<T: Copy>(&self, key: &'static str, words: &[(&str, T)]) -> Result<T, SettingsError> {
        let text = self.text(key)?;
        let known = words.iter().find(|(word, _)| *word == text);
        known.map(|(_, value)| *value).ok_or_else(|| {
            let words: Vec<_> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
            self.bad(key, &text, format!("one of {}", words.join(", ")))
        })
    }
}

enum QueueSetting {
    MaxRunning,
    Paused,
}

/// The name of the queue in `queues.NAME.paused`, and which setting it is.
fn queue_setting(key: &str) -> Option<(&str, QueueSetting)> {
    let (name, setting) = key.strip_prefix("queues.")?.rsplit_once('.')?;
    match setting {
        "max_running" => Some((name, QueueSetting::MaxRunning)),
        "paused" => Some((name, QueueSetting::Paused)),
        _ => None,
    }
}

/// A duration such as `30s`, `5m`, `1h30m` or a number of seconds; `None` for anything else, and for more than
/// ten years.
pub fn parse_duration(text: &str) -> Option<Duration> {
    const MAX: Duration = Duration::from_secs(10 * 366 * 86_400);
    let text = text.trim();
    let duration = match text.parse::<f64>() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).ok()?,
        Err(_) => Duration::try_from(text.parse::<jiff::SignedDuration>().ok()?).ok()?,
    };
    (duration <= MAX).then_some(duration)
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const FORMS: &str = r#""unix:PATH", "127.0.0.1:PORT" or "[::1]:PORT""#;
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() { Err(FORMS.into()) } else { Ok(Self::Unix(path.into())) };
        }
        let address: SocketAddr =
            text.replace("localhost:", "127.0.0.1:").parse().map_err(|_| FORMS.to_owned())?;
        if address.ip().is_loopback() {
            Ok(Self::Tcp(address))
        } else {
            Err(format!("{FORMS}: whoever can submit a job can execute code, and there is no TLS yet"))
        }
    }
}

fn parse(origin: &str, text: &str) -> Result<Map<String, Value>, SettingsError> {
    let refused = |error: config::ConfigError| SettingsError::File {
        path: origin.to_owned(),
        reason: error.to_string().trim().replace('\n', "; "),
    };
    let parsed =
        Config::builder().add_source(File::from_str(text, FileFormat::Toml)).build().map_err(refused)?;
    let mut flat = Map::new();
    flatten("", parsed.collect().map_err(refused)?, &mut flat);
    Ok(flat)
}

fn environment() -> Map<String, Value> {
    let source = Environment::with_prefix(PREFIX).prefix_separator("__").separator("__");
    let mut flat = Map::new();
    // It only fails for a variable that is not Unicode, and such a one is none of ours.
    flatten("", source.collect().unwrap_or_default(), &mut flat);
    flat
}

fn command_line(flags: &Flags) -> Map<String, Value> {
    let mut values = Map::new();
    if let Some(path) = &flags.state_dir {
        values.insert("state_dir".into(), Value::new(None, path.display().to_string()));
    }
    if !flags.listen.is_empty() {
        values.insert("listen".into(), Value::new(None, flags.listen.clone()));
    }
    values
}

fn flatten(prefix: &str, values: Map<String, Value>, flat: &mut Map<String, Value>) {
    for (key, value) in values {
        let key = format!("{prefix}{key}");
        match value.kind {
            ValueKind::Table(table) => flatten(&format!("{key}."), table, flat),
            _ => drop(flat.insert(key, value)),
        }
    }
}

fn unknown(origin: &str, key: &str, known: &[String]) -> SettingsError {
    let elsewhere = known.iter().find(|known| known.rsplit('.').next() == key.rsplit('.').next());
    let meant =
        elsewhere.map(String::as_str).or_else(|| text::closest(known.iter().map(String::as_str), key));
    let hint = meant.map_or_else(String::new, |known| format!("; did you mean `{known}`?"));
    SettingsError::Unknown { origin: origin.to_owned(), key: key.to_owned(), hint }
}

fn config_file(flags: &Flags) -> Option<PathBuf> {
    if flags.config.is_some() {
        return flags.config.clone();
    }
    let system = Path::new("/etc/runward/runward.toml");
    let own = || Some(home("XDG_CONFIG_HOME", ".config")?.join("runward/runward.toml"));
    let path = if nix::unistd::geteuid().is_root() { system.to_owned() } else { own()? };
    path.exists().then_some(path)
}

fn default_state_dir() -> Result<PathBuf, SettingsError> {
    if let Some(path) = env::var_os("STATE_DIRECTORY").filter(|path| !path.is_empty()) {
        return Ok(path.into());
    }
    if nix::unistd::geteuid().is_root() {
        return Ok("/var/lib/runward".into());
    }
    Ok(home("XDG_STATE_HOME", ".local/state").ok_or(SettingsError::NoStateDir)?.join("runward"))
}

fn home(variable: &str, below_home: &str) -> Option<PathBuf> {
    let set = |name| env::var_os(name).filter(|path| !path.is_empty()).map(PathBuf::from);
    set(variable).or_else(|| Some(set("HOME")?.join(below_home)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(text: &str) -> Result<Settings, SettingsError> {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), text).expect("written");
        load(&Flags { config: Some(file.path().into()), state_dir: Some("/x".into()), ..Flags::default() })
    }

    #[test]
    fn every_default_stands_commented_in_the_file_and_loads() {
        let settings = with("").expect("the defaults load");
        assert_eq!(settings.cancel_grace, Duration::from_secs(30));
        assert_eq!(settings.drain_timeout, Duration::from_secs(300));
        assert_eq!(settings.shutdown_timeout, Duration::from_secs(300));
        assert_eq!(settings.max_body_bytes, 1 << 20);
        assert_eq!(
            settings.listen,
            [Listen::Unix("api.sock".into()), Listen::Tcp("127.0.0.1:7711".parse().expect("an address"))]
        );
    }

    #[test]
    fn an_unknown_key_is_refused_by_name_and_with_its_file() {
        let error = with("[jobs]\nmax_runing = 3\n").expect_err("refused").to_string();
        assert!(
            error.contains("`jobs.max_runing`") && error.contains("did you mean `jobs.max_running`"),
            "{error}"
        );
        assert!(error.starts_with('/'), "it names the file: {error}");
    }

    #[test]
    fn a_bad_value_is_refused_with_what_would_do() {
        for (text, expected) in [
            ("[jobs]\ncancel_grace = \"soon\"", "a duration such as"),
            ("[jobs]\nmax_running = 0", "a whole number from 1"),
            ("[process]\nmin_containment = \"vm\"", "one of \"subreaper\", \"cgroup2\""),
            ("listen = [\"0.0.0.0:80\"]", "there is no TLS yet"),
            ("listen = [1]", "a list of texts"),
            ("[telemetry]\nfilter = \"loud\"", "error, warn, info"),
            ("[telemetry]\nfilter = \"runward=loud\"", "error, warn, info"),
            ("[retention]\nmax_age = \"a month\"", "such as \"30d\""),
            ("[retention]\nmax_age = \"40000000d\"", "such as \"30d\""),
            ("[retention]\nmax_records = -1", "\"off\", or a whole number from 1"),
            (
                "[retention]\nmax_log_bytes = 67108863",
                "no less than `logs.max_bytes_per_attempt`, which is 67108864",
            ),
            ("[logs]\nmax_bytes_per_attempt = 20000000000", "no less than `logs.max_bytes_per_attempt`"),
            ("[logs]\nsegment_bytes = 65535", "a whole number from 65536"),
            ("[retention]\nmax_log_bytes = \"10GiB\"", "\"off\", or a whole number from 1"),
        ] {
            let error = with(text).expect_err(text).to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn retention_is_on_and_each_part_can_be_off() {
        let days = |days: u64| Some(Duration::from_secs(days * 86_400));
        let retention = |text: &str| with(&format!("[retention]\n{text}")).expect(text).retention;
        let default = retention("");
        assert_eq!(
            default,
            Retention { max_age: days(30), max_records: Some(100_000), max_log_bytes: Some(10 << 30) }
        );
        assert_eq!(retention("max_age = \"7d\"").max_age, days(7));
        assert_eq!(retention("max_age = \"36h\"").max_age, Some(Duration::from_secs(36 * 3600)));
        for off in ["max_age = \"off\"", "max_age = 0", "max_age = \"0d\""] {
            assert_eq!(retention(off).max_age, None, "{off}");
        }
        for off in ["\"off\"", "0"] {
            let text = format!("max_records = {off}\nmax_log_bytes = {off}");
            assert_eq!(retention(&text), Retention { max_records: None, max_log_bytes: None, ..default });
        }
    }

    #[test]
    fn durations_are_texts_or_seconds() {
        assert_eq!(parse_duration("1h30m"), Some(Duration::from_secs(5400)));
        assert_eq!(parse_duration("2.5"), Some(Duration::from_millis(2500)));
        assert_eq!(parse_duration("300ms"), Some(Duration::from_millis(300)));
        for bad in ["", "-1s", "-1", "NaN", "inf", "1e300", "five", "99999999h"] {
            assert_eq!(parse_duration(bad), None, "{bad}");
        }
    }
}
