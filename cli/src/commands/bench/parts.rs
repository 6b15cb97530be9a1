//! The parts of a run, one after the other, and what is told of them while they last.

use std::{
    io::{IsTerminal, Write},
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicU64, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::time::{Instant, interval};

use super::{
    ClientError, Figures, Part, Target, Workload,
    crew::Crew,
    idle,
    limits::Limits,
    load::{Mould, Publishers, Until},
    paced,
    report::{Rate, SINGLES_IN_FLIGHT},
    rest,
};

/// How many single publishes are in flight, by turns.
const IN_FLIGHT: [usize; 3] = [1, SINGLES_IN_FLIGHT, 256];
/// Jobs a second at which latency is measured; the figure of the answer is the first one's.
const PACES: [u32; 2] = [1_000, 5_000];
/// How often a part that takes long says how far it is.
const PROGRESS: Duration = Duration::from_secs(5);

/// A run under way.
pub struct Run {
    target: Target,
    workload: Workload,
    folder: PathBuf,
    figures: Figures,
}

impl Run {
    pub fn new(target: Target, workload: Workload, folder: &Path) -> Run {
        let figures = Figures { rss_idle_mib: memory_mib(&target).map(|(in_use, _)| in_use), ..Figures::default() };
        Run { target, workload, folder: folder.to_owned(), figures }
    }

    /// Ends the service, where it was started for this run.
    pub async fn finish(mut self) -> Result<Figures, ClientError> {
        self.figures.rss_mib = memory_mib(&self.target).map(|(_, most)| most);
        if let Some(service) = self.target.service {
            service.stop().await;
        }
        Ok(self.figures)
    }

    pub async fn measure(&mut self, part: Part) -> Result<(), ClientError> {
        match part {
            Part::Limits => {
                let mould = self.mould("limits");
                let limits = Limits::measure(&self.folder, &mould, self.workload.duration).await?;
                say(&format!(
                    "limits: {:.0} calls/s, {:.0} rows/s, {:.0} fsyncs/s",
                    limits.unary_echo_per_s, limits.store_insert_per_s, limits.fsync_per_s
                ));
                self.figures.limits = Some(limits);
            }
            Part::IdleRunners => {
                self.figures.idle_runner_kib = idle::memory_kib(&self.target, self.workload.idle_runners).await?;
                say(&format!("idle runners: {:.0} KiB each", self.figures.idle_runner_kib.unwrap_or_default()));
            }
            Part::PublishSingle => {
                for in_flight in IN_FLIGHT {
                    let mould = self.mould(&format!("single-{in_flight}"));
                    let publishers = Publishers::singles(&self.target, &mould, in_flight, self.end()).await?;
                    let name = format!("publish, {in_flight} in flight");
                    let rate = self.publish(&name, &mould, publishers).await?;
                    self.figures.publish_single.insert(in_flight, rate);
                }
            }
            Part::PublishBatch => {
                let mould = self.mould("batch");
                let publishers = Publishers::batches(&self.target, &mould, self.end()).await?;
                self.figures.publish_batch = Some(self.publish("publish, batches", &mould, publishers).await?);
            }
            Part::PublishStream => {
                let mould = self.mould("stream");
                let publishers = Publishers::streams(&self.target, &mould, self.end()).await?;
                self.figures.publish_stream = Some(self.publish("publish, streams", &mould, publishers).await?);
            }
            Part::PublishRest => self.figures.publish_rest = self.publish_rest().await?,
            Part::Drain => self.figures.drain = Some(self.drain().await?),
            Part::EndToEndSingle => self.figures.end_to_end_single = Some(self.end_to_end_single().await?),
            Part::EndToEndBatch => self.figures.end_to_end_batch = Some(self.end_to_end_batch().await?),
            Part::Latency => {
                for pace in PACES {
                    let latency = paced::latency(&self.target, &self.workload, pace).await?;
                    let of = &latency.from_intended_ms;
                    say(&format!(
                        "latency at {pace}/s: p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms",
                        of.p50, of.p99, of.max
                    ));
                    self.figures.latency.push(latency);
                }
            }
        }
        Ok(())
    }

    fn mould(&self, part: &str) -> Mould {
        Mould::new(part, self.workload.channels, self.workload.payload_bytes)
    }

    fn end(&self) -> Until {
        Until::Time(Instant::now() + self.workload.duration)
    }

    async fn crew(&self, mould: &Mould) -> Result<Crew, ClientError> {
        Crew::attach(&self.target, &mould.channels, self.workload.runners, self.workload.capacity, None).await
    }

    /// The rate at which publishers get their answers. What they published is done afterwards, unmeasured.
    async fn publish(&self, name: &str, mould: &Mould, publishers: Publishers) -> Result<Rate, ClientError> {
        let clock = Clock::start(&self.target);
        let counter = publishers.published.clone();
        let jobs = watched(name, || counter.load(Relaxed), publishers.done(&self.target)).await?;
        let rate = clock.rate(&self.target, jobs);
        say(&format!("{name}: {rate}"));
        self.clear(mould, jobs).await?;
        Ok(rate)
    }

    async fn publish_rest(&self) -> Result<Option<Rate>, ClientError> {
        let Some((address, token)) = &self.target.rest else { return Ok(None) };
        let mould = self.mould("rest");
        let clock = Clock::start(&self.target);
        let jobs = rest::publish(address, token, &mould, Instant::now() + self.workload.duration).await?;
        let rate = clock.rate(&self.target, jobs);
        say(&format!("publish, REST: {rate}"));
        self.clear(&mould, jobs).await?;
        Ok(Some(rate))
    }

    async fn clear(&self, mould: &Mould, jobs: u64) -> Result<(), ClientError> {
        let mut crew = self.crew(mould).await?;
        let receipts = crew.receipts();
        watched("clearing", || receipts.accepted(), crew.until(jobs)).await
    }

    async fn drain(&self) -> Result<Rate, ClientError> {
        let mould = self.mould("drain");
        let until = Until::Jobs(Arc::new(AtomicU64::new(self.workload.drain_jobs)));
        let publishers = Publishers::batches(&self.target, &mould, until).await?;
        let counter = publishers.published.clone();
        let jobs = watched("filling", || counter.load(Relaxed), publishers.done(&self.target)).await?;
        let clock = Clock::start(&self.target);
        self.clear(&mould, jobs).await?;
        let rate = clock.rate(&self.target, jobs);
        say(&format!("drain: {rate}"));
        Ok(rate)
    }

    async fn end_to_end_single(&self) -> Result<Rate, ClientError> {
        let mould = self.mould("e2e-single");
        let crew = self.crew(&mould).await?;
        let clock = Clock::start(&self.target);
        let publishers = Publishers::singles(&self.target, &mould, SINGLES_IN_FLIGHT, self.end()).await?;
        self.end_to_end("end to end, 64 in flight", clock, publishers, crew).await
    }

    async fn end_to_end_batch(&self) -> Result<Rate, ClientError> {
        let mould = self.mould("e2e-batch");
        let crew = self.crew(&mould).await?;
        let clock = Clock::start(&self.target);
        let publishers = Publishers::batches(&self.target, &mould, self.end()).await?;
        self.end_to_end("end to end, batches", clock, publishers, crew).await
    }

    /// All jobs that were published, over the time until the last of them had its receipt.
    async fn end_to_end(
        &self,
        name: &str,
        clock: Clock,
        publishers: Publishers,
        mut crew: Crew,
    ) -> Result<Rate, ClientError> {
        let receipts = crew.receipts();
        let jobs = watched(name, || receipts.accepted(), publishers.done(&self.target)).await?;
        watched(name, || receipts.accepted(), crew.until(jobs)).await?;
        let rate = clock.rate(&self.target, jobs);
        say(&format!("{name}: {rate}"));
        Ok(rate)
    }
}

/// In use, and the most that ever was.
fn memory_mib(target: &Target) -> Option<(f64, f64)> {
    let (in_use, most) = target.service.as_ref()?.memory_kib()?;
    Some((in_use as f64 / 1024.0, most as f64 / 1024.0))
}

/// When a part began, and what the service had cost by then.
struct Clock {
    begin: Instant,
    processor: Option<Duration>,
}

impl Clock {
    fn start(target: &Target) -> Clock {
        Clock { begin: Instant::now(), processor: processor_time(target) }
    }

    fn rate(&self, target: &Target, jobs: u64) -> Rate {
        let processor = self.processor.zip(processor_time(target)).map(|(before, after)| after.saturating_sub(before));
        Rate::new(jobs, self.begin.elapsed(), processor)
    }
}

fn processor_time(target: &Target) -> Option<Duration> {
    target.service.as_ref()?.processor_time()
}

/// Tells how far a part is, as long as it lasts.
async fn watched<T>(name: &str, count: impl Fn() -> u64, part: impl Future<Output = T>) -> T {
    let mut part = std::pin::pin!(part);
    let mut ticks = interval(PROGRESS);
    ticks.tick().await;
    loop {
        // Cancel-safe: the part goes on in the next round.
        tokio::select! {
            done = &mut part => return done,
            _ = ticks.tick() => say(&format!("{name}: {} jobs so far", count())),
        }
    }
}

/// Progress is for whoever waits; where standard error is closed, nobody does.
fn say(line: &str) {
    let mut stderr = std::io::stderr();
    let mark = if stderr.is_terminal() { "· " } else { "" };
    let _ = writeln!(stderr, "{mark}{line}");
}
