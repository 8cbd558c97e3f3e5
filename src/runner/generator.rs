//! Asynchronous generators: a body that yields values to whoever asks for the next one, and that is
//! closed with its Runner if it was left half-way.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Poll, ready};

use super::cancel::Standing;
use super::event_loop::{ExceptionContext, Shared};
use super::sync::{Arc, Mutex, lock};
use super::{Cancelled, Context, Panic, ScopeError, current};

type Body<E> = Pin<Box<dyn Future<Output = Result<(), E>> + Send>>;

/// Makes an asynchronous generator. Its body begins when the first value is asked for, and runs in
/// a copy of the context of the code that calls this.
///
/// The body's last value is `Ok(())`, or an error that [`Generator::next`] gives to the consumer.
///
/// ```
/// use runward::runner::{Exit, Runner, generator};
///
/// let squares = Runner::new().run(async {
///     let mut squares = generator(|y| async move {
///         for n in 1..=3 {
///             y.yield_(n * n).await?;
///         }
///         Ok::<_, Exit>(())
///     });
///     let mut all = Vec::new();
///     while let Some(square) = squares.next().await.unwrap() {
///         all.push(square);
///     }
///     all
/// });
/// assert_eq!(squares.unwrap(), [1, 4, 9]);
/// ```
pub fn generator<T, E, B, F>(body: B) -> Generator<T, E>
where
    T: Send + 'static,
    E: ScopeError + Send + 'static,
    B: FnOnce(Yielder<T>) -> F + Send + 'static,
    F: Future<Output = Result<(), E>> + Send + 'static,
{
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let channel = Arc::new(Mutex::new(Channel { value: None, taken: 0, given: 0, closing: Closing::No }));
    let yielder = Yielder { channel: channel.clone() };
    let body: Body<E> = Box::pin(async move { body(yielder).await });
    Generator {
        inner: Arc::new(Inner {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            body: Mutex::new(Some(body)),
            channel,
            context: super::copy_context(),
        }),
        event_loop: None,
    }
}

struct Channel<T> {
    value: Option<T>,
    taken: u64,
    given: u64,
    closing: Closing,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Closing {
    No,
    /// The next `yield_` gives `Err(Closed)`.
    Asked,
    /// It has done so.
    Told,
    /// And the body yielded again all the same.
    Ignored,
}

struct Inner<T, E> {
    id: u64,
    /// Taken out while it is polled; none for good once it has ended.
    body: Mutex<Option<Body<E>>>,
    channel: Arc<Mutex<Channel<T>>>,
    context: Context,
}

/// Why a [`Yielder::yield_`] does not go on. Pass it on with `?`.
///
/// ```
/// use runward::runner::Exit;
/// assert_eq!(Exit::Closed.to_string(), "the generator is closed");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Exit {
    /// The generator is being closed: clean up and return. asyncio's `GeneratorExit`.
    #[error("the generator is closed")]
    Closed,
    /// The task that asks for the next value was cancelled.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

impl ScopeError for Exit {
    fn is_cancelled(&self) -> bool {
        true
    }
}

/// The body's side of a [`generator`].
///
/// ```
/// # use runward::runner::{Exit, Runner, Yielder, generator};
/// async fn count(y: Yielder<u32>) -> Result<(), Exit> {
///     y.yield_(1).await?;
///     y.yield_(2).await
/// }
/// let first = Runner::new().run(async { generator(count).next().await });
/// assert_eq!(first.unwrap(), Ok(Some(1)));
/// ```
pub struct Yielder<T> {
    channel: Arc<Mutex<Channel<T>>>,
}

impl<T> Yielder<T> {
    /// Gives a value to the consumer and waits until the next one is asked for.
    ///
    /// # Errors
    ///
    /// [`Exit::Closed`] once, when the generator is closed meanwhile; awaits of the clean-up work. A
    /// body that yields again after that is dropped, and reported. [`Exit::Cancelled`] when the
    /// scoped task that asks for the next value was cancelled.
    ///
    /// ```
    /// # use runward::runner::{Exit, Runner, generator};
    /// let mut runner = Runner::new();
    /// runner.run(async {
    ///     let mut lines = generator(|y| async move {
    ///         let exit = y.yield_("first").await;
    ///         assert_eq!(exit, Err(Exit::Closed));
    ///         tokio::task::yield_now().await;                 // the clean-up may await
    ///         exit
    ///     });
    ///     assert_eq!(lines.next().await, Ok(Some("first")));
    ///     lines.close().await.unwrap();
    /// }).unwrap();
    /// ```
    pub async fn yield_(&self, value: T) -> Result<(), Exit> {
        let mut value = Some(value);
        let mut ticket = None;
        std::future::poll_fn(|_| {
            let mut channel = lock(&self.channel);
            match channel.closing {
                Closing::No => {}
                Closing::Asked => {
                    channel.closing = Closing::Told;
                    return Poll::Ready(Err(Exit::Closed));
                }
                Closing::Told | Closing::Ignored => {
                    channel.closing = Closing::Ignored;
                    return Poll::Pending;
                }
            }
            match ticket {
                Some(ticket) if channel.taken >= ticket => {
                    drop(channel);
                    let cancelled =
                        current::task().and_then(|task| task.region.deliver(&mut Standing::default()));
                    return Poll::Ready(cancelled.map_or(Ok(()), |cancelled| Err(cancelled.into())));
                }
                Some(_) => {}
                // Another yield of the same body may still stand in the channel.
                None if channel.value.is_some() => {}
                None => {
                    channel.value = value.take();
                    channel.given += 1;
                    ticket = Some(channel.given);
                }
            }
            Poll::Pending
        })
        .await
    }
}

impl<T> fmt::Debug for Yielder<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Yielder").finish_non_exhaustive()
    }
}

