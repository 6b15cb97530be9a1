//! What every scenario works with: the executable, the command under test, and a private folder.

use std::{ffi::OsString, path::PathBuf, sync::Arc};

/// Handed to each scenario.
#[derive(Clone, Debug)]
pub struct Kit {
    /// The executable that runs the service: this one.
    pub errand: Arc<PathBuf>,
    /// The runner under test: a program and its arguments.
    pub command: Arc<Vec<OsString>>,
    /// For this scenario alone; removed after it.
    pub folder: PathBuf,
}

impl Kit {
    /// Where the runner under test writes what it says.
    pub fn runner_log(&self) -> PathBuf {
        self.folder.join("runner.log")
    }

    /// Where the service writes its log.
    pub fn service_log(&self) -> PathBuf {
        self.folder.join("service.log")
    }
}

/// Without the variables of whoever runs the kit: only what the kit sets reaches its processes.
pub fn clean(command: &mut tokio::process::Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("ERRAND_") {
            command.env_remove(name);
        }
    }
}
