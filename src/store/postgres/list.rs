//! Reads for people: lists with filters, and log lines.
//!
//! A list is of the unfinished and of the finished jobs. Each of the two gives its first matches in order, and the page is cut
//! from both; where the filter on the status leaves one of them nothing, it is not asked.

use sqlx::{Postgres, QueryBuilder};

use super::{
    columns::job_columns,
    connections::{Connections, Failure, Kind, Transaction},
    row::{self, Fields},
    text::stored,
};
use crate::{
    model::{
        Job, JobId, Status,
        log::{JobLog, LogKind},
    },
    store::{COUNTED_MAX, ListQuery, OrderBy, Page, StoreError, Tally, Total, behind_prefix, codes::code},
};

pub(super) async fn list(readers: &Connections, query: &ListQuery) -> Result<Page, StoreError> {
    // Both statements of one moment, so that the total fits the page.
    let mut transaction = readers.begin(Kind::Survey).await?;
    let jobs = page(&mut transaction, query).await?;
    let total = if query.count { Some(total(&mut transaction, query).await?) } else { None };
    transaction.commit().await?;
    Ok(Page { jobs, total })
}

/// A part of the matches. No match is in two of them, and each is found along an index.
#[derive(Clone, Copy)]
struct Share<'q> {
    query: &'q ListQuery,
    table: &'static str,
    is_terminal: bool,
    find: Find,
}

#[derive(Clone, Copy)]
enum Find {
    /// Whatever the filters leave, what is searched for left out.
    All,
    /// Jobs whose function is searched for.
    Func,
    /// Other jobs, whose id is between these.
    Id(JobId, JobId),
}

/// Which shares may have a match.
fn shares(query: &ListQuery) -> Vec<Share<'_>> {
    let wants =
        |is_terminal| query.statuses.is_empty() || query.statuses.iter().any(|s| s.is_terminal() == is_terminal);
    let finds = match &query.search {
        None => vec![Find::All],
        Some(search) => {
            let by_id = JobId::range_with_prefix(search).map(|(first, last)| Find::Id(first, last));
            [Some(Find::Func), by_id].into_iter().flatten().collect()
        }
    };
    let mut shares = Vec::new();
    for (table, is_terminal) in [("errand.jobs", false), ("errand.finished", true)] {
        if wants(is_terminal) {
            shares.extend(finds.iter().map(|find| Share { query, table, is_terminal, find: *find }));
        }
    }
    shares
}

async fn page(transaction: &mut Transaction, query: &ListQuery) -> Result<Vec<Job>, Failure> {
    let rows_max = i64::from(query.offset) + i64::from(query.limit);
    let order = order(query);
    let mut select = QueryBuilder::<Postgres>::new("-- name list\nSELECT * FROM (");
    for (index, share) in shares(query).into_iter().enumerate() {
        select.push(if index == 0 { "(" } else { " UNION ALL (" });
        select.push(concat!("SELECT ", job_columns!(), " FROM ")).push(share.table);
        push_filters(&mut select, share);
        if let Some(to) = query.created_to {
            // Begins there. The other end is one of an index: what came in by SQL was created later than its id says.
            select.push(" AND id < ").push_bind(JobId::first_made_behind(to).0);
        }
        if let Some(before) = query.before {
            select.push(" AND id < ").push_bind(before.0);
        }
        select.push(&order).push(" LIMIT ").push_bind(rows_max).push(")");
    }
    select.push(") AS matches").push(&order);
    select.push(" LIMIT ").push_bind(i64::from(query.limit)).push(" OFFSET ").push_bind(i64::from(query.offset));
    let rows = transaction.rows(select.build()).await?;
    Ok(rows.iter().map(|row| row::job("errand.jobs or errand.finished", row)).collect::<Result<_, _>>()?)
}

async fn total(transaction: &mut Transaction, query: &ListQuery) -> Result<Total, Failure> {
    let counted = Total::counted(0, count(transaction, query).await?);
    if counted.is_estimate && query.is_plain() { kept(transaction, query).await } else { Ok(counted) }
}

/// The matches, up to some more than are counted.
async fn count(transaction: &mut Transaction, query: &ListQuery) -> Result<u64, Failure> {
    let mut select = QueryBuilder::<Postgres>::new("-- name count\nSELECT 0");
    for share in shares(query) {
        select.push(" + (SELECT count(*) FROM (SELECT FROM ").push(share.table);
        push_filters(&mut select, share);
        if !share.is_terminal {
            // Along an index, which knows where it is empty: of unfinished jobs the table is mostly room for others.
            select.push(" ORDER BY id");
        }
        select.push(format_args!(" LIMIT {}) AS matches)", COUNTED_MAX + 1));
    }
    select.push(" AS jobs");
    let row = transaction.row(select.build()).await?;
    Ok(Fields::new("errand.finished", "id", &row).count("jobs")?)
}

