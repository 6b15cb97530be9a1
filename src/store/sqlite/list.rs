//! Lists with filters: which buckets may have matches, and where in them.
//!
//! The matches of a list lie in some sources, in each of them in order of id: buckets, what shares one bucket, and the
//! running jobs where a list tells these from the pending ones. A page is cut from all of them, beginning with those that
//! reach furthest in its direction, so it seldom needs many. A count adds up what the buckets know.

use std::collections::HashMap;

use rusqlite::Connection;

use super::{
    buckets::{self, SHARED},
    filter::{Select, push_codes, push_filters, push_times, push_traits},
    read::{self, rows},
    row::{self, Fields, JOB_COLUMNS},
};
use crate::{
    model::{Job, JobId, Status},
    store::{COUNTED_MAX, ListQuery, OrderBy, Page, StoreError, Total, codes::code},
};

pub(super) fn list(connection: &Connection, query: &ListQuery) -> Result<Page, StoreError> {
    // One transaction, so that the page and the count are of one moment.
    let transaction = connection.unchecked_transaction().map_err(super::unavailable)?;
    let column = order_column(query.order);
    if query.parent_id.is_some() {
        let total = if query.count { Some(count_parts(&transaction, query)?) } else { None };
        return Ok(Page { jobs: page_of_all(&transaction, query, column)?, total });
    }
    let sources = sources(&transaction, query)?;
    let total = if query.count || column.is_some() { Some(total(&transaction, &sources)?) } else { None };
    let jobs = match (column, total) {
        (None, _) => page_by_id(&transaction, query, sources)?,
        (Some(column), Some(total)) if total.jobs <= COUNTED_MAX && !total.is_estimate => {
            page_of_few(&transaction, query, &sources, column)?
        }
        (Some(_), _) => page_of_all(&transaction, query, column)?,
    };
    Ok(Page { jobs, total: total.filter(|_| query.count) })
}

/// The column to sort by before the id; none where the id says it all.
fn order_column(order: OrderBy) -> Option<&'static str> {
    match order {
        OrderBy::Created => None,
        OrderBy::Modified => Some("modified"),
        OrderBy::StartedAt => Some("started_at"),
        OrderBy::FinishedAt => Some("finished_at"),
        OrderBy::RunAt => Some("run_at"),
    }
}

/// Some jobs that a list may want, in order of id.
struct Source<'q> {
    query: &'q ListQuery,
    place: Place,
    /// Where matches may lie.
    window: Window,
    /// How many matches there are, where that is kept.
    kept: Option<u64>,
}

#[derive(Clone, Copy)]
enum Place {
    /// One in which all jobs match, but for running ones where only pending ones are wanted, and for what lies at the edge of
    /// the times.
    Bucket { id: i64, without_running: bool, is_partly_in_time: bool },
    /// The one that all kinds of jobs share. Running ones are left out where they are a source of their own.
    Shared { without_running: bool },
    /// All running jobs.
    Running,
}

/// The first and the last id that a filter leaves.
#[derive(Clone, Copy)]
struct Window(JobId, JobId);

impl Window {
    const ALL: Window = Window(JobId(uuid::Uuid::nil()), JobId(uuid::Uuid::max()));

    fn and(self, other: Window) -> Window {
        Window(self.0.max(other.0), self.1.min(other.1))
    }

    fn holds(self, other: Window) -> bool {
        self.0 <= other.0 && other.1 <= self.1
    }

    fn is_empty(self) -> bool {
        self.0 > self.1
    }
}

