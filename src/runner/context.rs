//! Context variables: asyncio's `contextvars`.

use std::any::Any;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::current;
use super::sync::{Arc, Mutex, lock};

type Value = Arc<dyn Any + Send + Sync>;
/// Sorted by the variable's id. Contexts hold few variables and are copied far more often than
/// written, so a copy shares the table and the first write after it makes a new one.
type Table = Vec<(usize, Value)>;

/// A set of values of [`ContextVar`]s. A task has one; its children begin with a copy.
///
/// A `Context` is a handle, as in Python: a clone is the same context. For a snapshot that goes its
/// own way there is [`copy`](Context::copy).
///
/// ```
/// use runward::runner::{Context, ContextVar};
///
/// static USER: ContextVar<&str> = ContextVar::new("user");
///
/// let context = Context::new();
/// context.run(|| USER.set("ada"));
/// assert_eq!(context.run(|| USER.get()), Some("ada"));
/// assert_eq!(USER.get(), None);
/// ```
#[derive(Clone, Default)]
pub struct Context {
    table: Arc<Mutex<Option<Arc<Table>>>>,
}

impl Context {
    /// An empty context.
    ///
    /// ```
    /// assert!(runward::runner::Context::new().is_empty());
    /// ```
    pub fn new() -> Self {
        Self::default()
    }

    /// A new context with the same values. Costs the same however many there are.
    ///
    /// ```
    /// # use runward::runner::{Context, ContextVar};
    /// static DEPTH: ContextVar<u32> = ContextVar::new("depth");
    /// let first = Context::new();
    /// first.run(|| DEPTH.set(1));
    /// let second = first.copy();
    /// second.run(|| DEPTH.set(2));
    /// assert_eq!((first.get(&DEPTH), second.get(&DEPTH)), (Some(1), Some(2)));
    /// ```
    pub fn copy(&self) -> Context {
        Context { table: Arc::new(Mutex::new(lock(&self.table).clone())) }
    }

    /// Calls `f` in this context: what it sets stays here. The caller's context is back afterwards,
    /// also when `f` panics.
    ///
    /// ```
    /// # use runward::runner::{Context, ContextVar};
    /// static LANG: ContextVar<&str> = ContextVar::with_default("lang", "en");
    /// let context = Context::new();
    /// context.run(|| LANG.set("eo"));
    /// assert_eq!(LANG.get(), Some("en"));
    /// ```
    pub fn run<R>(&self, f: impl FnOnce() -> R) -> R {
        let _entered = current::enter(None, self.clone());
        f()
    }

    /// The value of `var` here, or its default.
    ///
    /// ```
    /// # use runward::runner::{Context, ContextVar};
    /// static N: ContextVar<u8> = ContextVar::with_default("n", 7);
    /// assert_eq!(Context::new().get(&N), Some(7));
    /// ```
    pub fn get<T: Clone + Send + Sync + 'static>(&self, var: &ContextVar<T>) -> Option<T> {
        self.value(var.id()).and_then(|value| value.downcast_ref().cloned()).or_else(|| var.default.clone())
    }

    /// How many variables have a value here.
    ///
    /// ```
    /// assert_eq!(runward::runner::Context::new().len(), 0);
    /// ```
    pub fn len(&self) -> usize {
        lock(&self.table).as_ref().map_or(0, |table| table.len())
    }

    /// Whether no variable has a value here.
    ///
    /// ```
    /// assert!(runward::runner::Context::new().is_empty());
    /// ```
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn value(&self, id: usize) -> Option<Value> {
        let table = lock(&self.table);
        let table = table.as_ref()?;
        table.binary_search_by_key(&id, |entry| entry.0).ok().map(|at| table[at].1.clone())
    }

    /// Puts `value` in the place of the one that is given back.
    fn replace(&self, id: usize, value: Option<Value>) -> Option<Value> {
        let mut table = lock(&self.table);
        let table = Arc::make_mut(table.get_or_insert_default());
        match (table.binary_search_by_key(&id, |entry| entry.0), value) {
            (Ok(at), Some(value)) => Some(std::mem::replace(&mut table[at].1, value)),
            (Ok(at), None) => Some(table.remove(at).1),
            (Err(at), Some(value)) => {
                table.insert(at, (id, value));
                None
            }
            (Err(_), None) => None,
        }
    }

    fn is(&self, other: &Context) -> bool {
        Arc::ptr_eq(&self.table, &other.table)
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("len", &self.len()).finish_non_exhaustive()
    }
}

/// A copy of the context of the code that calls this.
///
/// ```
/// use runward::runner::{ContextVar, copy_context};
///
/// static TRACE: ContextVar<u64> = ContextVar::new("trace");
/// TRACE.set(9);
/// let snapshot = copy_context();
/// TRACE.set(10);
/// assert_eq!(snapshot.get(&TRACE), Some(9));
/// ```
pub fn copy_context() -> Context {
    current::with_context(Context::copy)
}

/// A variable whose value belongs to the [`Context`] of the running code. Declare it `static`.
///
/// ```
/// use runward::runner::{Cancelled, ContextVar, Runner};
///
/// static REQUEST: ContextVar<u32> = ContextVar::new("request");
///
/// let mut runner = Runner::new();
/// runner.run(async { REQUEST.set(1) }).unwrap();
/// let child = runner.run_scoped(|scope| async move {
///     let child = scope.spawn(async { REQUEST.set(2); REQUEST.get() }).await.unwrap();
///     Ok::<_, Cancelled>((REQUEST.get(), child))
/// });
/// assert_eq!(child.unwrap().unwrap(), (Some(1), Some(2)));   // the child changed its own copy
/// ```
pub struct ContextVar<T> {
    /// Given out at the first use; 0 until then, so that a variable can be `const`.
    id: AtomicUsize,
    name: &'static str,
    default: Option<T>,
}

