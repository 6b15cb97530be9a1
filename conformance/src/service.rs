//! A service of the kit's own: the same executable on a private data directory and a free port. It can be killed and
//! started again where it was.

use std::{ffi::OsString, fs::OpenOptions, net::SocketAddr, path::PathBuf, process::Stdio};

use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

use crate::{
    kit::{Kit, clean},
    scenario::{Flaw, Verdict, soon},
};

/// What Welcome tells the runner, as the switches spell it.
#[derive(Clone, Copy, Debug)]
pub struct Timings {
    pub heartbeat_interval: &'static str,
    pub accept_timeout: &'static str,
    pub lease_ttl: &'static str,
    pub resume_window: &'static str,
}

/// Short enough to be waited out, long enough for a busy machine.
pub const QUICK: Timings =
    Timings { heartbeat_interval: "500ms", accept_timeout: "5s", lease_ttl: "5s", resume_window: "5s" };
/// For scenarios in which a runner is away for longer.
pub const PATIENT: Timings =
    Timings { heartbeat_interval: "1s", accept_timeout: "15s", lease_ttl: "30s", resume_window: "30s" };

/// A running service. Dropped, it is killed.
#[derive(Debug)]
pub struct Service {
    kit: Kit,
    timings: Timings,
    switches: Vec<OsString>,
    child: Child,
    address: SocketAddr,
}

impl Service {
    /// With further switches, e.g. for TLS.
    pub async fn start(kit: &Kit, timings: Timings, switches: Vec<OsString>) -> Verdict<Self> {
        let (child, address) = launch(kit, timings, &switches, "127.0.0.1:0").await?;
        Ok(Self { kit: kit.clone(), timings, switches, child, address })
    }

    /// Where it listens for gRPC.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The same as a crash.
    pub async fn kill(&mut self) -> Verdict {
        Ok(self.child.kill().await?)
    }

    /// Once more, on the same data and the same port.
    pub async fn start_again(&mut self) -> Verdict {
        (self.child, self.address) = launch(&self.kit, self.timings, &self.switches, &self.address.to_string()).await?;
        Ok(())
    }

    /// A token that allows everything.
    pub async fn token(&self) -> Verdict<String> {
        self.token_with(&["--permission", "manage_jobs", "--permission", "run_jobs"]).await
    }

    /// A token with these switches.
    pub async fn token_with(&self, switches: &[&str]) -> Verdict<String> {
        let mut command = Command::new(&*self.kit.errand);
        clean(&mut command);
        command.args(["token", "--subject", "conformance", "--data-dir"]).arg(data_dir(&self.kit)).args(switches);
        let output = command.output().await?;
        match output.status.success() {
            true => Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
            false => Err(Flaw(format!("no token: {}", String::from_utf8_lossy(&output.stderr).trim()))),
        }
    }
}

fn data_dir(kit: &Kit) -> PathBuf {
    kit.folder.join("data")
}

async fn launch(kit: &Kit, timings: Timings, switches: &[OsString], grpc: &str) -> Verdict<(Child, SocketAddr)> {
    let mut command = Command::new(&*kit.errand);
    clean(&mut command);
    let log = OpenOptions::new().create(true).append(true).open(kit.service_log())?;
    let mut child = command
        .args(["serve", "--http", "off", "--grpc", grpc, "--data-dir"])
        .arg(data_dir(kit))
        .args(["--heartbeat-interval", timings.heartbeat_interval, "--accept-timeout", timings.accept_timeout])
        .args(["--lease-ttl", timings.lease_ttl, "--resume-window", timings.resume_window])
        .args(switches)
        .current_dir(&kit.folder)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .kill_on_drop(true)
        .spawn()?;
    let Some(stdout) = child.stdout.take() else {
        return Err(Flaw("the service has no standard output".to_owned()));
    };
    let mut lines = BufReader::new(stdout).lines();
    let ready = async {
        while let Some(line) = lines.next_line().await? {
            if let Some((_, address)) = line.split_once("errand ready ").and_then(|(_, rest)| rest.split_once("grpc="))
            {
                return Ok(address.trim().parse()?);
            }
        }
        Err(Flaw("the service ended before it was ready".to_owned()))
    };
    let address = soon("the service gets ready", ready).await??;
    Ok((child, address))
}
