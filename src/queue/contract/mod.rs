//! What every queue must keep, whatever is behind it. Each case gets a fresh queue whose windows hold four jobs.

mod leases;
mod waiters;
mod windows;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::sync::Notify;

use super::{Offer, Queue, Waiter, memory::MemoryQueue};
use crate::model::{JobId, Timestamp, job::Ready};

/// Jobs that the window of a channel holds in these tests.
pub const WINDOW_MAX: usize = 4;
/// How long a test waits for what should happen at once.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A queue, and how a test reaches behind it.
pub struct Bench {
    pub queue: Arc<dyn Queue>,
    pub backstage: Box<dyn Backstage>,
}

#[async_trait]
pub trait Backstage: Send + Sync {
    /// Leases see this much time pass, and the next look for lapsed ones is not put off.
    async fn pass(&self, time: Duration);

    /// Waits until everything that was handed in has arrived.
    async fn settle(&self);
}

impl Bench {
    pub async fn offer(&self, offers: Vec<Offer>) {
        self.queue.offer(offers).await;
        self.backstage.settle().await;
    }

    pub async fn suspect(&self, name: &str) {
        self.queue.suspect(&[channel(name)]).await;
        self.backstage.settle().await;
    }

    /// The channels that are to be looked through.
    pub async fn hungry(&self) -> Vec<Arc<str>> {
        self.queue.hungry().await.into_iter().map(|look| look.channel).collect()
    }

    /// Begins the one look that is due, through this channel: tells the job behind which it begins.
    pub async fn look(&self, name: &str) -> Option<u128> {
        let looks = self.queue.hungry().await;
        assert_eq!(looks.len(), 1, "{looks:?}");
        assert_eq!(looks[0].channel, channel(name));
        looks[0].after.as_ref().map(|ready| ready.id.0.as_u128())
    }

    /// The numbers of the jobs taken, in order.
    pub async fn take(&self, names: &[&str], max: usize, waiter: &Waiter) -> Vec<u128> {
        let channels: Vec<Arc<str>> = names.iter().map(|name| channel(name)).collect();
        let offers = self.queue.take(&channels, max, waiter).await;
        offers.iter().map(|offer| offer.ready.id.0.as_u128()).collect()
    }

    /// What somebody takes who comes by.
    pub async fn all_of(&self, name: &str) -> Vec<u128> {
        let passer_by = waiter(999);
        let all = self.take(&[name], 1_000, &passer_by).await;
        self.queue.leave(&[channel(name)], &passer_by).await;
        all
    }
}

pub fn channel(name: &str) -> Arc<str> {
    name.into()
}

pub fn id(number: u128) -> JobId {
    JobId(uuid::Uuid::from_u128(number))
}

pub fn offer(number: u128, name: &str, priority: i32, ready_at: i64) -> Offer {
    Offer {
        ready: Ready { id: id(number), channel: channel(name), priority, ready_at: Timestamp(ready_at) },
        job: None,
    }
}

pub fn waiter(number: u64) -> Waiter {
    Waiter { number, notify: Arc::new(Notify::new()) }
}

/// Waits for it.
pub async fn is_woken(waiter: &Waiter) -> bool {
    tokio::time::timeout(PATIENCE, waiter.notify.notified()).await.is_ok()
}

/// Whether it has not been woken so far.
pub fn still_waits(waiter: &Waiter) -> bool {
    use futures::FutureExt;
    waiter.notify.notified().now_or_never().is_none()
}

struct Memory;

#[async_trait]
impl Backstage for Memory {
    async fn pass(&self, time: Duration) {
        tokio::time::advance(time).await;
    }

    async fn settle(&self) {}
}

fn memory() -> Bench {
    Bench { queue: Arc::new(MemoryQueue::new(WINDOW_MAX)), backstage: Box::new(Memory) }
}

/// Runs each case on a fresh queue of each kind.
macro_rules! on_every_queue {
    ($($group:ident::$case:ident),* $(,)?) => {
        mod in_memory {
            $(
                #[tokio::test(start_paused = true)]
                async fn $case() {
                    super::$group::$case(&super::memory()).await;
                }
            )*
        }
        on_redis!(in_redis, one_server, $($group::$case),*);
        on_redis!(in_a_cluster, cluster, $($group::$case),*);
        on_redis!(in_redis_over_tls, over_tls, $($group::$case),*);
        on_redis!(in_valkey, valkey, $($group::$case),*);
    };
}

macro_rules! on_redis {
    ($module:ident, $server:ident, $($group:ident::$case:ident),*) => {
        mod $module {
            use crate::{queue::redis::tests::fresh, redis_link::servers};

            $(
                #[tokio::test]
                async fn $case() {
                    super::$group::$case(&fresh(&servers::$server()).await).await;
                }
            )*
        }
    };
}

on_every_queue!(
    windows::jobs_are_taken_by_priority_then_time_then_age,
    windows::among_channels_the_longest_waiting_comes_first,
    windows::a_repeated_offer_is_one_job,
    windows::a_job_offered_for_another_time_moves,
    windows::a_forgotten_job_is_not_taken,
    windows::what_finds_no_room_is_left_to_a_refill,
    windows::a_full_window_keeps_the_front_of_the_line,
    windows::later_jobs_do_not_overtake_those_in_the_store,
    windows::what_is_offered_during_a_look_lines_up_behind_it,
    windows::what_finds_no_room_during_a_look_keeps_the_channel_hungry,
    windows::a_refill_that_is_not_complete_keeps_the_channel_hungry,
    windows::a_look_goes_on_behind_what_was_lined_up,
    windows::what_is_offered_in_front_of_where_a_look_begins_is_lined_up,
    windows::what_is_offered_during_a_look_that_reads_past_it_is_lined_up,
    windows::what_no_longer_fits_is_where_the_next_look_begins,
    windows::a_suspicion_has_the_whole_line_looked_through,
    windows::a_line_is_as_long_as_a_look_leaves_it,
    windows::a_line_has_any_length_while_the_store_may_hold_more,
    waiters::an_offer_wakes_one_who_waits_for_its_channel,
    waiters::one_who_leaves_passes_its_turn_on,
    waiters::one_who_takes_less_than_there_is_wakes_the_next,
    waiters::a_refill_wakes_one_for_each_job,
    waiters::one_who_took_enough_waits_for_nothing,
    leases::a_lease_lapses_once_and_tells_whether_it_was_accepted,
    leases::a_held_lease_is_given_to_nobody_else,
    leases::only_its_holder_renews_a_lease,
    leases::a_lease_that_nobody_holds_is_taken_up_by_who_renews_it,
    leases::a_lapsed_lease_that_is_renewed_lapses_again,
    leases::a_closed_stream_shortens_its_leases_and_never_lengthens_one,
    leases::a_released_lease_never_lapses,
);
