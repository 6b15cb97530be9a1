//! Jobs and events as bytes: what the journal is written in, and the histories on the jobs' rows.
//!
//! Numbers are of variable length, texts have their length before them, an absent value is a zero byte. Fields have no
//! names, so their order here is the format; [`super::journal`] says which version of it a record is in.

use std::sync::Arc;

use crate::{
    model::{Expiry, Job, JobEvent, JobId, Status, Timestamp},
    store::codes::{Coded, code, decoded},
};

/// Writes values to the end of a buffer.
pub(super) struct Encoder<'b>(pub &'b mut Vec<u8>);

/// Reads values in the order in which they were written; `None` where the bytes are not what was written.
pub(super) struct Decoder<'b>(pub &'b [u8]);

impl Encoder<'_> {
    pub fn number(&mut self, number: impl Into<u64>) {
        let mut rest: u64 = number.into();
        while rest >= 0x80 {
            self.0.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        self.0.push(rest as u8);
    }

    /// Small numbers of either sign are short.
    fn signed(&mut self, number: i64) {
        self.number((number << 1 ^ number >> 63) as u64);
    }

    fn flag(&mut self, flag: bool) {
        self.0.push(u8::from(flag));
    }

    fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.0.extend_from_slice(text.as_bytes());
    }

    pub fn optional<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T)) {
        self.flag(value.is_some());
        if let Some(value) = value {
            write(self, value);
        }
    }

    fn coded<T: Coded>(&mut self, value: T) {
        self.0.push(u8::try_from(code(value)).unwrap_or(u8::MAX));
    }

    pub fn id(&mut self, id: JobId) {
        self.0.extend_from_slice(id.as_bytes());
    }

    fn time(&mut self, at: Timestamp) {
        self.signed(at.0);
    }

    fn optional_time(&mut self, at: Option<Timestamp>) {
        self.optional(at, Self::time);
    }

    /// What of a job never changes.
    pub fn identity(&mut self, job: &Job) {
        self.id(job.id);
        for text in [&job.channel, &job.func, &job.payload, &job.owner] {
            self.text(text);
        }
        match job.expiry {
            Expiry::Default => self.0.push(0),
            Expiry::In(seconds) => {
                self.0.push(1);
                self.number(seconds);
            }
            Expiry::At(at) => {
                self.0.push(2);
                self.time(at);
            }
        }
        self.number(job.max_retries);
        self.number(job.backoff_base.to_bits());
        self.number(job.backoff_max_seconds);
        self.flag(job.broadcast);
        self.optional(job.max_exec_seconds, Self::number);
        self.optional(job.idempotency_key.as_deref(), Self::text);
        self.0.extend_from_slice(&job.fingerprint);
        self.signed(job.priority.into());
        self.time(job.created);
        self.text(&job.traceparent);
        self.optional(job.parent_id, Self::id);
    }

    /// What of a job changes.
    pub fn state(&mut self, job: &Job) {
        self.number(job.version);
        self.coded(job.status);
        self.optional_time(job.run_at);
        self.time(job.ready_at);
        self.time(job.expires_at);
        self.number(job.attempt);
        self.number(job.releases);
        self.flag(job.cancel_requested);
        self.optional(job.runner_id.as_deref(), Self::text);
        for text in [&job.last_error, &job.stack_trace, &job.metadata, &job.result] {
            self.text(text);
        }
        self.time(job.modified);
        self.optional_time(job.started_at);
        self.optional_time(job.finished_at);
        self.number(job.event_seq);
    }

    /// An event without what its job says of it.
    pub fn event(&mut self, event: &JobEvent) {
        self.number(event.seq);
        self.coded(event.kind);
        self.time(event.at);
        self.optional(event.runner_id.as_deref(), Self::text);
        self.number(event.attempt);
        self.text(&event.details);
    }
}

impl<'b> Decoder<'b> {
    pub fn is_at_end(&self) -> bool {
        self.0.is_empty()
    }

