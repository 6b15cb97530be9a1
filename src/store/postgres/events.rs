//! Events as lines of text: the first ones of a job lie on its own row, the later ones each on a row of `late_events`.
//!
//! A job's way through the house writes its row three times and makes three events. On the row they come along for nearly
//! nothing; as rows of their own they would cost as much as the job. A job with many retries does not drag its whole history
//! through each change, for only the first [`ON_ROW_MAX`] lie there. Which ones these are follows from `seq` alone.

use crate::{
    model::{JobEvent, JobId, Step, Timestamp},
    store::codes::{code, decoded},
};
use std::sync::Arc;

/// Events with a `seq` up to this lie on the job's row: the life of a job that needs up to six retries.
pub(super) const ON_ROW_MAX: u32 = 16;

/// The line of a step's event that goes onto the job's row; empty where there is none.
pub(super) fn line_on_row(step: &Step) -> String {
    step.event.as_ref().filter(|event| event.seq <= ON_ROW_MAX).map(line).unwrap_or_default()
}

/// The event that has a row of its own.
pub(super) fn late(step: &Step) -> Option<&JobEvent> {
    step.event.as_ref().filter(|event| event.seq > ON_ROW_MAX)
}

/// seq, kind, microseconds, runner, attempt and details; job and channel are on the job's row.
type Fields<'a> = (u32, i32, i64, Option<std::borrow::Cow<'a, str>>, u32, std::borrow::Cow<'a, str>);

/// One line of JSON, its end included. No character of it is one that a text cannot hold.
pub(super) fn line(event: &JobEvent) -> String {
    let runner_id = event.runner_id.as_deref().map(Into::into);
    let fields: Fields =
        (event.seq, code(event.kind), event.at.0, runner_id, event.attempt, event.details.as_str().into());
    let mut line = serde_json::to_string(&fields).expect("numbers and texts have a spelling in JSON");
    line.push('\n');
    line
}

/// The events of these lines, oldest first; none where a line is no event.
pub(super) fn parse(lines: &str, job_id: JobId, channel: &Arc<str>) -> Option<Vec<JobEvent>> {
    let event = |line: &str| {
        let (seq, kind, at, runner_id, attempt, details) = serde_json::from_str::<Fields>(line).ok()?;
        Some(JobEvent {
            seq,
            job_id,
            channel: channel.clone(),
            kind: decoded(kind)?,
            at: Timestamp(at),
            runner_id: runner_id.map(Arc::from),
            attempt,
            details: details.into_owned(),
        })
    };
    lines.lines().map(event).collect()
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::model::EventKind;

    #[test]
    fn an_event_survives_its_line() {
        let channel: Arc<str> = "a".into();
        let event = JobEvent {
            seq: u32::MAX,
            job_id: JobId(Uuid::from_u128(7)),
            channel: channel.clone(),
            kind: EventKind::Released,
            at: Timestamp(-1),
            runner_id: Some("r\0\n".into()),
            attempt: 3,
            details: "{\"error\":\"a\\nb ü\u{2028}\"}".into(),
        };
        let other = JobEvent { runner_id: None, details: String::new(), ..event.clone() };
        let lines = line(&event) + &line(&other);
        assert!(!lines.contains('\0'));
        assert_eq!(parse(&lines, event.job_id, &channel), Some(vec![event.clone(), other]));
        assert_eq!(parse("", event.job_id, &channel), Some(vec![]));
        assert_eq!(parse("[1,2]\n", event.job_id, &channel), None);
        assert_eq!(parse("[1,99,0,null,0,\"\"]\n", event.job_id, &channel), None);
    }
}
