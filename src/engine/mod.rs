//! The engine: takes jobs, keeps them, hands them to runners and settles them.
//!
//! Everything a caller may do goes through [`Engine::on_behalf`], which checks permission first. Behind it, jobs move
//! only by [`crate::model::lifecycle::step`], and steps are stored only by the [`committer`].

mod agenda;
mod alarm;
mod arrivals;
mod broadcast;
mod committer;
pub mod control;
pub mod error;
mod feeder;
mod health;
mod interrupts;
mod janitor;
mod matchmaker;
mod membership;
pub mod messages;
mod metrics;
mod on_behalf;
mod outage;
pub mod publish;
mod reading;
mod reaper;
mod registry;
mod retention;
mod session;
mod transition;
mod vacancies;

use std::{sync::Arc, time::Duration};

use futures::FutureExt;
use tokio::sync::{Notify, broadcast as channel, mpsc, watch};
use tokio_util::sync::CancellationToken;

pub use control::Order;
pub use error::EngineError;
pub use health::{ChannelHealth, ChannelStats, Stats, Stuck, SystemHealth};
pub use metrics::Metrics;
pub use on_behalf::OnBehalf;
pub use publish::{Overrides, Published};
pub use reading::JobView;
pub use retention::RetentionStats;
pub use session::Attachment;
pub use transition::{Cancellation, Retried};

use crate::{
    clock::{Clock, Dice},
    drain::Drain,
    fleet::Fleet,
    model::{
        Caller, Hint, Job, JobEvent, Status, Step, Timestamp,
        job::Ready,
        limits::{Limits, Retention},
    },
    queue::{Offer, Queue},
    store::Store,
};
use alarm::Alarm;
use committer::Committer;
use janitor::Duty;
use matchmaker::Matchmaker;
use membership::Membership;
use metrics::MetricsBook;
use registry::Registry;
use vacancies::Vacancies;

/// Payloads up to this size are kept beside their hint, so that a claim reads nothing.
const AT_HAND_MAX: usize = 2 * 1_024;
/// Events a slow watcher may fall behind before it is told so.
const WATCH_BACKLOG: usize = 8_192;
/// How often the store is asked whether it answers.
const HEALTH_INTERVAL: Duration = Duration::from_millis(700);
/// How long the store may take to answer that.
const HEALTH_PATIENCE: Duration = Duration::from_millis(1_500);
/// How long sessions may take to leave after GoAway.
const GO_AWAY_PATIENCE: Duration = Duration::from_millis(1_500);

/// What an operator chooses.
#[derive(Debug, Clone)]
pub struct Settings {
    pub limits: Limits,
    pub timings: messages::Timings,
    pub retention: Retention,
    pub node_id: Arc<str>,
}

/// What the engine stands on.
pub struct Parts {
    pub store: Arc<dyn Store>,
    pub queue: Arc<dyn Queue>,
    pub fleet: Arc<dyn Fleet>,
    pub clock: Arc<dyn Clock>,
    pub dice: Arc<dyn Dice>,
}

/// When the loops must look again, as far as this node knows. What other nodes stored, the leader finds in the agenda.
#[derive(Default)]
struct Alarms {
    /// A delayed job becomes ready.
    ready: Alarm,
    /// An execution is over its limit.
    overrun: Alarm,
    /// A pending job expires.
    expiry: Alarm,
    /// A broadcast job becomes ready.
    broadcast: Alarm,
    /// A broadcast job runs; it may be time to settle it.
    parent: Alarm,
}

/// A handle; clones are the same engine.
#[derive(Clone)]
pub struct Engine(Arc<Shared>);

