//! The real service, a proxy before it, and the runner under test attached through that.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use errand_client::{Client, Job, JobFilter, JobStatus, NewJob, Servers, endpoint::Transport};
use errand_proto::v1::{
    BroadcastCommandRequest, CommandKind, ListRunnersRequest, Runner, RunnerReply, runners_client::RunnersClient,
};
use serde_json::value::RawValue;

use crate::{
    authority::Identity,
    kit::Kit,
    proxy::Proxy,
    scenario::{Flaw, PATIENCE, Verdict, ensure, eventually, soon},
    service::{QUICK, Service, Timings},
    subject::{Part, Subject},
};

/// What a scenario wants of its stage.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    pub capacity: u32,
    pub timings: Timings,
}

impl Default for Setup {
    fn default() -> Self {
        Self { capacity: 4, timings: QUICK }
    }
}

/// By what the kit's own client dials a service that speaks TLS.
pub const NAME: &str = "localhost";

/// TLS on a stage.
#[derive(Debug)]
pub struct Tls {
    /// The service's switches.
    pub switches: Vec<OsString>,
    /// Who signed the server's certificate.
    pub authority: PathBuf,
    /// What the kit's own client shows.
    pub own: Identity,
    /// The runner's variables.
    pub runner: Vec<(&'static str, PathBuf)>,
}

/// See the module.
#[derive(Debug)]
pub struct Stage {
    kit: Kit,
    pub part: Part,
    pub service: Service,
    pub proxy: Proxy,
    pub runner: Subject,
    /// Speaks to the service directly, past the proxy.
    pub client: Client,
}

impl Stage {
    /// Everything started, and the runner attached.
    pub async fn set(kit: &Kit, setup: Setup) -> Verdict<Self> {
        let mut stage = Self::dark(kit, setup, |_| {}).await?;
        stage.attached().await?;
        Ok(stage)
    }

    /// The same with the usual setup.
    pub async fn usual(kit: &Kit) -> Verdict<Self> {
        Self::set(kit, Setup::default()).await
    }

    /// Everything started; `prepare` has the proxy before the runner comes.
    pub async fn dark(kit: &Kit, setup: Setup, prepare: impl FnOnce(&Proxy)) -> Verdict<Self> {
        let service = Service::start(kit, setup.timings, Vec::new()).await?;
        let servers = Servers::at(service.address().to_string());
        Self::before(kit, setup, service, servers, "http", Vec::new(), prepare).await
    }

    /// Everything started, and the service speaks TLS. The runner is not attached yet.
    pub async fn secure(kit: &Kit, setup: Setup, tls: Tls) -> Verdict<Self> {
        let service = Service::start(kit, setup.timings, tls.switches).await?;
        let servers = Servers::at(format!("https://{NAME}:{}", service.address().port()))
            .authority_file(&tls.authority)
            .identity_files(&tls.own.certificate, &tls.own.key);
        Self::before(kit, setup, service, servers, "https", tls.runner, |_| {}).await
    }

