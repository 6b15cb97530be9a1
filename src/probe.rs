//! `errand probe`: the bare pieces that the service is made of, each by itself, so that `errand bench` can tell its
//! figures as shares of what the machine could do at all.
//!
//! Deliberately absent: anything of the engine. A probe is an upper bound only as long as it does nothing else.

mod echo;

use std::{
    io::Write,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Subcommand;
use tokio::time::Instant;

use crate::{start_error::StartError, store::sqlite};

/// What one append to a write-ahead log writes at least.
const PAGE_BYTES: usize = 4_096;

#[derive(Debug, Subcommand)]
pub enum Probe {
    /// Answer gRPC calls with what they bring; prints where
    Echo,
    /// Insert rows into a new database, 1,024 for each commit; prints rows a second
    Store(Place),
    /// Append pages to a file, each on the disk before the next; prints appends a second
    Fsync(Place),
}

#[derive(Debug, clap::Args)]
pub struct Place {
    /// Where the file is made; it is removed again
    #[arg(long, value_name = "DIR")]
    folder: PathBuf,
    /// How long, in milliseconds
    #[arg(long, value_name = "N")]
    millis: u64,
}

/// Prints one line; the echo then answers until its process is ended.
pub async fn run(probe: Probe) -> Result<(), StartError> {
    match probe {
        Probe::Echo => echo::serve().await,
        Probe::Store(place) => {
            let file = place.folder.join("probe.db");
            let rate = sqlite::insert_rate(&file, place.time());
            ["probe.db", "probe.db-wal", "probe.db-shm"].iter().for_each(|name| remove(&place.folder.join(name)));
            report(rate.map_err(|error| StartError::Unavailable(error.to_string()))?);
            Ok(())
        }
        Probe::Fsync(place) => {
            let file = place.folder.join("probe.pages");
            let rate = fsync_rate(&file, place.time());
            remove(&file);
            report(rate.map_err(|error| StartError::Unavailable(format!("{}: {error}", file.display())))?);
            Ok(())
        }
    }
}

impl Place {
    fn time(&self) -> Duration {
        Duration::from_millis(self.millis)
    }
}

fn fsync_rate(file: &Path, time: Duration) -> std::io::Result<f64> {
    let file = std::fs::File::create(file)?;
    let page = [0; PAGE_BYTES];
    let begin = Instant::now();
    let mut appends = 0;
    while begin.elapsed() < time {
        file.write_all_at(&page, appends * PAGE_BYTES as u64)?;
        file.sync_data()?;
        appends += 1;
    }
    Ok(appends as f64 / begin.elapsed().as_secs_f64())
}

/// Who measures reads it; where nobody does, nobody misses it.
fn report(rate: f64) {
    let _ = writeln!(std::io::stdout(), "{rate:.1}");
}

/// It lies in a folder that is removed as a whole soon after.
fn remove(file: &Path) {
    let _ = std::fs::remove_file(file);
}