impl<T: Send + 'static, E: ScopeError + Send + 'static> Inner<T, E> {
    fn poll_body(&self, cx: &mut std::task::Context<'_>) -> Poll<Option<Result<(), E>>> {
        let Some(mut body) = lock(&self.body).take() else { return Poll::Ready(None) };
        let _entered = current::enter(current::task(), self.context.clone());
        match body.as_mut().poll(cx) {
            Poll::Ready(end) => {
                drop(body);
                Poll::Ready(Some(end))
            }
            Poll::Pending => {
                *lock(&self.body) = Some(body);
                Poll::Pending
            }
        }
    }

    /// Asks a body that has begun to end, and sees it to its end.
    fn poll_close(&self, cx: &mut std::task::Context<'_>) -> Poll<Option<Result<(), E>>> {
        {
            let mut channel = lock(&self.channel);
            if channel.given == 0 {
                drop(channel);
                drop(lock(&self.body).take());
                return Poll::Ready(None);
            }
            if channel.closing == Closing::No {
                channel.closing = Closing::Asked;
                channel.value = None;
            }
        }
        match self.poll_body(cx) {
            // It ignores its close; or it stands at an await of its own, where its consumer gave
            // up, and cannot hear of it. Then it ends as a cancelled future does.
            Poll::Pending if lock(&self.channel).closing != Closing::Told => {
                let _entered = current::enter(current::task(), self.context.clone());
                let body = lock(&self.body).take();
                drop(body);
                Poll::Ready(None)
            }
            polled => polled,
        }
    }
}

/// What a loop knows of the generators that were begun on it and have not ended.
pub(crate) trait Open: Send + Sync {
    fn close(self: Arc<Self>, event_loop: Arc<Shared>) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

impl<T: Send + 'static, E: ScopeError + Send + 'static> Open for Inner<T, E> {
    fn close(self: Arc<Self>, event_loop: Arc<Shared>) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(async move {
            let closed =
                std::future::poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| self.poll_close(cx))) {
                    Ok(polled) => polled.map(Ok),
                    Err(payload) => Poll::Ready(Err(Panic::new(payload))),
                })
                .await;
            let ignored = lock(&self.channel).closing == Closing::Ignored;
            let exception = match closed {
                Ok(Some(Err(error))) if !error.is_cancelled() => error.to_string(),
                Err(panic) => panic.to_string(),
                Ok(_) if ignored => "the generator ignored its close".to_owned(),
                Ok(_) => return,
            };
            event_loop.report(ExceptionContext {
                message: "an error occurred during closing of an asynchronous generator".to_owned(),
                task: None,
                exception,
            });
        })
    }
}

