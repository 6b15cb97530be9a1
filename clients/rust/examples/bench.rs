//! Measures how many jobs that do nothing a runner gets done in a second.
//!
//! ```sh
//! cargo build --release --bins --examples && target/release/examples/bench [JOBS [CAPACITY]]
//! ```
//!
//! Starts a service of its own (the program that `ERRAND_BIN` names, or the one that was built with this example),
//! stores the jobs first, and then times one runner: from its first call to its last receipt. Prints one line.
//! `errand bench --only drain --runners 1 --capacity 100` tells what a bare stream does with the same service.

use std::{
    env,
    error::Error,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use errand_client::{Client, NewJob, Runner, Servers};
use serde_json::json;

type Anything<T = ()> = Result<T, Box<dyn Error>>;

const BATCH: usize = 1_000;
const CHANNEL: &str = "bench";

#[tokio::main]
async fn main() -> Anything {
    let mut numbers = env::args().skip(1).map(|argument| argument.parse::<usize>());
    let jobs = numbers.next().transpose()?.unwrap_or(200_000);
    let capacity = numbers.next().transpose()?.unwrap_or(100);
    let folder = env::temp_dir().join(format!("errand-bench-{}", std::process::id()));
    let service = Service::start(&folder)?;
    let servers = Servers::at(&service.url).token(service.token()?);
    publish(&servers, jobs).await?;
    let seconds = drain(servers, jobs, capacity).await?;
    let rate = jobs as f64 / seconds;
    println!("{jobs} jobs in {seconds:.2} s: {rate:.0} jobs/s at capacity {capacity}");
    Ok(())
}

async fn publish(servers: &Servers, jobs: usize) -> Anything {
    let client = Client::connect(servers.clone()).await?;
    for start in (0..jobs).step_by(BATCH) {
        let number = |number: usize| NewJob::new("noop", json!({"number": number})).channel(CHANNEL);
        client.publish_all((start..jobs.min(start + BATCH)).map(number).collect()).await?;
    }
    Ok(())
}

/// Runs them all; the seconds that it took.
async fn drain(servers: Servers, jobs: usize, capacity: usize) -> Anything<f64> {
    let (left, begin) = (Arc::new(AtomicUsize::new(jobs)), Arc::new(OnceLock::new()));
    let runner = Runner::new(servers).channel(CHANNEL).capacity(u32::try_from(capacity)?);
    let (stopper, first) = (runner.stopper(), Arc::clone(&begin));
    let noop = move |_| {
        first.get_or_init(Instant::now);
        if left.fetch_sub(1, Ordering::Relaxed) == 1 {
            // It leaves once every result has its receipt.
            stopper.drain();
        }
        async { Ok(()) }
    };
    runner.function("noop", noop).run().await?;
    Ok(begin.get().ok_or("no job came")?.elapsed().as_secs_f64())
}

/// Dropped, it ends, and its folder goes.
struct Service {
    child: Child,
    url: String,
    folder: PathBuf,
}

impl Service {
    fn start(folder: &Path) -> Anything<Self> {
        let mut command = program()?;
        command.args(["serve", "--http", "off", "--grpc", "127.0.0.1:0", "--data-dir"]).arg(folder);
        let mut child = command.env("ERRAND_LOG", "error").stdout(Stdio::piped()).spawn()?;
        let mut ready = String::new();
        BufReader::new(child.stdout.take().ok_or("no standard output")?).read_line(&mut ready)?;
        let address = ready.split_whitespace().find_map(|word| word.strip_prefix("grpc="));
        let url = format!("http://{}", address.ok_or("the service did not start")?);
        Ok(Self { child, url, folder: folder.to_owned() })
    }

    fn token(&self) -> Anything<String> {
        let token = program()?
            .args(["token", "--subject", "bench", "--permission", "run_jobs", "--data-dir"])
            .arg(&self.folder)
            .output()?;
        Ok(String::from_utf8(token.stdout)?.trim().to_owned())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // The data go next, so nobody minds how it ends.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// The service's program, with nothing of Errand in its environment.
fn program() -> Anything<Command> {
    let own = env::current_exe()?;
    let beside = own.parent().and_then(Path::parent).ok_or("this program has no folder")?.join("errand");
    let mut command = Command::new(env::var_os("ERRAND_BIN").map_or(beside, PathBuf::from));
    for (name, _) in env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("ERRAND_")) {
        command.env_remove(name);
    }
    Ok(command)
}
