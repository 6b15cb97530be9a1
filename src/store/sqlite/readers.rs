//! Connections that read, a few at a time, each on a thread for what blocks.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rusqlite::Connection;
use tokio::{sync::Semaphore, task::spawn_blocking};

use super::{OpenError, connect, open_error, unavailable};
use crate::store::StoreError;

/// Connections at most.
const READERS: usize = 4;

pub(super) struct Readers {
    path: PathBuf,
    idle: Arc<Mutex<Vec<Connection>>>,
    turns: Arc<Semaphore>,
}

impl Readers {
    /// Opens one of them, to see that it can be done.
    pub fn open(path: &Path) -> Result<Readers, OpenError> {
        let first = connect(path, true).map_err(open_error)?;
        let idle = Arc::new(Mutex::new(vec![first]));
        Ok(Readers { path: path.to_owned(), idle, turns: Arc::new(Semaphore::new(READERS)) })
    }

    /// Reads on a connection that nobody else uses meanwhile.
    pub async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let closed = |_| StoreError::Unavailable("the database is closed".into());
        let turn = self.turns.clone().acquire_owned().await.map_err(closed)?;
        let (idle, path) = (self.idle.clone(), self.path.clone());
        let reading = spawn_blocking(move || {
            let _turn = turn;
            // A connection that was lost in a panic is replaced.
            let connection = lock(&idle).pop();
            let connection = connection.map_or_else(|| connect(&path, true), Ok).map_err(unavailable)?;
            let answer = read(&connection);
            lock(&idle).push(connection);
            answer
        });
        reading.await.map_err(|error| StoreError::Unavailable(error.into()))?
    }

    /// Waits for those who read; later reads fail as unavailable.
    pub async fn close(&self) {
        if let Ok(all) = self.turns.acquire_many(READERS as u32).await {
            all.forget();
            self.turns.close();
        }
        lock(&self.idle).clear();
    }
}

fn lock(idle: &Mutex<Vec<Connection>>) -> MutexGuard<'_, Vec<Connection>> {
    idle.lock().unwrap_or_else(PoisonError::into_inner)
}