pub(crate) struct Shared {
    settings: Settings,
    store: Arc<dyn Store>,
    queue: Arc<dyn Queue>,
    fleet: Arc<dyn Fleet>,
    clock: Arc<dyn Clock>,
    dice: Arc<dyn Dice>,
    committer: Committer,
    registry: Arc<Registry>,
    vacancies: Arc<Vacancies>,
    membership: Arc<Membership>,
    alarms: Arc<Alarms>,
    metrics: Arc<MetricsBook>,
    removals: retention::Book,
    events: channel::Sender<(JobEvent, Arc<Job>)>,
    parents: Arc<broadcast::Parents>,
    /// Notified when a runner attaches: a broadcast job may have waited for it.
    attached: Notify,
    health: watch::Sender<bool>,
    /// Interrupts to be tried again.
    undelivered: mpsc::Sender<interrupts::Undelivered>,
    leaving: CancellationToken,
    drain: Drain,
}

impl Engine {
    /// Starts the loops on `drain`.
    pub fn start(settings: Settings, parts: Parts, drain: Drain) -> Engine {
        let Parts { store, queue, fleet, clock, dice } = parts;
        let metrics = Arc::new(MetricsBook::default());
        let alarms = Arc::new(Alarms::default());
        let membership = Arc::new(Membership::default());
        let parents = Arc::new(broadcast::Parents::default());
        let (events, _) = channel::channel(WATCH_BACKLOG);
        let heard = Hearing {
            queue: queue.clone(),
            fleet: fleet.clone(),
            clock: clock.clone(),
            metrics: metrics.clone(),
            membership: membership.clone(),
            alarms: alarms.clone(),
            parents: parents.clone(),
            events: events.clone(),
        };
        let heard = Box::new(move |steps| heard.clone().hear(steps).boxed());
        let silent_after = settings.timings.silent_after();
        let registry =
            Registry::new(fleet.clone(), settings.node_id.clone(), silent_after, settings.limits.sessions_max);
        let (registry, vacancies) = (Arc::new(registry), Arc::new(Vacancies::default()));
        let matchmaker = Matchmaker {
            vacancies: vacancies.clone(),
            registry: registry.clone(),
            queue: queue.clone(),
            clock: clock.clone(),
            accept_timeout: settings.timings.accept_timeout,
        };
        let (committer, committing) =
            Committer::new(store.clone(), settings.limits.pending_writes_max, matchmaker, heard, drain.token());
        drain.spawn("committer", committing);
        let (undelivered, to_deliver) = mpsc::channel(interrupts::UNDELIVERED_MAX);
        let shared = Arc::new(Shared {
            settings,
            store,
            queue,
            fleet,
            clock,
            dice,
            committer,
            registry,
            vacancies,
            membership,
            alarms,
            metrics,
            removals: retention::Book::default(),
            events,
            parents,
            attached: Notify::new(),
            health: watch::Sender::new(true),
            undelivered,
            leaving: CancellationToken::new(),
            drain: drain.clone(),
        });
        drain.spawn("membership", membership::run(shared.clone()));
        drain.spawn("letters", membership::read(shared.clone()));
        drain.spawn("feeder", feeder::run(shared.clone()));
        drain.spawn("arrivals", arrivals::run(shared.clone()));
        drain.spawn("reaper", reaper::run(shared.clone()));
        drain.spawn("interrupts", interrupts::run(shared.clone(), to_deliver));
        drain.spawn("agenda", agenda::run(shared.clone()));
        drain.spawn("expiry", janitor::run(shared.clone(), Duty::Expiry));
        drain.spawn("time limits", janitor::run(shared.clone(), Duty::TimeLimit));
        drain.spawn("broadcasts", broadcast::run(shared.clone()));
        drain.spawn("retention", retention::run(shared.clone()));
        drain.spawn("store health", watch_store(shared.clone()));
        Engine(shared)
    }

    /// The door: what `caller` may do, it does through here.
    pub fn on_behalf(&self, caller: Caller) -> OnBehalf {
        OnBehalf::new(self.0.clone(), caller)
    }

    pub fn limits(&self) -> &Limits {
        &self.0.settings.limits
    }

    pub fn now(&self) -> Timestamp {
        self.0.clock.now()
    }

