//! How long the control plane waits for anybody, each with its reason.

use std::time::Duration;

/// For the headers of a request, also of the next one on a kept connection: whoever has sent none by then has
/// nothing to ask.
pub(super) const HEADERS: Duration = Duration::from_secs(10);

/// For the body: 1 MiB over a line of 300 kbit/s.
pub(super) const BODY: Duration = Duration::from_secs(30);

/// For answers in flight when the control plane stops: one that is not taken within it is not being taken. Shorter
/// than what the daemon gives its stop, so that the end is an orderly one.
pub(crate) const GOODBYE: Duration = Duration::from_secs(1);

/// After a client has taken nothing of what was written, while others want to hold an answer open: whoever reads at all
/// takes something sooner.
pub(crate) const DEAD: Duration = Duration::from_secs(5);

/// After the system had no descriptor for a new connection: none comes free any sooner by asking for it.
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The longest `?wait=`: proxies and clients give up before it.
pub(super) const MAX_WAIT: Duration = Duration::from_secs(3600);

/// Between the comments that keep an event stream alive through proxies, which often give up after 30 s.
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(15);