impl<T: Clone + Send + Sync + 'static> ContextVar<T> {
    /// A variable without a default.
    ///
    /// ```
    /// # use runward::runner::ContextVar;
    /// static V: ContextVar<String> = ContextVar::new("v");
    /// assert_eq!(V.get(), None);
    /// ```
    pub const fn new(name: &'static str) -> Self {
        ContextVar { id: AtomicUsize::new(0), name, default: None }
    }

    /// A variable that has `default` where it was never set.
    ///
    /// ```
    /// # use runward::runner::ContextVar;
    /// static V: ContextVar<i32> = ContextVar::with_default("v", -1);
    /// assert_eq!(V.get(), Some(-1));
    /// ```
    pub const fn with_default(name: &'static str, default: T) -> Self {
        ContextVar { id: AtomicUsize::new(0), name, default: Some(default) }
    }

    /// The name it was declared with.
    ///
    /// ```
    /// # use runward::runner::ContextVar;
    /// static V: ContextVar<i32> = ContextVar::new("v");
    /// assert_eq!(V.name(), "v");
    /// ```
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The value in the current context, or the default.
    ///
    /// ```
    /// # use runward::runner::ContextVar;
    /// static V: ContextVar<i32> = ContextVar::new("v");
    /// V.set(3);
    /// assert_eq!(V.get(), Some(3));
    /// ```
    pub fn get(&self) -> Option<T> {
        current::with_context(|context| context.get(self))
    }

    /// Sets the value in the current context. The token can put the old state back.
    ///
    /// ```
    /// # use runward::runner::ContextVar;
    /// static V: ContextVar<i32> = ContextVar::new("v");
    /// let token = V.set(1);
    /// assert_eq!(token.old_value(), None);
    /// assert_eq!(V.set(2).old_value(), Some(1));
    /// ```
    pub fn set(&self, value: T) -> Token<T> {
        let id = self.id();
        let (context, old) =
            current::with_context(|context| (context.clone(), context.replace(id, Some(Arc::new(value)))));
        Token { id, context, old, kind: std::marker::PhantomData }
    }

    /// Puts back what was there before the `set` that gave the token: a value, or none.
    ///
    /// # Errors
    ///
    /// A token of another variable or another context changes nothing.
    ///
    /// ```
    /// # use runward::runner::{Context, ContextVar, ResetError};
    /// static V: ContextVar<i32> = ContextVar::with_default("v", 0);
    /// let token = V.set(1);
    /// V.reset(token).unwrap();
    /// assert_eq!(V.get(), Some(0));
    ///
    /// let token = V.set(1);
    /// assert_eq!(Context::new().run(|| V.reset(token)), Err(ResetError::OtherContext));
    /// ```
    pub fn reset(&self, token: Token<T>) -> Result<(), ResetError> {
        if token.id != self.id() {
            return Err(ResetError::OtherVariable);
        }
        current::with_context(|context| {
            if !context.is(&token.context) {
                return Err(ResetError::OtherContext);
            }
            context.replace(token.id, token.old);
            Ok(())
        })
    }

    fn id(&self) -> usize {
        static NEXT: AtomicUsize = AtomicUsize::new(1);
        match self.id.load(Ordering::Acquire) {
            0 => {
                let new = NEXT.fetch_add(1, Ordering::Relaxed);
                self.id
                    .compare_exchange(0, new, Ordering::AcqRel, Ordering::Acquire)
                    .map_or_else(|id| id, |_| new)
            }
            id => id,
        }
    }
}

impl<T> fmt::Debug for ContextVar<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ContextVar").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Remembers what a [`ContextVar::set`] replaced. It can be used once.
///
/// ```
/// # use runward::runner::ContextVar;
/// static V: ContextVar<i32> = ContextVar::new("v");
/// let token = V.set(1);
/// V.reset(token).unwrap();
/// assert_eq!(V.get(), None);
/// ```
pub struct Token<T> {
    id: usize,
    context: Context,
    old: Option<Value>,
    kind: std::marker::PhantomData<fn() -> T>,
}

impl<T: Clone + 'static> Token<T> {
    /// The value before the `set`; none where there was none.
    ///
    /// ```
    /// # use runward::runner::ContextVar;
    /// static V: ContextVar<i32> = ContextVar::new("v");
    /// assert_eq!(V.set(5).old_value(), None);
    /// ```
    pub fn old_value(&self) -> Option<T> {
        self.old.as_ref().and_then(|old| old.downcast_ref().cloned())
    }
}

impl<T> fmt::Debug for Token<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("was_set", &self.old.is_some()).finish_non_exhaustive()
    }
}

/// A [`Token`] that does not fit where it was used.
///
/// ```
/// use runward::runner::{ContextVar, ResetError};
/// static A: ContextVar<i32> = ContextVar::new("a");
/// static B: ContextVar<i32> = ContextVar::new("b");
/// assert_eq!(B.reset(A.set(1)), Err(ResetError::OtherVariable));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ResetError {
    /// It came from another variable.
    #[error("the token was created by a different ContextVar")]
    OtherVariable,
    /// It came from a `set` in another context.
    #[error("the token was created in a different Context")]
    OtherContext,
}
