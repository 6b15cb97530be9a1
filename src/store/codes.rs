//! How values look in a table: the numbers that every SQL store writes, in one place and free of any driver.
//!
//! A code is for ever: it is in databases. Statements and partial indexes spell some of them out.

use crate::model::{EventKind, Expiry, Job, Status, Timestamp, log::LogKind};

/// A value with a code.
pub(super) trait Coded: Sized + Copy + PartialEq + 'static {
    /// All values there are, each with its code.
    const CODES: &'static [(Self, i32)];
}

impl Coded for Status {
    const CODES: &'static [(Status, i32)] = &[
        (Status::Pending, 0),
        (Status::Running, 1),
        (Status::Completed, 2),
        (Status::Failed, 3),
        (Status::Canceled, 4),
        (Status::Expired, 5),
    ];
}

impl Coded for EventKind {
    const CODES: &'static [(EventKind, i32)] = &[
        (EventKind::Created, 0),
        (EventKind::Queued, 1),
        (EventKind::Scheduled, 2),
        (EventKind::Claimed, 3),
        (EventKind::Running, 4),
        (EventKind::Completed, 5),
        (EventKind::Failed, 6),
        (EventKind::Retry, 7),
        (EventKind::Canceled, 8),
        (EventKind::Expired, 9),
        (EventKind::Released, 10),
    ];
}

impl Coded for LogKind {
    const CODES: &'static [(LogKind, i32)] =
        &[(LogKind::Debug, 0), (LogKind::Info, 1), (LogKind::Warn, 2), (LogKind::Error, 3)];
}

/// The code of a value; -1, which no row has, for one that the table of codes forgets.
pub(super) fn code<T: Coded>(value: T) -> i32 {
    T::CODES.iter().find(|(known, _)| *known == value).map_or(-1, |(_, code)| *code)
}

/// The value of a code; none for a code that no version of the service writes.
pub(super) fn decoded<T: Coded>(code: i32) -> Option<T> {
    T::CODES.iter().find(|(_, known)| *known == code).map(|(value, _)| *value)
}

/// An expiry's two columns: its kind, and the seconds or the time that go with it.
pub(super) fn expiry_code(expiry: Expiry) -> (i32, Option<i64>) {
    match expiry {
        Expiry::Default => (0, None),
        Expiry::In(seconds) => (1, Some(i64::from(seconds))),
        Expiry::At(at) => (2, Some(at.0)),
    }
}

/// The expiry of two columns; none where they do not fit together.
pub(super) fn expiry_of(kind: i32, value: Option<i64>) -> Option<Expiry> {
    match (kind, value) {
        (0, None) => Some(Expiry::Default),
        (1, Some(seconds)) => Some(Expiry::In(u32::try_from(seconds).ok()?)),
        (2, Some(micros)) => Some(Expiry::At(Timestamp(micros))),
        _ => None,
    }
}

/// When an execution must be over; a broadcast job executes nothing itself.
pub(super) fn overrun_at(job: &Job) -> Option<i64> {
    job.overrun_at().filter(|_| !job.broadcast).map(|at| at.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_has_its_own_code() {
        for status in Status::ALL {
            assert_eq!(decoded(code(status)), Some(status));
        }
        assert_eq!(decoded::<Status>(6), None);
    }

    #[test]
    fn an_expiry_survives_its_columns() {
        for expiry in [Expiry::Default, Expiry::In(u32::MAX), Expiry::At(Timestamp::MAX)] {
            let (kind, value) = expiry_code(expiry);
            assert_eq!(expiry_of(kind, value), Some(expiry));
        }
        assert_eq!(expiry_of(0, Some(1)), None);
        assert_eq!(expiry_of(1, Some(-1)), None);
        assert_eq!(expiry_of(3, None), None);
    }
}
