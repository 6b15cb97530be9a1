//! Statements that are put together, and the conditions of a list in them.

use std::fmt::Write;

use rusqlite::{ToSql, params_from_iter};

use crate::{
    model::{JobId, Status},
    store::{ListQuery, codes::code},
};

/// A statement that is put together, with its values.
#[derive(Default)]
pub(super) struct Select<'q> {
    pub text: String,
    values: Vec<Box<dyn ToSql + 'q>>,
}

impl<'q> Select<'q> {
    pub fn new(text: String) -> Select<'q> {
        Select { text, values: Vec::new() }
    }

    pub fn push(&mut self, text: impl std::fmt::Display) -> &mut Select<'q> {
        // Writing to a text cannot fail.
        let _ = write!(self.text, "{text}");
        self
    }

    pub fn bind(&mut self, value: impl ToSql + 'q) -> &mut Select<'q> {
        self.values.push(Box::new(value));
        self.push("?")
    }

    pub fn parameters(&self) -> impl rusqlite::Params {
        params_from_iter(self.values.iter().map(|value| &**value))
    }
}

/// All conditions.
pub(super) fn push_filters<'q>(select: &mut Select<'q>, query: &'q ListQuery) {
    match &query.parent_id {
        Some(parent_id) => select.push("parent_id = ").bind(parent_id.as_bytes()),
        None => select.push("parent_id IS NULL"),
    };
    push_traits(select, query);
    push_statuses(select, &query.statuses);
    if let Some(runner_id) = &query.runner_id {
        select.push(" AND runner_id = ").bind(runner_id);
    }
    push_times(select, query);
    if let Some(search) = &query.search {
        push_search(select, search);
    }
}

/// The conditions on what a job keeps from its creation on, which a bucket has in columns of the same names.
pub(super) fn push_traits<'q>(select: &mut Select<'q>, query: &'q ListQuery) {
    if let Some(owner) = &query.owner {
        select.push(" AND owner = ").bind(&**owner);
    }
    if let Some(channel) = &query.channel {
        select.push(" AND channel = ").bind(channel);
    }
    if let Some(func) = &query.func {
        select.push(" AND func = ").bind(func);
    }
    if let Some(broadcast) = query.broadcast {
        select.push(" AND broadcast = ").bind(broadcast);
    }
}

pub(super) fn push_times(select: &mut Select<'_>, query: &ListQuery) {
    if let Some(from) = query.created_from {
        select.push(" AND created >= ").bind(from.0);
    }
    if let Some(to) = query.created_to {
        select.push(" AND created < ").bind(to.0);
    }
}

fn push_statuses(select: &mut Select<'_>, statuses: &[Status]) {
    if !statuses.is_empty() {
        push_codes(select.push(" AND status"), statuses.iter().map(|status| code(*status)));
    }
}

pub(super) fn push_codes(select: &mut Select<'_>, codes: impl Iterator<Item = i32>) {
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