/// What the kept counts say. Of unfinished jobs they do not tell which are running, so those of one kind are counted.
async fn kept(transaction: &mut Transaction, query: &ListQuery) -> Result<Total, Failure> {
    let mut select = QueryBuilder::<Postgres>::new(
        "-- name kept
        SELECT coalesce(sum(live), 0)::bigint AS live, coalesce(sum(completed), 0)::bigint AS completed,
            coalesce(sum(failed), 0)::bigint AS failed, coalesce(sum(canceled), 0)::bigint AS canceled,
            coalesce(sum(expired), 0)::bigint AS expired
        FROM errand.tallies",
    );
    if let Some(channel) = &query.channel {
        select.push(" WHERE channel = ").push_bind(stored(channel).into_owned());
    }
    let row = transaction.row(select.build()).await?;
    let row = Fields::new("errand.tallies", "channel", &row);
    let ended = query.ended_of(&Tally {
        completed: row.count("completed")?,
        failed: row.count("failed")?,
        canceled: row.count("canceled")?,
        expired: row.count("expired")?,
        ..Tally::default()
    });
    if query.wants(Status::Pending) && query.wants(Status::Running) {
        return Ok(Total::exactly(ended + row.count("live")?));
    }
    let unfinished = match query.unfinished() {
        Some(unfinished) => count(transaction, &unfinished).await?,
        None => 0,
    };
    Ok(Total::counted(ended, unfinished))
}

/// By the column asked for, where an absent time is earlier than any, and then by id.
fn order(query: &ListQuery) -> String {
    let column = match query.order {
        OrderBy::Created => None,
        OrderBy::Modified => Some("modified"),
        OrderBy::StartedAt => Some("started_at"),
        OrderBy::FinishedAt => Some("finished_at"),
        OrderBy::RunAt => Some("run_at"),
    };
    let (direction, nulls) = if query.descending { ("DESC", "NULLS LAST") } else { ("ASC", "NULLS FIRST") };
    match column {
        None => format!(" ORDER BY id {direction}"),
        Some(column) => format!(" ORDER BY {column} {direction} {nulls}, id {direction}"),
    }
}

fn push_filters(select: &mut QueryBuilder<Postgres>, Share { query, find, .. }: Share<'_>) {
    match query.parent_id {
        Some(parent_id) => select.push(" WHERE parent_id = ").push_bind(parent_id.0),
        None => select.push(" WHERE parent_id IS NULL"),
    };
    if let Some(owner) = &query.owner {
        select.push(" AND owner = ").push_bind(stored(owner).into_owned());
    }
    if let Some(channel) = &query.channel {
        select.push(" AND channel = ").push_bind(stored(channel).into_owned());
    }
    push_statuses(select, &query.statuses);
    if let Some(func) = &query.func {
        select.push(" AND func = ").push_bind(stored(func).into_owned());
    }
    if let Some(runner_id) = &query.runner_id {
        select.push(" AND runner_id = ").push_bind(stored(runner_id).into_owned());
    }
    if let Some(from) = query.created_from {
        select.push(" AND created >= ").push_bind(from.0);
    }
    if let Some(to) = query.created_to {
        select.push(" AND created < ").push_bind(to.0);
    }
    if let Some(broadcast) = query.broadcast {
        select.push(" AND broadcast = ").push_bind(broadcast);
    }
    if let Some(search) = &query.search {
        match find {
            Find::All => {}
            Find::Func => push_starts_with(select.push(" AND "), search),
            Find::Id(first, last) => {
                select.push(" AND id BETWEEN ").push_bind(first.0).push(" AND ").push_bind(last.0);
                push_starts_with(select.push(" AND NOT "), search);
            }
        }
    }
}

/// Spells the codes out, so that the planner sees which partial index serves them.
fn push_statuses(select: &mut QueryBuilder<Postgres>, statuses: &[Status]) {
    if statuses.is_empty() {
        return;
    }
    select.push(" AND status IN (");
    let mut codes = select.separated(", ");
    for status in statuses {
        codes.push(code(*status));
    }
    select.push(")");
}

/// Says it in a way that an index can serve, whatever characters there are.
fn push_starts_with(select: &mut QueryBuilder<Postgres>, search: &str) {
    select.push("(func >= ").push_bind(stored(search).into_owned());
    if let Some(end) = behind_prefix(&stored(search)) {
        select.push(" AND func < ").push_bind(end);
    }
    select.push(")");
}

pub(super) async fn logs(
    readers: &Connections,
    job_id: JobId,
    kinds: &[LogKind],
    after: u64,
    limit: u32,
) -> Result<Vec<JobLog>, StoreError> {
    let kinds: Vec<i32> = kinds.iter().map(|kind| code(*kind)).collect();
    let query = sqlx::query(
        "-- name logs
        SELECT id, job_id, channel, created, kind, message, meta FROM errand.logs
        WHERE job_id = $1 AND id > $2 AND (cardinality($3) = 0 OR kind = ANY($3)) ORDER BY id LIMIT $4",
    );
    let query = query.bind(job_id.0).bind(i64::try_from(after).unwrap_or(i64::MAX)).bind(kinds).bind(i64::from(limit));
    let mut transaction = readers.begin(Kind::Read).await?;
    let rows = transaction.rows(query).await?;
    transaction.commit().await?;
    rows.iter().map(row::log).collect()
}