/// The consumer's side of a [`generator`].
///
/// One that is dropped half-way is closed by its loop soon, and at the latest when the Runner closes.
///
/// ```
/// use runward::runner::{Exit, Runner, generator};
/// # use std::sync::{Arc, atomic::{AtomicBool, Ordering}};
///
/// let cleaned = Arc::new(AtomicBool::new(false));
/// let flag = cleaned.clone();
/// let mut runner = Runner::new();
/// let first = runner.run(async move {
///     let mut ticks = generator(move |y| async move {
///         let end = loop {
///             if let Err(exit) = y.yield_("tick").await { break Err(exit) }
///         };
///         tokio::task::yield_now().await;
///         flag.store(true, Ordering::SeqCst);
///         end
///     });
///     ticks.next().await                                   // and is left half-way
/// });
/// assert_eq!(first.unwrap(), Ok::<_, Exit>(Some("tick")));
/// runner.close();
/// assert!(cleaned.load(Ordering::SeqCst));
/// ```
pub struct Generator<T: Send + 'static, E: ScopeError + Send + 'static> {
    inner: Arc<Inner<T, E>>,
    event_loop: Option<Arc<Shared>>,
}

impl<T: Send + 'static, E: ScopeError + Send + 'static> Generator<T, E> {
    /// The next value, or none once the body has ended.
    ///
    /// Cancel safe: giving up leaves the body at the await where it stands; the next call goes on.
    ///
    /// # Errors
    ///
    /// The error that ended the body, once.
    ///
    /// ```
    /// # use runward::runner::{Exit, Runner, generator};
    /// Runner::new().run(async {
    ///     let mut one = generator(|y| async move { y.yield_(1).await });
    ///     assert_eq!(one.next().await, Ok::<_, Exit>(Some(1)));
    ///     assert_eq!(one.next().await, Ok(None));
    /// }).unwrap();
    /// ```
    pub async fn next(&mut self) -> Result<Option<T>, E> {
        if self.event_loop.is_none()
            && let Some(task) = current::task()
        {
            let open: Arc<dyn Open> = self.inner.clone();
            task.event_loop.open_generator(self.inner.id, open);
            self.event_loop = Some(task.event_loop.clone());
        }
        let inner = &self.inner;
        let next = std::future::poll_fn(|cx| {
            if let Poll::Ready(end) = inner.poll_body(cx) {
                return Poll::Ready(end.transpose().map(|_| None));
            }
            let mut channel = lock(&inner.channel);
            match channel.value.take() {
                Some(value) => {
                    channel.taken += 1;
                    Poll::Ready(Ok(Some(value)))
                }
                None => Poll::Pending,
            }
        })
        .await;
        if !matches!(next, Ok(Some(_))) {
            self.forget();
        }
        next
    }

    /// Closes it now: a pending `yield_` gives `Err(Closed)`, the clean-up runs to its end.
    /// asyncio's `aclose()`. A body that has not begun never does; one that stands at an await of
    /// its own, because a call of [`next`](Self::next) was given up, is dropped there.
    ///
    /// # Errors
    ///
    /// An error of the clean-up.
    ///
    /// ```
    /// # use runward::runner::{Exit, Runner, generator};
    /// Runner::new().run(async {
    ///     let mut never = generator(|y| async move { y.yield_(1).await });
    ///     never.close().await.unwrap();
    ///     assert_eq!(never.next().await, Ok::<_, Exit>(None));
    /// }).unwrap();
    /// ```
    pub async fn close(&mut self) -> Result<(), E> {
        let end = std::future::poll_fn(|cx| Poll::Ready(ready!(self.inner.poll_close(cx)))).await;
        self.forget();
        match end {
            Some(Err(error)) if !error.is_cancelled() => Err(error),
            _ => Ok(()),
        }
    }

    fn forget(&mut self) {
        if let Some(event_loop) = &self.event_loop {
            let open = event_loop.forget_generator(self.inner.id);
            drop(open);
        }
    }
}

impl<T: Send + 'static, E: ScopeError + Send + 'static> Drop for Generator<T, E> {
    fn drop(&mut self) {
        let Some(event_loop) = self.event_loop.take() else { return };
        let left_open = event_loop.generator(self.inner.id);
        if let Some(open) = left_open {
            if event_loop.is_closed() {
                return;
            }
            // It stays listed until it is closed: if this task is cancelled first, the loop's own
            // close still finds it.
            let (id, owner) = (self.inner.id, event_loop.clone());
            drop(event_loop.spawn_child(
                async move {
                    open.close(owner.clone()).await;
                    let closed = owner.forget_generator(id);
                    drop(closed);
                },
                std::panic::Location::caller(),
            ));
        }
    }
}

impl<T: Send + 'static, E: ScopeError + Send + 'static> fmt::Debug for Generator<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Generator").finish_non_exhaustive()
    }
}