fn sources<'q>(connection: &Connection, query: &'q ListQuery) -> Result<Vec<Source<'q>>, StoreError> {
    // Ids tell the times to the millisecond. What lies in `surely` need not be compared with them.
    let (from, to) = (query.created_from, query.created_to);
    let maybe = Window(
        from.map_or(Window::ALL.0, JobId::first_made_at),
        to.map_or(Window::ALL.1, |to| JobId::first_made_behind(to).previous()),
    );
    let surely = Window(
        from.map_or(Window::ALL.0, JobId::first_made_behind),
        to.map_or(Window::ALL.1, |to| JobId::first_made_at(to).previous()),
    );
    let (wants_pending, wants_running) = (query.wants(Status::Pending), query.wants(Status::Running));
    // Pending jobs are with no runner, and a bucket of unfinished jobs does not tell running ones.
    let has_running = wants_running && (query.runner_id.is_some() || !wants_pending);
    let running = if wants_pending && !wants_running { running_by_bucket(connection)? } else { HashMap::new() };
    let of_place = |place| Source { query, place, window: maybe, kept: None };

    let mut select = Select::new("-- name buckets\nSELECT id, func, status, jobs, oldest, newest".to_owned());
    push_bucket_filters(&mut select, query);
    let mut sources = rows(connection, &select.text, select.parameters(), |row| {
        let row = Fields::of("buckets", row);
        let (bucket, func, status): (i64, String, i32) = (row.take()?, row.take()?, row.take()?);
        let (jobs, all) = (row.count()?, Window(row.id()?, row.id()?));
        let found = query.search.as_ref().filter(|search| !func.starts_with(search.as_str()));
        let named = match found {
            None => Some(Window::ALL),
            Some(search) => JobId::range_with_prefix(search).map(|(first, last)| Window(first, last)),
        };
        let window = named.map(|named| maybe.and(named).and(all)).filter(|window| !window.is_empty());
        let Some(window) = window else { return Ok(None) };
        let is_partly_in_time = !surely.holds(window);
        let pending = if status == 0 { jobs.saturating_sub(running.get(&bucket).copied().unwrap_or(0)) } else { jobs };
        let kept = (window.holds(all) && !is_partly_in_time).then_some(pending);
        let without_running = status == 0 && !wants_running;
        let place = Place::Bucket { id: bucket, without_running, is_partly_in_time };
        Ok(Some(Source { query, place, window, kept }))
    })?;
    if has_running {
        sources.push(Some(of_place(Place::Running)));
    }
    if buckets::shared_jobs(connection)? > 0 {
        sources.push(Some(of_place(Place::Shared { without_running: has_running })));
    }
    Ok(sources.into_iter().flatten().collect())
}

fn push_bucket_filters<'q>(select: &mut Select<'q>, query: &'q ListQuery) {
    select.push(" FROM buckets WHERE jobs > 0 AND id <> ").bind(SHARED);
    push_traits(select, query);
    if let Some(runner_id) = &query.runner_id {
        select.push(" AND status > 0 AND runner_id = ").bind(runner_id);
    }
    if !query.statuses.is_empty() {
        let has_unfinished = query.wants(Status::Pending);
        let ends = query.statuses.iter().filter(|status| status.is_terminal()).map(|status| code(*status));
        push_codes(select.push(" AND status"), ends.chain(has_unfinished.then_some(0)));
    }
}

/// How many jobs of each bucket run. Those are few.
fn running_by_bucket(connection: &Connection) -> Result<HashMap<i64, u64>, StoreError> {
    let select = "-- name running_by_bucket
        SELECT bucket, COUNT(*) FROM jobs INDEXED BY jobs_live
        WHERE status < 2 AND status = 1 AND bucket IS NOT NULL GROUP BY bucket";
    let counts = rows(connection, select, [], |row| {
        let row = Fields::of("jobs", row);
        Ok((row.take()?, row.count()?))
    })?;
    Ok(counts.into_iter().collect())
}

impl<'q> Source<'q> {
    /// Selects `columns` of its matches in a window that is within its own.
    fn select(&self, columns: &str, Window(first, last): Window) -> Select<'q> {
        let mut select = Select::new(format!("-- name list\nSELECT {columns} FROM jobs "));
        match self.place {
            Place::Bucket { id, without_running, is_partly_in_time } => {
                select.push("INDEXED BY jobs_bucket WHERE bucket = ").bind(id);
                if without_running {
                    select.push(" AND status = 0");
                }
                if is_partly_in_time {
                    push_times(&mut select, self.query);
                }
            }
            Place::Shared { without_running } => {
                select.push("INDEXED BY jobs_bucket WHERE bucket = ").bind(SHARED).push(" AND ");
                push_filters(&mut select, self.query);
                if without_running {
                    select.push(" AND status <> 1");
                }
            }
            Place::Running => {
                select.push("INDEXED BY jobs_live WHERE status < 2 AND status = 1 AND ");
                push_filters(&mut select, self.query);
            }
        }
        select.push(" AND id BETWEEN ").bind(*first.as_bytes()).push(" AND ").bind(*last.as_bytes());
        select
    }

    fn ids(&self, connection: &Connection, window: Window, limit: u64) -> Result<Vec<JobId>, StoreError> {
        let mut select = self.select("id", window);
        let direction = if self.query.descending { " DESC" } else { "" };
        select.push(format_args!(" ORDER BY id{direction} LIMIT ")).bind(i64::try_from(limit).unwrap_or(i64::MAX));
        rows(connection, &select.text, select.parameters(), |row| Fields::of("jobs", row).id())
    }
}

/// What a page goes on with.
fn before(query: &ListQuery) -> Window {
    Window(Window::ALL.0, query.before.map_or(Window::ALL.1, |before| before.previous()))
}

