//! How many jobs there are: sums of kept counts, so that health and stats answer at once however many jobs there are.
//!
//! The count of a channel's unfinished jobs and of its ends is kept. Only two things are counted: running jobs, of which there
//! are no more than all runners can hold, and those that wait for their time. What is neither is ready.

use std::collections::BTreeMap;

use super::{
    connections::{Connections, Kind},
    row::Fields,
};
use crate::{
    model::Timestamp,
    store::{StoreError, Tally},
};

pub(super) async fn tally(readers: &Connections, now: Timestamp) -> Result<Tally, StoreError> {
    // One statement sees one moment. Parts of broadcast jobs are in no count.
    let query = sqlx::query(
        "-- name tally
        SELECT channel, sum(live)::bigint AS live, sum(scheduled)::bigint AS scheduled, sum(running)::bigint AS running,
            sum(completed)::bigint AS completed, sum(failed)::bigint AS failed, sum(canceled)::bigint AS canceled,
            sum(expired)::bigint AS expired
        FROM (
            SELECT channel, live, 0 AS scheduled, 0 AS running, completed, failed, canceled, expired FROM errand.tallies
            UNION ALL
            SELECT channel, 0, count(*), 0, 0, 0, 0, 0 FROM errand.jobs
            WHERE status = 0 AND ready_at > $1 AND parent_id IS NULL GROUP BY channel
            UNION ALL
            SELECT channel, 0, 0, count(*), 0, 0, 0, 0 FROM errand.jobs
            WHERE status = 1 AND parent_id IS NULL GROUP BY channel
        ) AS counts
        GROUP BY channel",
    );
    let mut transaction = readers.begin(Kind::Read).await?;
    let rows = transaction.rows(query.bind(now.0)).await?;
    let query = sqlx::query(
        "-- name oldest_ended
        SELECT id, created FROM errand.finished WHERE parent_id IS NULL ORDER BY id LIMIT 1",
    );
    let oldest = transaction.rows(query).await?;
    transaction.commit().await?;
    let mut tally = Tally { channels: BTreeMap::new(), ..Tally::default() };
    if let Some(row) = oldest.first() {
        tally.oldest_ended = Some(Fields::new("errand.finished", "id", row).time("created")?);
    }
    for row in &rows {
        let row = Fields::new("errand.tallies", "channel", row);
        tally.completed += row.count("completed")?;
        tally.failed += row.count("failed")?;
        tally.canceled += row.count("canceled")?;
        tally.expired += row.count("expired")?;
        let (live, scheduled, running) = (row.count("live")?, row.count("scheduled")?, row.count("running")?);
        if live > 0 {
            let counts = tally.channels.entry(row.text("channel")?).or_default();
            counts.scheduled = scheduled;
            counts.running = running;
            counts.ready = live.checked_sub(scheduled + running).ok_or_else(|| row.corrupt("live"))?;
        }
    }
    Ok(tally)
}
