//! Reads for people: lists with filters, and log lines.

use std::fmt::Write;

use rusqlite::{Connection, ToSql, params_from_iter};

use super::{
    read::{rows, totals},
    row::{self, Fields, JOB_COLUMNS, LOG_COLUMNS},
};
use crate::{
    model::{
        JobId, Status,
        log::{JobLog, LogKind},
    },
    store::{COUNTED_MAX, ListQuery, OrderBy, Page, StoreError, Total, codes::code},
};

/// A statement that is put together, with its values.
#[derive(Default)]
struct Select<'q> {
    text: String,
    values: Vec<Box<dyn ToSql + 'q>>,
}

impl<'q> Select<'q> {
    fn new(text: String) -> Select<'q> {
        Select { text, values: Vec::new() }
    }

    fn push(&mut self, text: impl std::fmt::Display) -> &mut Select<'q> {
        // Writing to a text cannot fail.
        let _ = write!(self.text, "{text}");
        self
    }

    fn bind(&mut self, value: impl ToSql + 'q) -> &mut Select<'q> {
        self.values.push(Box::new(value));
        self.push("?")
    }

    fn parameters(&self) -> impl rusqlite::Params {
        params_from_iter(self.values.iter().map(|value| &**value))
    }
}

pub(super) fn list(connection: &Connection, query: &ListQuery) -> Result<Page, StoreError> {
    // One transaction, so that the page and the count are of one moment.
    let transaction = connection.unchecked_transaction().map_err(super::unavailable)?;
    let mut select = Select::new(format!("-- name list\nSELECT {JOB_COLUMNS} FROM jobs WHERE "));
    push_filters(&mut select, query);
    if let Some(before) = &query.before {
        select.push(" AND id < ").bind(before.as_bytes());
    }
    let direction = if query.descending { " DESC" } else { "" };
    if let Some(column) = order_column(query.order) {
        select.push(format_args!(" ORDER BY {column}{direction}, id{direction}"));
    } else {
        select.push(format_args!(" ORDER BY id{direction}"));
    }
    select.push(" LIMIT ").bind(query.limit).push(" OFFSET ").bind(query.offset);
    let jobs = rows(&transaction, &select.text, select.parameters(), row::job)?;
    let total = if query.count { Some(total(&transaction, query)?) } else { None };
    Ok(Page { jobs, total })
}

fn total(connection: &Connection, query: &ListQuery) -> Result<Total, StoreError> {
    let counted = Total::counted(0, count(connection, query)?);
    // The ends are counted for all channels together.
    if !counted.is_estimate || !query.is_plain() || query.channel.is_some() {
        return Ok(counted);
    }
    let unfinished = match query.unfinished() {
        Some(unfinished) => count(connection, &unfinished)?,
        None => 0,
    };
    Ok(Total::counted(query.ended_of(&totals(connection)?), unfinished))
}

/// The matches, up to one more than are counted.
fn count(connection: &Connection, query: &ListQuery) -> Result<u64, StoreError> {
    let mut select = Select::new("-- name count\nSELECT COUNT(*) FROM (SELECT 1 FROM jobs WHERE ".to_owned());
    push_filters(&mut select, query);
    select.push(format_args!(" LIMIT {})", COUNTED_MAX + 1));
    let counts = rows(connection, &select.text, select.parameters(), |row| Fields::of("jobs", row).count())?;
    Ok(counts.into_iter().next().unwrap_or(0))
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

fn push_filters<'q>(select: &mut Select<'q>, query: &'q ListQuery) {
    match &query.parent_id {
        Some(parent_id) => select.push("parent_id = ").bind(parent_id.as_bytes()),
        None => select.push("parent_id IS NULL"),
    };
    if let Some(owner) = &query.owner {
        select.push(" AND owner = ").bind(&**owner);
    }
    if let Some(channel) = &query.channel {
        select.push(" AND channel = ").bind(channel);
    }
    push_statuses(select, &query.statuses);
    if let Some(func) = &query.func {
        select.push(" AND func = ").bind(func);
    }
    if let Some(runner_id) = &query.runner_id {
        select.push(" AND runner_id = ").bind(runner_id);
    }
    if let Some(from) = query.created_from {
        select.push(" AND created >= ").bind(from.0);
    }
    if let Some(to) = query.created_to {
        select.push(" AND created < ").bind(to.0);
    }
    if let Some(broadcast) = query.broadcast {
        select.push(" AND broadcast = ").bind(broadcast);
    }
    if let Some(search) = &query.search {
        push_search(select, search);
    }
}

/// Spells the codes out, and repeats the conditions of the indexes that can serve them: SQLite does not work them out
/// itself.
fn push_statuses(select: &mut Select<'_>, statuses: &[Status]) {
    if statuses.is_empty() {
        return;
    }
    if statuses.iter().all(|status| code(*status) > code(Status::Completed)) {
        select.push(" AND status > 2");
    }
    if statuses.iter().all(|status| !status.is_terminal()) {
        select.push(" AND status < 2");
    }
    push_codes(select.push(" AND status"), statuses.iter().map(|status| code(*status)));
}

fn push_codes(select: &mut Select<'_>, codes: impl Iterator<Item = i32>) {
    let codes: Vec<String> = codes.map(|code| code.to_string()).collect();
    select.push(format_args!(" IN ({})", codes.join(", ")));
}

/// Compares prefixes as texts, so that no character of the search is special.
fn push_search<'q>(select: &mut Select<'q>, search: &'q str) {
    let length = i64::try_from(search.chars().count()).unwrap_or(i64::MAX);
    select.push(" AND (substr(func, 1, ").bind(length).push(") = ").bind(search);
    if let Some((first, last)) = JobId::range_with_prefix(search) {
        select.push(" OR id BETWEEN ").bind(*first.as_bytes()).push(" AND ").bind(*last.as_bytes());
    }
    select.push(")");
}

pub(super) fn logs(
    connection: &Connection,
    job_id: JobId,
    kinds: &[LogKind],
    after: u64,
    limit: u32,
) -> Result<Vec<JobLog>, StoreError> {
    let mut select = Select::new(format!("-- name logs\nSELECT id, {LOG_COLUMNS} FROM job_logs WHERE job_id = "));
    select.bind(job_id.as_bytes()).push(" AND id > ").bind(i64::try_from(after).unwrap_or(i64::MAX));
    if !kinds.is_empty() {
        push_codes(select.push(" AND kind"), kinds.iter().map(|kind| code(*kind)));
    }
    select.push(" ORDER BY id LIMIT ").bind(limit);
    rows(connection, &select.text, select.parameters(), row::log)
}
