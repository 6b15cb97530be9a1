//! Reads for people: lists with filters, and log lines.

use sqlx::{QueryBuilder, Sqlite, SqlitePool};

use super::{
    row::{self, Fields},
    unavailable,
};
use crate::{
    model::{
        Job, JobId, Status,
        log::{JobLog, LogKind},
    },
    store::{ListQuery, OrderBy, Page, StoreError, codes::code},
};

pub(super) async fn list(readers: &SqlitePool, query: &ListQuery) -> Result<Page, StoreError> {
    let mut select = QueryBuilder::<Sqlite>::new("-- name list\nSELECT * FROM jobs WHERE ");
    push_filters(&mut select, query);
    if let Some(before) = query.before {
        select.push(" AND id < ").push_bind(before.as_bytes().as_slice());
    }
    let direction = if query.descending { " DESC" } else { "" };
    if let Some(column) = order_column(query.order) {
        select.push(format_args!(" ORDER BY {column}{direction}, id{direction}"));
    } else {
        select.push(format_args!(" ORDER BY id{direction}"));
    }
    select.push(" LIMIT ").push_bind(i64::from(query.limit));
    select.push(" OFFSET ").push_bind(i64::from(query.offset));
    let rows = select.build().fetch_all(readers).await.map_err(unavailable)?;
    let jobs = rows.iter().map(row::job).collect::<Result<Vec<Job>, StoreError>>()?;
    let total = if query.count { Some(count(readers, query).await?) } else { None };
    Ok(Page { jobs, total })
}

async fn count(readers: &SqlitePool, query: &ListQuery) -> Result<u64, StoreError> {
    let mut select = QueryBuilder::<Sqlite>::new("-- name count\nSELECT COUNT(*) AS jobs FROM jobs WHERE ");
    push_filters(&mut select, query);
    let row = select.build().fetch_one(readers).await.map_err(unavailable)?;
    Fields::new("jobs", "id", &row).count("jobs")
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

fn push_filters(select: &mut QueryBuilder<Sqlite>, query: &ListQuery) {
    match query.parent_id {
        Some(parent_id) => select.push("parent_id = ").push_bind(parent_id.as_bytes().as_slice()),
        None => select.push("parent_id IS NULL"),
    };
    if let Some(owner) = &query.owner {
        select.push(" AND owner = ").push_bind(owner.clone());
    }
    if let Some(channel) = &query.channel {
        select.push(" AND channel = ").push_bind(channel.as_str());
    }
    push_statuses(select, &query.statuses);
    if let Some(func) = &query.func {
        select.push(" AND func = ").push_bind(func.as_str());
    }
    if let Some(runner_id) = &query.runner_id {
        select.push(" AND runner_id = ").push_bind(runner_id.as_str());
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
        push_search(select, search);
    }
}

/// Spells the codes out, and repeats the condition of the index that can serve them: SQLite does not work it out itself.
fn push_statuses(select: &mut QueryBuilder<Sqlite>, statuses: &[Status]) {
    if statuses.is_empty() {
        return;
    }
    let is_unsuccessful = |status: &Status| code(*status) > code(Status::Completed);
    if statuses.iter().all(is_unsuccessful) {
        select.push(" AND status > 2");
    }
    select.push(" AND status IN (");
    let mut codes = select.separated(", ");
    for status in statuses {
        codes.push(code(*status));
    }
    select.push(")");
}

/// Compares prefixes as texts, so that no character of the search is special.
fn push_search(select: &mut QueryBuilder<Sqlite>, search: &str) {
    let length = i64::try_from(search.chars().count()).unwrap_or(i64::MAX);
    select.push(" AND (substr(func, 1, ").push_bind(length).push(") = ").push_bind(search);
    if let Some((first, last)) = JobId::range_with_prefix(search) {
        select.push(" OR id BETWEEN ").push_bind(first.as_bytes().as_slice());
        select.push(" AND ").push_bind(last.as_bytes().as_slice());
    }
    select.push(")");
}

pub(super) async fn logs(
    readers: &SqlitePool,
    job_id: JobId,
    kinds: &[LogKind],
    after: u64,
    limit: u32,
) -> Result<Vec<JobLog>, StoreError> {
    let mut select = QueryBuilder::<Sqlite>::new("-- name logs\nSELECT * FROM job_logs WHERE job_id = ");
    select.push_bind(job_id.as_bytes().as_slice());
    select.push(" AND id > ").push_bind(i64::try_from(after).unwrap_or(i64::MAX));
    if !kinds.is_empty() {
        select.push(" AND kind IN (");
        let mut codes = select.separated(", ");
        for kind in kinds {
            codes.push(code(*kind));
        }
        select.push(")");
    }
    select.push(" ORDER BY id LIMIT ").push_bind(i64::from(limit));
    let rows = select.build().fetch_all(readers).await.map_err(unavailable)?;
    rows.iter().map(row::log).collect()
}
