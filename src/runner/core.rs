//! What the blocking and the async Runner have in common: three states, and how each begins.

use std::io;
use std::panic::Location;

use tokio::runtime::{Handle, Runtime, RuntimeFlavor};

use super::builder::Kind;
use super::control::Control;
use super::event_loop::Shared;
use super::sync::Arc;
use super::task::{Cell, Name, Style};
use super::{Builder, CloseReport, Context, EventLoop, RunError};

pub(crate) struct Core {
    pub(crate) settings: Builder,
    pub(crate) control: Arc<Control>,
    pub(crate) state: State,
}

pub(crate) enum State {
    /// Nothing exists yet.
    Created,
    Open(Opened),
    Closed(Box<CloseReport>),
}

pub(crate) struct Opened {
    pub(crate) event_loop: Arc<Shared>,
    pub(crate) context: Context,
    pub(crate) vehicle: Vehicle,
}

/// What drives a loop.
pub(crate) enum Vehicle {
    /// The thread that calls `run`.
    Caller(Box<Runtime>),
    /// A loop thread, while `run` waits. Shared, for that thread may never give it back.
    LoopThread(Arc<Runtime>),
    /// Threads of its own.
    Workers(Box<Runtime>),
    /// Somebody else.
    Shared(Handle),
}

impl Vehicle {
    fn handle(&self) -> &Handle {
        match self {
            Vehicle::Caller(runtime) | Vehicle::Workers(runtime) => runtime.handle(),
            Vehicle::LoopThread(runtime) => runtime.handle(),
            Vehicle::Shared(handle) => handle,
        }
    }
}

impl Core {
    pub(crate) fn new(settings: Builder) -> Self {
        Core { settings, control: Arc::new(Control::default()), state: State::Created }
    }

    /// The first use builds loop and context; a failure leaves the Runner as it was.
    pub(crate) fn open(
        &mut self,
        vehicle: impl FnOnce(&mut Builder) -> io::Result<Vehicle>,
    ) -> Result<&Opened, RunError> {
        if matches!(self.state, State::Created) {
            let vehicle = vehicle(&mut self.settings).map_err(RunError::Loop)?;
            let event_loop =
                Shared::new(vehicle.handle().clone(), self.settings.debug_mode(), self.settings.max_blocking);
            let context = self.settings.context.clone().unwrap_or_else(super::copy_context);
            self.state = State::Open(Opened { event_loop, context, vehicle });
        }
        match &self.state {
            State::Open(opened) => Ok(opened),
            State::Created | State::Closed(_) => Err(RunError::Closed),
        }
    }

    /// The main task of a new run.
    pub(crate) fn main(
        &self,
        opened: &Opened,
        context: Option<Context>,
        scoped: bool,
        source: &'static Location<'static>,
    ) -> Arc<Cell> {
        let style = if scoped { Style::Scoped { grace: self.settings.cancel_grace } } else { Style::Plain };
        let context = context.unwrap_or_else(|| opened.context.clone());
        let cell = Cell::new(opened.event_loop.clone(), context, style, source);
        if let Some(name) = &self.settings.name {
            cell.set_name(name.clone());
        }
        cell
    }

    /// Takes the loop out for its close; none when there is nothing to close.
    pub(crate) fn take_open(&mut self) -> Option<Opened> {
        if !matches!(self.state, State::Open(_)) {
            return None;
        }
        match std::mem::replace(&mut self.state, State::Closed(Box::default())) {
            State::Open(opened) => Some(opened),
            State::Created | State::Closed(_) => None,
        }
    }

    /// The report of the close, or of one that never was.
    pub(crate) fn report(&self) -> CloseReport {
        match &self.state {
            State::Closed(report) => CloseReport::clone(report),
            State::Created | State::Open(_) => CloseReport::default(),
        }
    }
}

/// The loop of a blocking Runner.
pub(crate) fn own_loop(settings: &mut Builder) -> io::Result<Vehicle> {
    let single = || tokio::runtime::Builder::new_current_thread().enable_all().build();
    match &mut settings.factory.0 {
        Kind::Default => single().map(|runtime| Vehicle::LoopThread(Arc::new(runtime))),
        Kind::CurrentThread => single().map(Box::new).map(Vehicle::Caller),
        Kind::MultiThread(workers) => tokio::runtime::Builder::new_multi_thread()
            .worker_threads(*workers)
            .thread_name(settings.name.as_ref().map_or_else(|| "runward-loop".into(), Name::to_string))
            .enable_all()
            .build()
            .map(Box::new)
            .map(Vehicle::Workers),
        Kind::Custom(make) => make().map(|runtime| match runtime.handle().runtime_flavor() {
            RuntimeFlavor::CurrentThread => Vehicle::Caller(Box::new(runtime)),
            _ => Vehicle::Workers(Box::new(runtime)),
        }),
        Kind::Shared(handle) => Ok(Vehicle::Shared(handle.clone())),
    }
}

/// The loop of an async Runner.
pub(crate) fn shared_loop(settings: &mut Builder) -> io::Result<Vehicle> {
    match &settings.factory.0 {
        Kind::Default => Handle::try_current().map(Vehicle::Shared).map_err(io::Error::other),
        Kind::Shared(handle) => Ok(Vehicle::Shared(handle.clone())),
        Kind::CurrentThread | Kind::MultiThread(_) | Kind::Custom(_) => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "an AsyncRunner runs on a loop that is shared with others: LoopFactory::shared",
        )),
    }
}

pub(crate) fn event_loop(opened: &Opened) -> EventLoop {
    EventLoop { shared: opened.event_loop.clone() }
}

/// The warning that asyncio gives for a coroutine that was never awaited.
pub(crate) fn never_ran(why: &RunError, source: &Location<'_>) {
    tracing::warn!(%source, "the future of a run was dropped and never ran: {why}");
}
