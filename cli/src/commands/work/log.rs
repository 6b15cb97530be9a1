//! A process's standard error as the job's log: lines, in batches, within limits.
//!
//! The pipe is always read, however slow the service is: what cannot be handed on is dropped and counted,
//! so a job never waits for its log.

use std::{
    mem,
    time::{Duration, SystemTime},
};

use errand_client::session::Reporter;
use errand_proto::v1::{LogKind, LogLine};
use tokio::io::{AsyncRead, AsyncReadExt};

/// The rest of a longer line is dropped, with a note.
const LINE_BYTES_MAX: usize = 8 * 1024;
const BATCH_LINES_MAX: usize = 64;
const BATCH_BYTES_MAX: usize = 32 * 1024;
/// How long a line may wait for others.
const BATCH_AGE_MAX: Duration = Duration::from_millis(200);

/// Collects one process's log.
#[derive(Debug)]
pub struct Log {
    reporter: Reporter,
    line: Vec<u8>,
    is_cut: bool,
    batch: Vec<LogLine>,
    batch_bytes: usize,
    dropped: u64,
    last: String,
}

impl Log {
    pub fn new(reporter: Reporter) -> Self {
        Self {
            reporter,
            line: Vec::new(),
            is_cut: false,
            batch: Vec::new(),
            batch_bytes: 0,
            dropped: 0,
            last: String::new(),
        }
    }

    /// Reads to the end. Cancel-safe: what was read is kept.
    pub async fn follow(&mut self, mut pipe: impl AsyncRead + Unpin) {
        let mut bytes = [0; 4096];
        loop {
            let read = pipe.read(&mut bytes);
            let read = if self.batch.is_empty() {
                read.await
            } else {
                match tokio::time::timeout(BATCH_AGE_MAX, read).await {
                    Ok(read) => read,
                    Err(_) => {
                        self.flush();
                        continue;
                    }
                }
            };
            match read {
                Ok(0) | Err(_) => return,
                Ok(count) => self.take(&bytes[..count]),
            }
        }
    }

    /// Hands on what is left, and tells the last line that says something.
    pub fn finish(mut self) -> String {
        if !self.line.is_empty() {
            self.end_line();
        }
        self.flush();
        self.last
    }

    fn take(&mut self, bytes: &[u8]) {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, ends) = match part.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (part, false),
            };
            let room = LINE_BYTES_MAX - self.line.len();
            self.is_cut |= text.len() > room;
            self.line.extend_from_slice(&text[..text.len().min(room)]);
            if ends {
                self.end_line();
            }
        }
    }

    fn end_line(&mut self) {
        // NUL is no text to every database.
        let mut message = String::from_utf8_lossy(&self.line).trim_end().replace('\0', "\u{fffd}");
        self.line.clear();
        if mem::take(&mut self.is_cut) {
            message.push_str(" [line cut at 8 KiB]");
        }
        if message.is_empty() {
            return;
        }
        self.last.clone_from(&message);
        if self.batch.len() >= BATCH_LINES_MAX || self.batch_bytes + message.len() > BATCH_BYTES_MAX {
            self.flush();
        }
        self.batch_bytes += message.len();
        self.batch.push(line(LogKind::Info, message));
    }

    fn flush(&mut self) {
        let mut batch = mem::take(&mut self.batch);
        self.batch_bytes = 0;
        if batch.is_empty() {
            return;
        }
        let lines = batch.len() as u64;
        if self.dropped > 0 {
            batch.insert(0, line(LogKind::Warn, format!("[{} lines dropped]", self.dropped)));
        }
        match self.reporter.try_log(batch) {
            Ok(()) => self.dropped = 0,
            Err(_) => self.dropped += lines,
        }
    }
}

fn line(kind: LogKind, message: String) -> LogLine {
    LogLine { at: Some(SystemTime::now().into()), kind: kind.into(), message, meta_json: String::new() }
}