    /// True while the store answers and the service is not leaving.
    pub fn health(&self) -> watch::Receiver<bool> {
        self.0.health.subscribe()
    }

    /// No new work: health turns, every session hears GoAway. Returns once the sessions are closed, or patience is over.
    pub async fn go_away(&self) {
        self.0.health.send_replace(false);
        self.0.leaving.cancel();
        let closed = async {
            while self.0.registry.attached() > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        // Sessions that did not leave by themselves are closed with their connection.
        let _ = tokio::time::timeout(GO_AWAY_PATIENCE, closed).await;
    }

    /// Stops the loops. Writes that were accepted are stored first.
    pub async fn stop(&self) {
        self.0.drain.stop().await;
    }
}

impl Shared {
    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Completes at once when the loops must stop.
    fn stopped(&self) -> CancellationToken {
        self.drain.token()
    }
}

/// Whoever must hear of stored steps, before their writers do.
#[derive(Clone)]
struct Hearing {
    queue: Arc<dyn Queue>,
    fleet: Arc<dyn Fleet>,
    clock: Arc<dyn Clock>,
    metrics: Arc<MetricsBook>,
    membership: Arc<Membership>,
    alarms: Arc<Alarms>,
    parents: Arc<broadcast::Parents>,
    events: channel::Sender<(JobEvent, Arc<Job>)>,
}

impl Hearing {
    async fn hear(self, steps: Vec<Step>) {
        self.metrics.record(&steps);
        self.parents.hear(&steps);
        let now = self.clock.now();
        let (mut offers, mut forget) = (Vec::new(), Vec::new());
        for step in &steps {
            let job = &step.job;
            match step.hint {
                Hint::None => {}
                // A new job's claim comes right behind it.
                Hint::Forget if offers.last().is_some_and(|offer: &Offer| offer.ready.id == job.id) => {
                    drop(offers.pop())
                }
                Hint::Forget => forget.push(ready_of(job)),
                Hint::Offer if job.broadcast => self.alarms.broadcast.set(job.ready_at),
                Hint::Offer if job.ready_at > now => self.alarms.ready.set(job.ready_at),
                Hint::Offer => offers.push(offer_of(job)),
            }
            if let Some(at) = job.overrun_at().filter(|_| job.status == Status::Running) {
                self.alarms.overrun.set(at);
            }
        }
        self.queue.forget(&forget).await;
        self.queue.offer(offers).await;
        self.tell_watchers(steps).await;
    }

    async fn tell_watchers(&self, steps: Vec<Step>) {
        let elsewhere = self.membership.watching();
        if !elsewhere.is_empty() {
            let events: Vec<JobEvent> = steps.iter().filter_map(|step| step.event.clone()).collect();
            membership::send_events(&*self.fleet, &elsewhere, &events).await;
        }
        for step in steps {
            if let Some(event) = step.event {
                // Nobody may be watching.
                let _ = self.events.send((event, step.job));
            }
        }
    }
}

fn ready_of(job: &Job) -> Ready {
    Ready { id: job.id, channel: job.channel.clone(), priority: job.priority, ready_at: job.ready_at }
}

fn offer_of(job: &Arc<Job>) -> Offer {
    let small = job.payload.len() + job.metadata.len() <= AT_HAND_MAX;
    Offer { ready: ready_of(job), job: small.then(|| job.clone()) }
}

/// Keeps [`Engine::health`] true to the store.
async fn watch_store(shared: Arc<Shared>) {
    let stopped = shared.stopped();
    loop {
        let answered = tokio::time::timeout(HEALTH_PATIENCE, shared.store.ping()).await;
        let well = matches!(answered, Ok(Ok(()))) && !shared.leaving.is_cancelled();
        shared.health.send_if_modified(|health| std::mem::replace(health, well) != well);
        tokio::select! {
            () = tokio::time::sleep(HEALTH_INTERVAL) => {}
            () = stopped.cancelled() => return,
        }
    }
}
