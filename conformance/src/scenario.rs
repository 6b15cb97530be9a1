//! What a scenario is, and how it says what was wrong.

use std::{fmt, future::Future, time::Duration};

use futures::future::BoxFuture;
use tokio::time::{Instant, sleep, timeout};

use crate::kit::Kit;

/// How long a scenario waits for something that should happen soon. Long enough for a busy machine: nothing is
/// judged by it but whether a thing happens at all.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks at something that cannot be waited for.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// One claim about a runner, and how it is put to the test.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    pub name: &'static str,
    /// What a runner does, in a sentence.
    pub claim: &'static str,
    pub play: fn(Kit) -> BoxFuture<'static, Verdict>,
}

/// Nothing, or what was wrong.
pub type Verdict<T = ()> = Result<T, Flaw>;

/// What was wrong, for people. Any error is one, under its own text.
#[derive(Debug)]
pub struct Flaw(pub String);

impl fmt::Display for Flaw {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl<E: std::error::Error> From<E> for Flaw {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

/// Ends the scenario with a flaw unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($why:tt)+) => {
        if !$condition {
            return Err($crate::scenario::Flaw(format!($($why)+)));
        }
    };
}
pub(crate) use ensure;

/// The scenarios of a file, in order: `function: "claim"`.
macro_rules! scenarios {
    ($($name:ident: $claim:literal,)+) => {
        pub const SCENARIOS: &[$crate::scenario::Scenario] = &[$($crate::scenario::Scenario {
            name: stringify!($name),
            claim: $claim,
            play: |kit| Box::pin($name(kit)),
        }),+];
    };
}
pub(crate) use scenarios;

/// Waits for what a future brings, but not for ever.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> Verdict<T> {
    let waited = timeout(PATIENCE, future).await;
    waited.map_err(|_| Flaw(format!("within {} s it did not happen that {what}", PATIENCE.as_secs())))
}

/// Looks again and again until there is something, but not for ever.
pub async fn eventually<T, F, R>(what: &str, mut look: F) -> Verdict<T>
where
    F: FnMut() -> R,
    R: Future<Output = Verdict<Option<T>>>,
{
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await? {
            return Ok(found);
        }
        ensure!(Instant::now() < end, "within {} s it did not happen that {what}", PATIENCE.as_secs());
        sleep(LOOK_EVERY).await;
    }
}
