//! How a function says that it failed.

use std::{fmt, time::Duration};

use crate::session::Outcome;

/// The failure of one execution. Any error becomes one with `?`, under its own text.
///
/// Deliberately no `std::error::Error` itself: then `?` could not turn every other error into it.
///
/// ```
/// use std::time::Duration;
///
/// use errand_client::Failure;
///
/// fn parse(text: &str) -> Result<u32, Failure> {
///     if text.is_empty() {
///         return Err(Failure::for_good("there is no number"));
///     }
///     if text == "busy" {
///         return Err(Failure::new("the calculator is busy").retry_after(Duration::from_secs(60)));
///     }
///     Ok(text.parse()?)
/// }
/// # assert_eq!(parse("x").unwrap_err().to_string(), "invalid digit found in string");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    error: String,
    stack_trace: String,
    permanent: bool,
    retry_after: Option<Duration>,
}

impl Failure {
    /// A failure that the job's own retry rules decide about.
    pub fn new(error: impl fmt::Display) -> Self {
        Self { error: error.to_string(), stack_trace: String::new(), permanent: false, retry_after: None }
    }

    /// A failure that no retry will mend.
    pub fn for_good(error: impl fmt::Display) -> Self {
        Self { permanent: true, ..Self::new(error) }
    }

    /// When to retry, in place of the job's backoff; the number of retries is the job's all the same.
    #[must_use]
    pub fn retry_after(mut self, delay: Duration) -> Self {
        self.retry_after = Some(delay);
        self
    }

    /// More for whoever looks into it, e.g. a backtrace.
    #[must_use]
    pub fn stack_trace(mut self, trace: impl fmt::Display) -> Self {
        self.stack_trace = trace.to_string();
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.error)
    }
}

impl<E: std::error::Error> From<E> for Failure {
    /// The error's text, and under it as stack trace those of its causes.
    fn from(error: E) -> Self {
        let mut causes = String::new();
        let mut cause = error.source();
        while let Some(error) = cause {
            causes += &format!("caused by: {error}\n");
            cause = error.source();
        }
        Self::new(&error).stack_trace(causes)
    }
}

impl From<Failure> for Outcome {
    fn from(failure: Failure) -> Self {
        let Failure { error, stack_trace, permanent, retry_after } = failure;
        Self::Failed { error, stack_trace, permanent, retry_after }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("the letter was not sent")]
    struct Outer(#[source] std::num::ParseIntError);

    #[test]
    fn an_error_keeps_its_text_and_its_causes() {
        let failure = Failure::from(Outer("x".parse::<u8>().unwrap_err()));
        assert_eq!(failure.to_string(), "the letter was not sent");
        assert_eq!(failure.stack_trace, "caused by: invalid digit found in string\n");
        assert!(!failure.permanent);
    }
}
