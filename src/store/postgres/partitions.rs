//! Days: the partitions of finished jobs and of logs, by the time in the job's id.
//!
//! They are made some days ahead, so that rows of a day nearly always find it. A day that was missing when its rows came has
//! them in the rest, from where retention removes them one by one; nothing depends on a partition being there.

use chrono::{DateTime, NaiveDate, NaiveTime};
use uuid::Uuid;

use super::{
    connections::{Connections, Failure, Kind},
    row::Fields,
    schema,
};
use crate::model::{JobId, Timestamp};

/// Tables that have a partition for each day.
pub(super) const TABLES: [&str; 2] = ["finished", "logs"];

const DAY_MICROS: i64 = 24 * 3600 * 1_000_000;

/// A day in UTC, counted from 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Day(pub i64);

impl Day {
    pub(super) fn of(at: Timestamp) -> Day {
        Day(at.0.div_euclid(DAY_MICROS))
    }

    /// The day of a partition's name.
    pub(super) fn of_suffix(suffix: &str) -> Option<Day> {
        let date = NaiveDate::parse_from_str(suffix, "%Y%m%d").ok()?;
        Some(Day::of(Timestamp(date.and_time(NaiveTime::MIN).and_utc().timestamp_micros())))
    }

    pub(super) fn plus(self, days: i64) -> Day {
        Day(self.0 + days)
    }

    pub(super) fn start(self) -> Timestamp {
        Timestamp(self.0 * DAY_MICROS)
    }

    /// No id of an earlier time sorts behind this one, and none of a later time before it.
    pub(super) fn first_id(self) -> Uuid {
        JobId::first_made_at(self.start()).0
    }

    /// The end of the partitions' names, such as 20300131.
    pub(super) fn suffix(self) -> String {
        DateTime::from_timestamp_micros(self.start().0).unwrap_or_default().format("%Y%m%d").to_string()
    }
}

/// Makes the partitions of `first..=last` that are missing. Each day is a transaction of its own: one that cannot be had (its
/// rows may be in the rest already) leaves the others.
pub(super) async fn make(connections: &Connections, first: Day, last: Day) -> Result<(), Failure> {
    let mut outcome = Ok(());
    for day in (first.0..=last.0).map(Day) {
        outcome = make_day(connections, day).await.and(outcome);
    }
    outcome
}

async fn make_day(connections: &Connections, day: Day) -> Result<(), Failure> {
    let mut transaction = connections.begin(Kind::Write).await?;
    transaction.script(schema::LOCK).await?;
    let query = sqlx::query(
        "-- name find_day
        SELECT to_regclass('errand.finished_' || $1) IS NOT NULL AS is_there",
    );
    let row = transaction.row(query.bind(day.suffix())).await?;
    if Fields::new("errand.finished", "id", &row).get("is_there")? {
        return transaction.roll_back().await;
    }
    let (from, to, suffix) = (day.first_id(), day.plus(1).first_id(), day.suffix());
    // Attaching locks out nobody but readers and writers of the rest, of which there are next to none. It must not wait long
    // for one of them, for others would queue up behind.
    let mut script = String::from("-- name make_day\nSET LOCAL lock_timeout = 300;");
    for table in TABLES {
        script += &format!(
            "CREATE TABLE errand.{table}_{suffix} (LIKE errand.{table} INCLUDING ALL);
            ALTER TABLE errand.{table} ATTACH PARTITION errand.{table}_{suffix} FOR VALUES FROM ('{from}') TO ('{to}');"
        );
    }
    transaction.assembled(script).await?;
    transaction.commit().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Dice, SystemDice};

    #[test]
    fn an_id_lies_in_the_day_of_its_time() {
        let dice = SystemDice::new();
        let day = Day::of(Timestamp(1_700_000_000_000_000));
        assert_eq!(day.suffix(), "20231114");
        assert_eq!(Day::of_suffix("20231114"), Some(day));
        assert_eq!(Day::of_suffix("rest"), None);
        let last = Timestamp(day.plus(1).start().0 - 1);
        assert!(dice.job_id(day.start()).0 >= day.first_id());
        assert!(dice.job_id(last).0 < day.plus(1).first_id());
        assert_eq!(Day::of(last), day);
        assert_eq!(Day::of(Timestamp(-1)), Day(-1));
    }
}
