//! Hints on their way to Redis, which nobody waits for.
//!
//! A commit that waited for Redis to hear of it would add its distance to every publish, and would stall with it. So
//! hints go out behind the caller's back, in order, and those that gather meanwhile go out together. A full outbox makes
//! callers wait: a Redis that is slow slows publishers down, and one that is lost drops hints at once.

use std::{collections::HashMap, sync::Arc};

use futures::{StreamExt, future::BoxFuture, stream};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::{leases::Leases, windows::Windows};
use crate::{
    model::{JobId, Lease, job::Ready},
    queue::Offer,
};

/// Hints that may wait to go out; each is of a whole batch.
const WAITING_MAX: usize = 64;
/// Hints that go out together.
const ROUND_MAX: usize = 64;
/// Channels told at once.
const CHANNELS_MAX: usize = 64;

pub(super) enum Hint {
    Offer(Vec<Offer>),
    Forget(Vec<Ready>),
    Suspect(Vec<Arc<str>>),
    Release(Vec<Lease>),
    /// Answered when everything before it is out.
    Flush(oneshot::Sender<()>),
}

pub(super) struct Outbox {
    hints: mpsc::Sender<Hint>,
    delivery: Arc<Delivery>,
}

impl Outbox {
    /// The handle, and the loop behind it. Once `stopped`, it lets out what is waiting, and ends.
    pub(super) fn new(
        windows: Arc<Windows>,
        leases: Arc<Leases>,
        stopped: CancellationToken,
    ) -> (Outbox, impl Future<Output = ()> + Send + 'static) {
        let (hints, inbox) = mpsc::channel(WAITING_MAX);
        let delivery = Arc::new(Delivery { windows, leases });
        (Outbox { hints, delivery: delivery.clone() }, run(inbox, delivery, stopped))
    }

    pub(super) async fn post(&self, hint: Hint) {
        if let Err(mpsc::error::SendError(hint)) = self.hints.send(hint).await {
            // The loop has stopped before its callers, whose last commits are told of here.
            self.delivery.round(vec![hint]).await;
        }
    }
}

async fn run(mut inbox: mpsc::Receiver<Hint>, delivery: Arc<Delivery>, stopped: CancellationToken) {
    let mut round = Vec::new();
    loop {
        // Cancel-safe: a receive that is dropped takes nothing out.
        let received = tokio::select! {
            biased;
            received = inbox.recv_many(&mut round, ROUND_MAX) => received,
            () = stopped.cancelled(), if !inbox.is_closed() => {
                inbox.close();
                continue;
            }
        };
        if received == 0 {
            return;
        }
        delivery.round(std::mem::take(&mut round)).await;
    }
}

struct Delivery {
    windows: Arc<Windows>,
    leases: Arc<Leases>,
}

/// What a round has to say of one channel.
#[derive(Default)]
struct News {
    forgotten: Vec<JobId>,
    is_suspect: bool,
    offers: Vec<Offer>,
    /// Offers that were handed in, whatever became of them since.
    offered: usize,
}

impl Delivery {
    /// Leases end first, so that a job which is lined up again can be held again.
    async fn round(&self, hints: Vec<Hint>) {
        let mut over = Vec::new();
        let mut channels: HashMap<Arc<str>, News> = HashMap::new();
        let mut flushed = Vec::new();
        for hint in hints {
            match hint {
                Hint::Release(leases) => over.extend(leases),
                Hint::Suspect(names) => {
                    for name in names {
                        channels.entry(name).or_default().is_suspect = true;
                    }
                }
                Hint::Forget(jobs) => {
                    for job in jobs {
                        channels.entry(job.channel).or_default().forget(job.id);
                    }
                }
                Hint::Offer(offers) => {
                    for offer in offers {
                        let news = channels.entry(offer.ready.channel.clone()).or_default();
                        news.offered += 1;
                        news.offers.push(offer);
                    }
                }
                Hint::Flush(done) => flushed.push(done),
            }
        }
        if !over.is_empty() {
            self.leases.release(&over).await;
        }
        let told = channels.into_iter().map(|(channel, news)| self.tell(channel, news));
        stream::iter(told).buffer_unordered(CHANNELS_MAX).collect::<()>().await;
        for done in flushed {
            // Who waited may have gone.
            let _ = done.send(());
        }
    }

    fn tell(&self, channel: Arc<str>, news: News) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            if !news.forgotten.is_empty() {
                self.windows.forget(&channel, &news.forgotten).await;
            }
            if news.is_suspect {
                self.windows.suspect(&channel).await;
            }
            if !news.offers.is_empty() {
                self.windows.offer(&channel, news.offers).await;
            }
            if news.offered > 0 {
                self.windows.end_offers(&channel, news.offered);
            }
        })
    }
}

impl News {
    /// What was offered before in the same round is forgotten too.
    fn forget(&mut self, id: JobId) {
        self.offers.retain(|offer| offer.ready.id != id);
        self.forgotten.push(id);
    }
}