    pub fn bytes(&mut self, length: usize) -> Option<&'b [u8]> {
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes)
    }

    pub fn byte(&mut self) -> Option<u8> {
        Some(self.bytes(1)?[0])
    }

    pub fn number<T: TryFrom<u64>>(&mut self) -> Option<T> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return number.try_into().ok();
            }
        }
        None
    }

    fn signed(&mut self) -> Option<i64> {
        let number: u64 = self.number()?;
        Some((number >> 1) as i64 ^ -((number & 1) as i64))
    }

    pub fn flag(&mut self) -> Option<bool> {
        match self.byte()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    fn text(&mut self) -> Option<&'b str> {
        let length = self.number()?;
        std::str::from_utf8(self.bytes(length)?).ok()
    }

    pub fn optional<T>(&mut self, read: impl FnOnce(&mut Self) -> Option<T>) -> Option<Option<T>> {
        if self.flag()? { Some(Some(read(self)?)) } else { Some(None) }
    }

    fn coded<T: Coded>(&mut self) -> Option<T> {
        decoded(self.byte()?.into())
    }

    pub fn id(&mut self) -> Option<JobId> {
        JobId::from_slice(self.bytes(16)?)
    }

    fn time(&mut self) -> Option<Timestamp> {
        self.signed().map(Timestamp)
    }

    fn optional_time(&mut self) -> Option<Option<Timestamp>> {
        self.optional(Self::time)
    }

    fn shared(&mut self) -> Option<Arc<str>> {
        self.text().map(Arc::from)
    }

    fn owned(&mut self) -> Option<String> {
        self.text().map(str::to_owned)
    }

    /// Reads what [`Encoder::identity`] wrote; the state is to be read next.
    pub fn identity(&mut self) -> Option<Job> {
        let mut job = unread(self.id()?);
        job.channel = self.shared()?;
        job.func = self.shared()?;
        job.payload = self.shared()?;
        job.owner = self.shared()?;
        job.expiry = match self.byte()? {
            0 => Expiry::Default,
            1 => Expiry::In(self.number()?),
            2 => Expiry::At(self.time()?),
            _ => return None,
        };
        job.max_retries = self.number()?;
        job.backoff_base = f64::from_bits(self.number()?);
        job.backoff_max_seconds = self.number()?;
        job.broadcast = self.flag()?;
        job.max_exec_seconds = self.optional(Self::number)?;
        job.idempotency_key = self.optional(Self::shared)?;
        job.fingerprint = self.bytes(16)?.try_into().ok()?;
        job.priority = self.signed()?.try_into().ok()?;
        job.created = self.time()?;
        job.traceparent = self.owned()?;
        job.parent_id = self.optional(Self::id)?;
        Some(job)
    }

    /// Reads what [`Encoder::state`] wrote into a job.
    pub fn state(&mut self, job: &mut Job) -> Option<()> {
        job.version = self.number()?;
        job.status = self.coded()?;
        job.run_at = self.optional_time()?;
        job.ready_at = self.time()?;
        job.expires_at = self.time()?;
        job.attempt = self.number()?;
        job.releases = self.number()?;
        job.cancel_requested = self.flag()?;
        job.runner_id = self.optional(Self::shared)?;
        job.last_error = self.owned()?;
        job.stack_trace = self.owned()?;
        job.metadata = self.owned()?;
        job.result = self.owned()?;
        job.modified = self.time()?;
        job.started_at = self.optional_time()?;
        job.finished_at = self.optional_time()?;
        job.event_seq = self.number()?;
        Some(())
    }

    /// An event of a job.
    pub fn event(&mut self, job_id: JobId, channel: &Arc<str>) -> Option<JobEvent> {
        Some(JobEvent {
            job_id,
            channel: channel.clone(),
            seq: self.number()?,
            kind: self.coded()?,
            at: self.time()?,
            runner_id: self.optional(Self::shared)?,
            attempt: self.number()?,
            details: self.owned()?,
        })
    }
}

/// A job of which nothing is known yet.
pub(super) fn unread(id: JobId) -> Job {
    Job {
        id,
        version: 0,
        channel: "".into(),
        func: "".into(),
        payload: "".into(),
        status: Status::Pending,
        run_at: None,
        ready_at: Timestamp(0),
        expires_at: Timestamp(0),
        expiry: Expiry::Default,
        attempt: 0,
        releases: 0,
        max_retries: 0,
        backoff_base: 0.0,
        backoff_max_seconds: 0,
        broadcast: false,
        cancel_requested: false,
        max_exec_seconds: None,
        runner_id: None,
        last_error: String::new(),
        stack_trace: String::new(),
        metadata: String::new(),
        result: String::new(),
        idempotency_key: None,
        fingerprint: [0; 16],
        owner: "".into(),
        priority: 0,
        created: Timestamp(0),
        modified: Timestamp(0),
        started_at: None,
        finished_at: None,
        traceparent: String::new(),
        parent_id: None,
        event_seq: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_every_size_return() {
        let numbers = [0, 1, 0x7f, 0x80, 0x3fff, 0x4000, u64::from(u32::MAX), u64::MAX];
        let signed = [0, -1, 1, i64::MIN, i64::MAX];
        let mut bytes = Vec::new();
        numbers.iter().for_each(|number| Encoder(&mut bytes).number(*number));
        signed.iter().for_each(|number| Encoder(&mut bytes).signed(*number));
        let mut decoder = Decoder(&bytes);
        assert!(numbers.iter().all(|number| decoder.number() == Some(*number)));
        assert!(signed.iter().all(|number| decoder.signed() == Some(*number)));
        assert!(decoder.is_at_end());
        assert_eq!(decoder.number::<u64>(), None);
    }

    #[test]
    fn a_text_that_is_cut_off_is_none() {
        let mut bytes = Vec::new();
        Encoder(&mut bytes).text("über");
        assert_eq!(Decoder(&bytes[..bytes.len() - 1]).text(), None);
        assert_eq!(Decoder(&bytes).text(), Some("über"));
    }
}
