//! The `errand` program: reads the command line and hands over.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use errand::{
    config::{Config, ServeArgs},
    probe::{self, Probe},
    server,
    start_error::StartError,
    telemetry, tls,
    token::{self, TokenArgs},
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Takes background jobs from programs in any language and gets each of them done.
///
/// Without a command it runs the service, as `errand serve` does.
#[derive(Parser)]
#[command(name = "errand", version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: ServeArgs,
}

#[derive(Subcommand)]
enum Command {
    /// Run the service
    #[command(after_help = SOURCES)]
    Serve(Box<ServeArgs>),
    /// Print a token signed with the service's key
    Token(TokenArgs),
    /// Measure one piece of the service by itself, for `errand bench`
    #[command(subcommand, hide = true)]
    Probe(Probe),
    #[command(flatten)]
    Client(errand_cli::ClientCommand),
    Conformance(errand_conformance::Conformance),
}

const SOURCES: &str = "Every switch is also a variable (--data-dir is ERRAND_DATA_DIR) and a key of the file (data_dir). \
                       The switch wins, then the variable, then the file.";

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Nothing is left to tell where the terminal is gone.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(64) } else { ExitCode::SUCCESS };
        }
    };
    tls::install_provider();
    let outcome = match cli.command {
        None => serve(&cli.serve),
        Some(Command::Serve(args)) => serve(&args),
        Some(Command::Token(args)) => token::issue(&args, variable).map(|token| println!("{token}")),
        Some(Command::Probe(probe)) => runtime().and_then(|runtime| runtime.block_on(probe::run(probe))),
        Some(Command::Client(command)) => match runtime() {
            Ok(runtime) => return runtime.block_on(errand_cli::run(command)),
            Err(error) => Err(error),
        },
        Some(Command::Conformance(command)) => match runtime() {
            Ok(runtime) => return runtime.block_on(command.run()),
            Err(error) => Err(error),
        },
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("errand: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn serve(args: &ServeArgs) -> Result<(), StartError> {
    let config = Config::load(args, variable)?;
    telemetry::init(config.log_format, &config.log_filter)?;
    let runtime = runtime()?;
    let outcome = runtime.block_on(server::run(config));
    // Streams that their client keeps open live on as tasks; the process does not wait for them.
    runtime.shutdown_background();
    outcome
}

fn runtime() -> Result<tokio::runtime::Runtime, StartError> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| StartError::Unavailable(format!("threads cannot be started: {error}")))
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}
