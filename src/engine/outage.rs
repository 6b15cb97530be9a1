//! An outage, told so that it does not fill the log: once when it begins, now and then while it lasts, once when it is over.

use std::{error::Error, time::Duration};

use tokio::time::Instant;

/// How often an outage that lasts is told.
const INTERVAL: Duration = Duration::from_secs(30);
/// An outage is over with the first success this long after the last failure: where both take turns, it goes on.
const QUIET: Duration = Duration::from_secs(1);

/// Of one kind of operation, which its name tells in the plural, such as "commits".
pub struct Outage {
    operations: &'static str,
    now: Option<Lasting>,
}

struct Lasting {
    began: Instant,
    told: Instant,
    last_failure: Instant,
    failures: u64,
}

/// What is worth a line in the log.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    Begins,
    Lasts { lasted: Duration, failures: u64 },
    Over { lasted: Duration, failures: u64 },
}

impl Outage {
    pub fn of(operations: &'static str) -> Outage {
        Outage { operations, now: None }
    }

    /// One has failed.
    pub fn failed(&mut self, error: &(dyn Error + 'static)) {
        let operations = self.operations;
        match self.fail(Instant::now()) {
            Some(Line::Lasts { lasted, failures }) => {
                tracing::error!(
                    error,
                    operations,
                    ?lasted,
                    failures,
                    "the database still does not take what it is given"
                );
            }
            Some(_) => tracing::error!(error, operations, "the database does not take what it is given"),
            None => {}
        }
    }

    /// One has succeeded.
    pub fn succeeded(&mut self) {
        if let Some(Line::Over { lasted, failures }) = self.succeed(Instant::now()) {
            tracing::info!(
                operations = self.operations,
                ?lasted,
                failures,
                "the database takes what it is given again"
            );
        }
    }

    fn fail(&mut self, at: Instant) -> Option<Line> {
        let Some(lasting) = &mut self.now else {
            self.now = Some(Lasting { began: at, told: at, last_failure: at, failures: 1 });
            return Some(Line::Begins);
        };
        lasting.failures += 1;
        lasting.last_failure = at;
        if at - lasting.told < INTERVAL {
            return None;
        }
        lasting.told = at;
        Some(Line::Lasts { lasted: at - lasting.began, failures: lasting.failures })
    }

    fn succeed(&mut self, at: Instant) -> Option<Line> {
        let over = self.now.take_if(|lasting| at - lasting.last_failure >= QUIET)?;
        Some(Line::Over { lasted: over.last_failure - over.began, failures: over.failures })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn it_is_told_when_it_begins_and_every_half_minute() {
        let (mut outage, start) = (Outage::of("commits"), Instant::now());
        assert_eq!(outage.fail(start), Some(Line::Begins));
        let told: Vec<(u64, Line)> =
            (1..=70).filter_map(|second| Some((second, outage.fail(start + seconds(second))?))).collect();
        let expected = [(30, 31), (60, 61)];
        assert_eq!(told, expected.map(|(at, failures)| (at, Line::Lasts { lasted: seconds(at), failures })));
    }

    #[test]
    fn its_end_is_told_once_and_the_next_begins_anew() {
        let (mut outage, start) = (Outage::of("commits"), Instant::now());
        outage.fail(start);
        outage.fail(start + seconds(4));
        let over = Line::Over { lasted: seconds(4), failures: 2 };
        assert_eq!(outage.succeed(start + seconds(6)), Some(over));
        assert_eq!(outage.succeed(start + seconds(7)), None);
        assert_eq!(outage.fail(start + seconds(8)), Some(Line::Begins));
    }

    #[test]
    fn successes_in_between_do_not_end_it() {
        let (mut outage, start) = (Outage::of("commits"), Instant::now());
        outage.fail(start);
        for half in 1..20 {
            let at = start + Duration::from_millis(500) * half;
            assert_eq!(if half % 2 == 0 { outage.fail(at) } else { outage.succeed(at) }, None);
        }
    }

    #[test]
    fn nothing_is_told_where_all_is_well() {
        assert_eq!(Outage::of("commits").succeed(Instant::now()), None);
    }
}