    async fn before(
        kit: &Kit,
        setup: Setup,
        service: Service,
        servers: Servers,
        scheme: &str,
        files: Vec<(&'static str, PathBuf)>,
        prepare: impl FnOnce(&Proxy),
    ) -> Verdict<Self> {
        let token = service.token().await?;
        let proxy = Proxy::before(service.address()).await?;
        prepare(&proxy);
        let client = Client::connect(servers.token(&token)).await?;
        let channel = "conformance".to_owned();
        let servers = vec![format!("{scheme}://{}", proxy.address())];
        let part = Part { servers, token, channel, capacity: setup.capacity, files };
        let runner = Subject::start(kit, &part)?;
        Ok(Self { kit: kit.clone(), part, service, proxy, runner, client })
    }

    /// What the runner has written so far.
    pub fn said(&self) -> Verdict<String> {
        Ok(std::fs::read_to_string(self.kit.runner_log())?)
    }

    /// Another process of the runner, after the one before has ended.
    pub fn start_runner(&mut self) -> Verdict {
        self.runner = Subject::start(&self.kit, &self.part)?;
        Ok(())
    }

    /// Waits until the runner is attached.
    pub async fn attached(&mut self) -> Verdict<Runner> {
        let end = tokio::time::Instant::now() + PATIENCE;
        while tokio::time::Instant::now() < end {
            if let Some(status) = self.runner.exited()? {
                return Err(Flaw(format!("the runner ended before it attached: {status}")));
            }
            if let Some(runner) = self.live_runner().await? {
                return Ok(runner);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Err(Flaw(format!("the runner did not attach within {} s", PATIENCE.as_secs())))
    }

    /// The runner as the service sees it, while it is alive.
    pub async fn live_runner(&self) -> Verdict<Option<Runner>> {
        let request = ListRunnersRequest { channel: self.part.channel.clone() };
        let runners = self.runners().list_runners(request).await?.into_inner().runners;
        Ok(runners.into_iter().find(|runner| runner.alive))
    }

    /// What operators call.
    pub fn runners(&self) -> RunnersClient<Transport> {
        RunnersClient::new(self.client.transport())
    }

    /// Sends a command to the runner and waits for its one reply.
    pub async fn command(&self, kind: CommandKind) -> Verdict<RunnerReply> {
        let timeout = Some(prost_types::Duration { seconds: 10, nanos: 0 });
        let request = BroadcastCommandRequest { kind: kind.into(), timeout, ..BroadcastCommandRequest::default() };
        let replies = self.runners().broadcast_command(request).await?.into_inner().replies;
        let reply = replies.into_iter().next();
        reply.ok_or_else(|| Flaw(format!("the runner did not answer {} within 10 s", kind.as_str_name())))
    }

    /// A job for the runner.
    pub fn job(&self, func: &str, payload: &str) -> Verdict<NewJob> {
        let payload: Box<RawValue> = serde_json::from_str(payload)?;
        Ok(NewJob::new(func, payload).channel(&self.part.channel))
    }

    /// Hands in a job without retries; its id.
    pub async fn publish(&self, func: &str, payload: &str) -> Verdict<String> {
        Ok(self.client.publish(self.job(func, payload)?.max_retries(0)).await?.job.id)
    }

    /// Hands in many of them at once; their ids.
    pub async fn publish_many(&self, func: &str, payloads: impl IntoIterator<Item = String>) -> Verdict<Vec<String>> {
        let job = |payload: String| Ok(self.job(func, &payload)?.max_retries(0));
        let jobs = payloads.into_iter().map(job).collect::<Verdict<Vec<_>>>()?;
        Ok(self.client.publish_all(jobs).await?.into_iter().map(|receipt| receipt.job_id).collect())
    }

    /// Hands in a job without retries and waits for its end.
    pub async fn run(&self, func: &str, payload: &str) -> Verdict<Job> {
        let id = self.publish(func, payload).await?;
        self.ended(&id).await
    }

    /// The result of a job that must complete, and at its first attempt.
    pub async fn result(&self, func: &str, payload: &str) -> Verdict<String> {
        completed_at_once(&self.run(func, payload).await?)
    }

    /// Waits for the end of a job.
    pub async fn ended(&self, id: &str) -> Verdict<Job> {
        Ok(soon(&format!("job {id} ends"), self.client.wait(id)).await??)
    }

    /// Waits until the runner executes the job.
    pub async fn running(&self, id: &str) -> Verdict<Job> {
        eventually(&format!("job {id} runs"), || async {
            let job = self.client.get(id).await?;
            ensure!(!job.status.is_terminal(), "job {id} ended too early: {:?} {:?}", job.status, job.last_error);
            Ok(Some(job).filter(|job| job.status == JobStatus::Running))
        })
        .await
    }

    /// Waits until the runner has taken the job and says so itself.
    pub async fn under_way(&self, id: &str) -> Verdict {
        self.running(id).await?;
        eventually("status tells of the job that runs", || async {
            let status: serde_json::Value = serde_json::from_str(&self.command(CommandKind::Status).await?.data_json)?;
            Ok((status["running"].as_u64() > Some(0)).then_some(()))
        })
        .await
    }

    /// Waits until all jobs of the channel have ended; no more than 1,000.
    pub async fn all_ended(&self) -> Verdict<Vec<Job>> {
        eventually("all jobs end", || async {
            let jobs = self.jobs().await?;
            Ok(jobs.iter().all(|job| job.status.is_terminal()).then_some(jobs))
        })
        .await
    }

    /// All jobs of the channel; no more than 1,000.
    pub async fn jobs(&self) -> Verdict<Vec<Job>> {
        Ok(self.client.list(&JobFilter::default().channel(&self.part.channel).limit(1_000)).await?)
    }
}

/// The result of a job that must have completed at its first attempt.
pub fn completed_at_once(job: &Job) -> Verdict<String> {
    let result = completed(job)?;
    ensure!(job.attempt == 1, "the job should run once, and ran {} times", job.attempt);
    Ok(result)
}

/// The result of a job that must have completed.
pub fn completed(job: &Job) -> Verdict<String> {
    let error = job.last_error.as_deref().unwrap_or("no error");
    ensure!(job.status == JobStatus::Completed, "{} should complete, and is {:?} ({error})", job.func, job.status);
    Ok(job.result_json.clone().unwrap_or_default())
}

/// The error of a job that must have failed.
pub fn failed(job: &Job) -> Verdict<&str> {
    ensure!(job.status == JobStatus::Failed, "{} should fail, and is {:?}", job.func, job.status);
    Ok(job.last_error.as_deref().unwrap_or_default())
}