/// What a page needs of each source, as long as a source may have something that belongs before what is found.
fn page_by_id(
    connection: &Connection,
    query: &ListQuery,
    mut sources: Vec<Source<'_>>,
) -> Result<Vec<Job>, StoreError> {
    let wanted = u64::from(query.offset) + u64::from(query.limit);
    let page_end = usize::try_from(wanted).unwrap_or(usize::MAX);
    let mut window = before(query);
    if query.descending {
        sources.sort_unstable_by_key(|source| std::cmp::Reverse(source.window.1));
    } else {
        sources.sort_unstable_by_key(|source| source.window.0);
    }
    let mut found: Vec<JobId> = Vec::new();
    for source in &sources {
        let window_here = window.and(source.window);
        if window_here.is_empty() {
            continue;
        }
        let more = source.ids(connection, window_here, wanted)?;
        if more.is_empty() {
            continue;
        }
        found.extend(more);
        found.sort_unstable();
        if query.descending {
            found.reverse();
        }
        found.truncate(page_end);
        if let Some(furthest) = found.last().filter(|_| found.len() == page_end) {
            window = if query.descending { Window(*furthest, window.1) } else { Window(window.0, *furthest) };
        }
    }
    jobs(connection, found.get(query.offset as usize..).unwrap_or_default())
}

/// Sorts all matches, by what is sorted by alone.
fn page_of_few(
    connection: &Connection,
    query: &ListQuery,
    sources: &[Source<'_>],
    column: &str,
) -> Result<Vec<Job>, StoreError> {
    let mut found: Vec<(Option<i64>, JobId)> = Vec::new();
    for source in sources {
        let select = source.select(&format!("id, {column}"), source.window.and(before(query)));
        found.extend(rows(connection, &select.text, select.parameters(), |row| {
            let row = Fields::of("jobs", row);
            let id = row.id()?;
            Ok((row.take()?, id))
        })?);
    }
    found.sort_unstable();
    if query.descending {
        found.reverse();
    }
    let page = found.iter().skip(query.offset as usize).take(query.limit as usize);
    jobs(connection, &page.map(|(_, id)| *id).collect::<Vec<JobId>>())
}

fn jobs(connection: &Connection, ids: &[JobId]) -> Result<Vec<Job>, StoreError> {
    Ok(read::jobs(connection, ids)?.into_iter().flatten().collect())
}

/// Looks at all jobs, or at the parts of one.
fn page_of_all(connection: &Connection, query: &ListQuery, column: Option<&str>) -> Result<Vec<Job>, StoreError> {
    let mut select = Select::new(format!("-- name list_of_all\nSELECT {JOB_COLUMNS} FROM jobs WHERE "));
    push_filters(&mut select, query);
    if let Some(before) = &query.before {
        select.push(" AND id < ").bind(before.as_bytes());
    }
    let direction = if query.descending { " DESC" } else { "" };
    match column {
        Some(column) => select.push(format_args!(" ORDER BY {column}{direction}, id{direction}")),
        None => select.push(format_args!(" ORDER BY id{direction}")),
    };
    select.push(" LIMIT ").bind(query.limit).push(" OFFSET ").bind(query.offset);
    rows(connection, &select.text, select.parameters(), row::job)
}

fn total(connection: &Connection, sources: &[Source<'_>]) -> Result<Total, StoreError> {
    let (mut known, mut counted) = (0, 0);
    for source in sources {
        match source.kept {
            Some(jobs) => known += jobs,
            None if counted > COUNTED_MAX => {}
            None => {
                let select = source.select("1", source.window);
                counted += count(connection, select, COUNTED_MAX + 1 - counted)?;
            }
        }
    }
    Ok(Total::counted(known, counted))
}

fn count_parts(connection: &Connection, query: &ListQuery) -> Result<Total, StoreError> {
    let mut select = Select::new("SELECT 1 FROM jobs WHERE ".to_owned());
    push_filters(&mut select, query);
    Ok(Total::counted(0, count(connection, select, COUNTED_MAX + 1)?))
}

/// How many rows these are, up to `most`.
fn count(connection: &Connection, mut select: Select<'_>, most: u64) -> Result<u64, StoreError> {
    select.push(" LIMIT ").bind(i64::try_from(most).unwrap_or(i64::MAX));
    let text = format!("-- name count\nSELECT COUNT(*) FROM ({})", select.text);
    let counts = rows(connection, &text, select.parameters(), |row| Fields::of("jobs", row).count())?;
    Ok(counts.into_iter().next().unwrap_or(0))
}
