//! The engine: takes jobs, keeps them, hands them to runners and settles them.
//!
//! Everything a caller may do goes through [`Engine::on_behalf`], which checks permission first. Behind it, jobs move
//! only by [`crate::model::lifecycle::step`], and steps are stored only by the [`committer`].

mod broadcast;
mod committer;
pub mod control;
pub mod error;
mod feeder;
mod health;
mod janitor;
pub mod messages;
mod metrics;
mod on_behalf;
pub mod publish;
mod reading;
mod reaper;
mod registry;
mod session;
mod transition;

use std::{sync::Arc, time::Duration};

use futures::FutureExt;
use tokio::sync::{Notify, broadcast as channel, watch};
use tokio_util::sync::CancellationToken;

pub use control::Order;
pub use error::EngineError;
pub use health::{ChannelHealth, ChannelStats, Stats, Stuck, SystemHealth};
pub use metrics::Metrics;
pub use on_behalf::OnBehalf;
pub use publish::{Overrides, Published};
pub use reading::JobView;
pub use session::Attachment;
pub use transition::{Cancellation, Retried};

use crate::{
    clock::{Clock, Dice},
    drain::Drain,
    model::{Caller, Hint, Job, JobEvent, Step, Timestamp, job::Ready, limits::Limits},
    queue::{Offer, Queue},
    store::Store,
};
use committer::Committer;
use metrics::MetricsBook;
use registry::Registry;

/// Payloads up to this size are kept beside their hint, so that a claim reads nothing.
const AT_HAND_MAX: usize = 2 * 1_024;
/// Events a slow watcher may fall behind before it is told so.
const WATCH_BACKLOG: usize = 8_192;
/// How often the store is asked whether it answers.
const HEALTH_INTERVAL: Duration = Duration::from_millis(500);
/// How long the store may take to answer that.
const HEALTH_PATIENCE: Duration = Duration::from_millis(1_500);
/// How long sessions may take to leave after GoAway.
const GO_AWAY_PATIENCE: Duration = Duration::from_millis(1_500);

/// What an operator chooses.
#[derive(Debug, Clone)]
pub struct Settings {
    pub limits: Limits,
    pub timings: messages::Timings,
    pub node_id: Arc<str>,
}

/// What the engine stands on.
pub struct Parts {
    pub store: Arc<dyn Store>,
    pub queue: Arc<dyn Queue>,
    pub clock: Arc<dyn Clock>,
    pub dice: Arc<dyn Dice>,
}

/// A handle; clones are the same engine.
#[derive(Clone)]
pub struct Engine(Arc<Shared>);

pub(crate) struct Shared {
    settings: Settings,
    store: Arc<dyn Store>,
    queue: Arc<dyn Queue>,
    clock: Arc<dyn Clock>,
    dice: Arc<dyn Dice>,
    committer: Committer,
    registry: Registry,
    alarm: Arc<feeder::Alarm>,
    metrics: Arc<MetricsBook>,
    events: channel::Sender<(JobEvent, Arc<Job>)>,
    parents: Arc<broadcast::Parents>,
    /// Notified when a runner attaches: a broadcast job may have waited for it.
    attached: Notify,
    health: watch::Sender<bool>,
    leaving: CancellationToken,
    drain: Drain,
}

impl Engine {
    /// Starts the loops on `drain`.
    pub fn start(settings: Settings, parts: Parts, drain: Drain) -> Engine {
        let Parts { store, queue, clock, dice } = parts;
        let metrics = Arc::new(MetricsBook::default());
        let alarm = Arc::new(feeder::Alarm::default());
        let parents = Arc::new(broadcast::Parents::default());
        let (events, _) = channel::channel(WATCH_BACKLOG);
        let heard = {
            let (queue, clock) = (queue.clone(), clock.clone());
            let (metrics, alarm, parents, events) = (metrics.clone(), alarm.clone(), parents.clone(), events.clone());
            Box::new(move |steps: Vec<Step>| {
                metrics.record(&steps);
                parents.hear(&steps);
                let hints = Hints::of(&steps, clock.now());
                for step in steps {
                    if let Some(event) = step.event {
                        // Nobody may be watching.
                        let _ = events.send((event, step.job));
                    }
                }
                if let Some(at) = hints.earliest {
                    alarm.set(at);
                }
                let queue = queue.clone();
                async move {
                    queue.forget(&hints.forget).await;
                    queue.offer(hints.offers).await;
                }
                .boxed()
            })
        };
        let (committer, committing) =
            Committer::new(store.clone(), settings.limits.pending_writes_max, heard, drain.token());
        drain.spawn("committer", committing);
        let registry = Registry::new(settings.timings.heartbeat_interval * 2, settings.limits.sessions_max);
        let shared = Arc::new(Shared {
            settings,
            store,
            queue,
            clock,
            dice,
            committer,
            registry,
            alarm,
            metrics,
            events,
            parents,
            attached: Notify::new(),
            health: watch::Sender::new(true),
            leaving: CancellationToken::new(),
            drain: drain.clone(),
        });
        drain.spawn("feeder", feeder::run(shared.clone()));
        drain.spawn("reaper", reaper::run(shared.clone()));
        drain.spawn("janitor", janitor::run(shared.clone()));
        drain.spawn("broadcasts", broadcast::run(shared.clone()));
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

/// What the queue should hear of stored steps.
#[derive(Default)]
struct Hints {
    offers: Vec<Offer>,
    forget: Vec<crate::model::JobId>,
    /// When the first of those that are not ready yet becomes so.
    earliest: Option<Timestamp>,
}

impl Hints {
    fn of(steps: &[Step], now: Timestamp) -> Hints {
        let mut hints = Hints::default();
        for step in steps {
            match step.hint {
                Hint::None => {}
                Hint::Forget => hints.forget.push(step.job.id),
                Hint::Offer if step.job.ready_at > now || step.job.broadcast => {
                    let at = step.job.ready_at;
                    hints.earliest = Some(hints.earliest.map_or(at, |earliest| earliest.min(at)));
                }
                Hint::Offer => hints.offers.push(offer_of(&step.job)),
            }
        }
        hints
    }
}

fn offer_of(job: &Arc<Job>) -> Offer {
    let ready = Ready { id: job.id, channel: job.channel.clone(), priority: job.priority, ready_at: job.ready_at };
    let small = job.payload.len() + job.metadata.len() <= AT_HAND_MAX;
    Offer { ready, job: small.then(|| job.clone()) }
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
