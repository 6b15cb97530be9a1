//! Lists and their pages.
//!
//! A page token is opaque to callers. In the order of ids, newest first, it is the last job's id, so that jobs published
//! meanwhile shift nothing; in any other order it is `o` and how many jobs to pass over. One job more than the page holds
//! is asked for: it tells whether there is another page.

use errand_proto::v1;

use super::{event::log_kinds, given, job::job_id, job_to_wire, log_to_wire, time_or_earliest};
use crate::{
    engine::EngineError,
    model::{
        Invalid, JobId, Status,
        limits::{PAGE_DEFAULT, PAGE_MAX},
        log::{JobLog, LogKind},
    },
    store::{ListQuery, OrderBy, Page},
};

/// How to spell the page that a query asked for.
pub struct JobPage {
    size: u32,
    /// Jobs passed over so far, where tokens count them; `None`: tokens are ids.
    offset: Option<u32>,
}

/// Where a list goes on.
enum Cursor {
    Before(JobId),
    Offset(u32),
}

pub fn job_list(wire: v1::ListJobsRequest) -> Result<(ListQuery, JobPage), EngineError> {
    let size = page_size(wire.page_size)?;
    let (order, descending) = order(wire.order)?;
    let newest_first = order == OrderBy::Created && descending;
    let (before, offset) = match cursor(&wire.page_token)? {
        Some(Cursor::Before(id)) if newest_first => (Some(id), 0),
        Some(Cursor::Before(_)) => return Err(wrong_token().into()),
        Some(Cursor::Offset(offset)) => (None, offset),
        None => (None, wire.offset),
    };
    let by_id = newest_first && offset == 0;
    let query = ListQuery {
        owner: None,
        channel: given(wire.channel),
        statuses: wire.statuses.into_iter().map(status).collect::<Result<_, _>>()?,
        func: given(wire.func),
        runner_id: given(wire.runner_id),
        created_from: wire.created_from.map(|at| time_or_earliest("created_from", at)).transpose()?,
        created_to: wire.created_to.map(|at| time_or_earliest("created_to", at)).transpose()?,
        search: given(wire.search),
        broadcast: wire.broadcast,
        parent_id: given(wire.parent_id).map(|id| job_id(&id)).transpose()?,
        order,
        descending,
        offset,
        limit: size + 1,
        before,
        count: wire.count,
    };
    Ok((query, JobPage { size, offset: (!by_id).then_some(offset) }))
}

impl JobPage {
    pub fn to_wire(&self, page: Page) -> v1::ListJobsResponse {
        let size = usize::try_from(self.size).unwrap_or(usize::MAX);
        let is_last = page.jobs.len() <= size;
        let jobs = &page.jobs[..page.jobs.len().min(size)];
        let next_page_token = match (is_last, self.offset, jobs.last()) {
            (true, ..) | (_, _, None) => String::new(),
            (false, None, Some(last)) => last.id.to_string(),
            (false, Some(offset), Some(_)) => format!("o{}", offset.saturating_add(self.size)),
        };
        v1::ListJobsResponse {
            jobs: jobs.iter().map(job_to_wire).collect(),
            next_page_token,
            total: page.total.map(|total| total.jobs),
            total_is_estimate: page.total.is_some_and(|total| total.is_estimate),
        }
    }
}

fn page_size(wire: u32) -> Result<u32, Invalid> {
    match wire {
        0 => Ok(PAGE_DEFAULT),
        1..=PAGE_MAX => Ok(wire),
        _ => Err(Invalid::new("page_size", format_args!("must be at most {PAGE_MAX}"))),
    }
}

fn cursor(token: &str) -> Result<Option<Cursor>, Invalid> {
    if token.is_empty() {
        return Ok(None);
    }
    let cursor = match token.strip_prefix('o') {
        Some(offset) => offset.parse().ok().map(Cursor::Offset),
        None => token.parse().ok().map(Cursor::Before),
    };
    cursor.map(Some).ok_or_else(wrong_token)
}

fn wrong_token() -> Invalid {
    Invalid::new("page_token", "must be the next_page_token of an answer")
}

fn status(wire: i32) -> Result<Status, Invalid> {
    match v1::JobStatus::try_from(wire) {
        Ok(v1::JobStatus::Pending) => Ok(Status::Pending),
        Ok(v1::JobStatus::Running) => Ok(Status::Running),
        Ok(v1::JobStatus::Completed) => Ok(Status::Completed),
        Ok(v1::JobStatus::Failed) => Ok(Status::Failed),
        Ok(v1::JobStatus::Canceled) => Ok(Status::Canceled),
        Ok(v1::JobStatus::Expired) => Ok(Status::Expired),
        Ok(v1::JobStatus::Unspecified) | Err(_) => {
            Err(Invalid::new("status", "must be pending, running, completed, failed, canceled or expired"))
        }
    }
}

/// Newest first where nothing is said.
fn order(wire: i32) -> Result<(OrderBy, bool), Invalid> {
    let order = v1::ListOrder::try_from(wire).map_err(|_| Invalid::new("order", "must be one of ListOrder"))?;
    Ok(match order {
        v1::ListOrder::Unspecified | v1::ListOrder::CreatedDesc => (OrderBy::Created, true),
        v1::ListOrder::Created => (OrderBy::Created, false),
        v1::ListOrder::Modified => (OrderBy::Modified, false),
        v1::ListOrder::ModifiedDesc => (OrderBy::Modified, true),
        v1::ListOrder::StartedAt => (OrderBy::StartedAt, false),
        v1::ListOrder::StartedAtDesc => (OrderBy::StartedAt, true),
        v1::ListOrder::FinishedAt => (OrderBy::FinishedAt, false),
        v1::ListOrder::FinishedAtDesc => (OrderBy::FinishedAt, true),
        v1::ListOrder::RunAt => (OrderBy::RunAt, false),
        v1::ListOrder::RunAtDesc => (OrderBy::RunAt, true),
    })
}

/// One page of a job's log lines.
pub struct LogPage {
    pub job_id: JobId,
    pub kinds: Vec<LogKind>,
    /// The id of the last line that was answered.
    pub after: u64,
    size: u32,
}

pub fn log_list(wire: &v1::ListJobLogsRequest) -> Result<LogPage, EngineError> {
    let after = match wire.page_token.as_str() {
        "" => 0,
        token => token.parse().map_err(|_| wrong_token())?,
    };
    let size = page_size(wire.page_size)?;
    Ok(LogPage { job_id: job_id(&wire.job_id)?, kinds: log_kinds(&wire.kinds)?, after, size })
}

impl LogPage {
    pub fn limit(&self) -> u32 {
        self.size + 1
    }

    pub fn to_wire(&self, mut logs: Vec<JobLog>) -> v1::ListJobLogsResponse {
        let size = usize::try_from(self.size).unwrap_or(usize::MAX);
        let is_last = logs.len() <= size;
        logs.truncate(size);
        let next_page_token = match logs.last() {
            Some(last) if !is_last => last.id.to_string(),
            _ => String::new(),
        };
        v1::ListJobLogsResponse { logs: logs.into_iter().map(log_to_wire).collect(), next_page_token }
    }
}
