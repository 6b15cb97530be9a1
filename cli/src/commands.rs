//! The command line of the client: one file a group of commands, tables for people, `--json` for scripts.
//!
//! Every failure is one sentence on standard error that names the remedy. Exit codes: 0 done, 1 refused or
//! failed, 64 a wrong command line, 69 a service that cannot be reached.

mod bench;
mod error;
mod fleet;
mod moment;
mod publish;
mod read;
mod steer;
mod table;
mod view;
mod work;

use std::{io::Write, process::ExitCode};

use errand_client::{Dialer, endpoint::Transport};
use serde::Serialize;

use self::error::ClientError;
use crate::server_args::ServerArgs;

/// What a client may do.
#[derive(Debug, clap::Subcommand)]
pub enum ClientCommand {
    /// Publish a job
    Publish(publish::Publish),
    /// Show a job
    Get(read::Get),
    /// List jobs, newest first
    List(read::List),
    /// Show the history of a job, oldest first
    Events(read::Events),
    /// Show what a job wrote to its log
    Logs(read::Logs),
    /// Cancel a pending job, or ask the runner of a running one to stop
    Cancel(steer::Cancel),
    /// Publish a failed, canceled or expired job anew
    Retry(steer::Retry),
    /// Delete a job that is not running, with its history and log
    Delete(steer::Delete),
    /// List the runners
    Runners(fleet::Runners),
    /// Show how a channel, or every channel, is doing
    Health(fleet::Health),
    /// Show the counts of every channel and runner
    Stats(fleet::Stats),
    /// Run jobs: start a command for each
    Work(work::Work),
    /// Measure a service, running or started for this
    Bench(bench::Bench),
}

/// Switches that every command but `work` has.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Common {
    #[command(flatten)]
    server: ServerArgs,
    /// Print one JSON document instead of a table
    #[arg(long)]
    json: bool,
}

/// Carries out `command`; failures are told on standard error.
pub async fn run(command: ClientCommand) -> ExitCode {
    let done = match command {
        ClientCommand::Publish(command) => command.run().await,
        ClientCommand::Get(command) => command.run().await,
        ClientCommand::List(command) => command.run().await,
        ClientCommand::Events(command) => command.run().await,
        ClientCommand::Logs(command) => command.run().await,
        ClientCommand::Cancel(command) => command.run().await,
        ClientCommand::Retry(command) => command.run().await,
        ClientCommand::Delete(command) => command.run().await,
        ClientCommand::Runners(command) => command.run().await,
        ClientCommand::Health(command) => command.run().await,
        ClientCommand::Stats(command) => command.run().await,
        ClientCommand::Work(command) => command.run().await,
        ClientCommand::Bench(command) => command.run().await,
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            // Where even standard error is closed there is nobody left to tell.
            let _ = writeln!(std::io::stderr(), "errand: {}", table::plain(&error.to_string()));
            error.exit_code()
        }
    }
}

type Done = Result<ExitCode, ClientError>;

/// A connection, and what is needed to explain a refusal.
struct Client {
    transport: Transport,
    servers: Dialer,
    json: bool,
}

impl Common {
    async fn connect(&self) -> Result<Client, ClientError> {
        let servers = self.server.dialer()?;
        let transport = servers.connect_any(0).await?;
        Ok(Client { transport, servers, json: self.json })
    }
}

impl Client {
    /// Explains a refusal by the service.
    fn refusal(&self, status: &tonic::Status) -> ClientError {
        ClientError::refusal(status, &self.servers)
    }

    /// Prints `document` for scripts or what `table` makes for people.
    fn show(&self, document: &impl Serialize, table: impl FnOnce() -> String) -> Done {
        let text = if self.json {
            serde_json::to_string_pretty(document).map_err(|error| ClientError::Failed(error.to_string()))?
        } else {
            table()
        };
        print(&text)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Writes to standard output; a reader that went away, like `head`, is no failure.
fn print(text: &str) -> Result<(), ClientError> {
    let mut stdout = std::io::stdout().lock();
    match writeln!(stdout, "{}", text.trim_end()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(ClientError::Failed(format!("cannot write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}
