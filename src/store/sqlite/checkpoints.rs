//! Copies what the write-ahead log holds into the database's file, on a thread of its own.
//!
//! SQLite itself would do that at the end of whichever commit fills the log: a thousand pages and two waits for the disk, for
//! which every commit behind it waits as well. Here commits go on meanwhile. Since the log grows as long as they do, the writer
//! copies the rest itself once it is long, which is little by then, and the log begins anew.

use std::{
    cell::Cell,
    path::Path,
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread::JoinHandle,
};

use rusqlite::Connection;

use super::connect;

/// Pages that the log grows by until they are copied. The fewer at a time, the shorter a commit waits for the disk beside them.
const PAGES: i32 = 250;
/// Pages in the log from which on the writer waits for the copy: 16 MiB. The disk is quicker where the log was before than where it grows.
const PAGES_MAX: i32 = 4_096;

thread_local! {
    /// Pages in the log, as the last commit on this thread left it.
    static LOG: Cell<i32> = const { Cell::new(0) };
}

pub(super) struct Checkpoints {
    wake: SyncSender<()>,
    thread: JoinHandle<()>,
    /// Pages in the log when the thread was woken last.
    woken_at: i32,
}

impl Checkpoints {
    /// For the log that `writer` fills.
    pub fn start(path: &Path, writer: &Connection) -> Result<Checkpoints, Box<dyn std::error::Error + Send + Sync>> {
        writer.wal_hook(Some(|log, pages| {
            LOG.set(pages);
            if pages >= PAGES_MAX {
                // Where the thread is at it, the next commit tries again.
                let _ = log.checkpoint();
            }
            Ok(())
        }));
        let connection = connect(path, false)?;
        // One signal may wait; it stands for all that come until then.
        let (wake, signals) = sync_channel(1);
        let thread = std::thread::Builder::new().name("sqlite checkpoints".to_owned());
        let thread = thread.spawn(move || run(&connection, &signals))?;
        Ok(Checkpoints { wake, thread, woken_at: 0 })
    }

    /// To be called on the writer's thread after its commits.
    pub fn keep_up(&mut self) {
        let pages = LOG.get();
        // The log has begun anew.
        self.woken_at = if pages < self.woken_at { 0 } else { self.woken_at };
        if pages - self.woken_at >= PAGES {
            self.woken_at = pages;
            let _ = self.wake.try_send(());
        }
    }

    /// Waits for the end of a copy that is under way.
    pub fn close(self) {
        drop(self.wake);
        if self.thread.join().is_err() {
            tracing::error!("the thread that copies the write-ahead log has panicked");
        }
    }
}

fn run(connection: &Connection, signals: &Receiver<()>) {
    while signals.recv().is_ok() {
        if let Err(error) = connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())) {
            // Whatever is wrong with the disk, commits find out as well.
            tracing::debug!(error = &error as &dyn std::error::Error, "the write-ahead log was not copied");
        }
    }
}
