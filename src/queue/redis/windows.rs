//! The windows of ready jobs: one script a batch and channel.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{StreamExt, future::join_all, stream};
use redis::Value;

use super::{
    RedisSettings,
    access::Access,
    hunger::Hunger,
    keys::{Keys, place_of, ready_of},
    waiting::{Begun, Waiting},
};
use crate::{
    model::JobId,
    queue::{Look, Offer, Waiter},
    redis_link::{Call, Listener, Script},
};

/// Jobs in one call, within the arguments that a Lua function takes.
const CALL_MAX: usize = 500;
/// Channels in one call that takes; those of a cluster are in different slots, so there it is one.
const CALL_CHANNELS_MAX: usize = 64;
/// Rounds of calls in one take, where several calls each take a share.
const ROUNDS_MAX: usize = 8;
/// Calls under way at once for one purpose.
const CALLS_MAX: usize = 64;
/// How long a look into the store may take before another node may look too.
const LOOK_MAX: Duration = Duration::from_secs(5);
/// How long a suspicion stays that nobody acts on: sweeps of the store raise it again.
const SUSPICION_S: u64 = 86_400;

pub(super) struct Windows {
    access: Arc<Access>,
    hunger: Arc<Hunger>,
    keys: Keys,
    settings: RedisSettings,
    scripts: Scripts,
    waiting: Mutex<Waiting>,
    /// The looks that this node was given the right to, by channel.
    looks: Mutex<HashMap<Arc<str>, String>>,
    look_number: AtomicU64,
}

struct Scripts {
    offer: Script,
    take: Script,
    refill: Script,
    ask: Script,
    forget: Script,
}

/// What a take found in one channel.
struct Found {
    /// In the order of the line.
    offers: VecDeque<Offer>,
    left: usize,
    /// Whether the store may hold more.
    has_more: bool,
}

impl Windows {
    pub(super) fn new(access: Arc<Access>, hunger: Arc<Hunger>, settings: RedisSettings) -> Arc<Windows> {
        let scripts = Scripts {
            offer: Script::new(concat!(include_str!("scripts/seen.lua"), include_str!("scripts/offer.lua"))),
            take: Script::new(include_str!("scripts/take.lua")),
            refill: Script::new(concat!(include_str!("scripts/seen.lua"), include_str!("scripts/refill.lua"))),
            ask: Script::new(include_str!("scripts/ask.lua")),
            forget: Script::new(include_str!("scripts/forget.lua")),
        };
        let keys = Keys::new(access.link.prefix());
        let windows = Arc::new(Windows {
            access,
            hunger,
            keys,
            settings,
            scripts,
            waiting: Mutex::default(),
            looks: Mutex::default(),
            look_number: AtomicU64::new(0),
        });
        windows.access.link.listen(windows.announcements(), windows.clone());
        windows
    }

    /// Where offers are announced; messages of Redis know nothing of databases, so the name tells.
    fn announcements(&self) -> String {
        format!("{}:offers:{}", self.access.link.prefix(), self.settings.database_id)
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn looks(&self) -> MutexGuard<'_, HashMap<Arc<str>, String>> {
        self.looks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How few jobs make a channel hungry.
    fn low(&self) -> usize {
        self.settings.window_max / 2
    }

    /// A call of a script that lines jobs up: with what offers and refills have in common.
    fn lining_up<'s>(&self, script: &'s Script, channel: &str) -> Call<'s> {
        let keys = self.keys.channel(channel);
        let call = script.call(&[keys.window, keys.jobs, keys.more, keys.quiet, keys.late]);
        let call = call.arg(self.settings.window_max).arg(self.low());
        call.arg(self.announcements()).arg(format!(" {} {channel}", self.settings.node_id))
    }

    /// Lines up jobs of one channel.
    pub(super) async fn offer(&self, channel: &Arc<str>, offers: Vec<Offer>) {
        // The last word on each job counts.
        let mut jobs: HashMap<JobId, Offer> = HashMap::with_capacity(offers.len());
        jobs.extend(offers.into_iter().map(|offer| (offer.ready.id, offer)));
        let jobs: Vec<Offer> = jobs.into_values().collect();
        for chunk in jobs.chunks(CALL_MAX) {
            let mut call = self.lining_up(&self.scripts.offer, channel);
            for offer in chunk {
                call.push(&place_of(&offer.ready)[..]);
                call.push("");
            }
            if self.access.run::<i64>(&call).await == Ok(1) {
                self.hunger.note(channel);
            }
        }
    }

    pub(super) async fn forget(&self, channel: &Arc<str>, ids: &[JobId]) {
        let keys = self.keys.channel(channel);
        for chunk in ids.chunks(CALL_MAX) {
            let mut call = self.scripts.forget.call(&[&keys.window, &keys.jobs, &keys.late]);
            for id in chunk {
                call.push(&id.as_bytes()[..]);
            }
            // A job that stays lined up is a stale hint.
            let _ = self.access.run::<()>(&call).await;
        }
    }

    pub(super) async fn suspect(&self, channel: &Arc<str>) {
        let mut cmd = redis::cmd("SET");
        cmd.arg(self.keys.channel(channel).more).arg("u").arg("EX").arg(SUSPICION_S);
        if self.access.query::<()>(&cmd).await.is_ok() {
            self.hunger.note(channel);
        }
    }

    pub(super) async fn take(&self, channels: &[Arc<str>], max: usize, waiter: &Waiter) -> Vec<Offer> {
        let begun = {
            let mut waiting = self.waiting();
            if max == 0 || waiting.has_looked(channels, waiter) {
                return Vec::new();
            }
            waiting.begin(channels, waiter)
        };
        let per_call = if self.access.link.is_cluster() { 1 } else { CALL_CHANNELS_MAX };
        let mut groups: Vec<(&[Arc<str>], &[Begun])> = channels.chunks(per_call).zip(begun.chunks(per_call)).collect();
        let (mut lines, mut taken) = (Vec::new(), 0);
        for _ in 0..ROUNDS_MAX {
            let share = (max - taken).div_ceil(groups.len());
            let found = join_all(groups.iter().map(|(group, begun)| self.take_once(group, begun, share))).await;
            let mut fuller = Vec::new();
            for (group, found) in groups.into_iter().zip(found) {
                let count: usize = found.iter().map(|found| found.offers.len()).sum();
                if count >= share {
                    fuller.push(group);
                }
                taken += count;
                for ((channel, begun), found) in group.0.iter().zip(group.1).zip(found) {
                    if found.left > 0 {
                        self.waiting().wake(channel, 1);
                    }
                    self.waiting().found(channel, *begun, (!found.has_more).then_some(found.left));
                    lines.push(found.offers);
                }
            }
            groups = fuller;
            if groups.is_empty() || taken >= max {
                break;
            }
        }
        if groups.is_empty() && taken < max {
            self.waiting().found_little(channels, waiter);
        } else {
            self.waiting().found_enough(channels, waiter);
            if taken < max {
                waiter.notify.notify_one();
            }
        }
        merged(lines)
    }

    /// One call of a take; answers for each channel. What cannot be reached has nothing.
    async fn take_once(&self, channels: &[Arc<str>], begun: &[Begun], max: usize) -> Vec<Found> {
        let keys = channels.iter().map(|channel| self.keys.channel(channel));
        let keys: Vec<String> = keys.flat_map(|keys| [keys.window, keys.jobs, keys.more, keys.quiet]).collect();
        let mut call = self.scripts.take.call(&keys).arg(max).arg(self.low());
        for begun in begun {
            call.push(u8::from(begun.has_others));
        }
        let answer: Vec<Vec<Value>> = self.access.run(&call).await.unwrap_or_default();
        let mut all = Vec::with_capacity(channels.len());
        for (channel, list) in channels.iter().zip(answer) {
            let [Value::Int(left), Value::Int(hunger), jobs @ ..] = list.as_slice() else { break };
            let offers = jobs.chunks_exact(2).filter_map(|job| offer_of(job, channel)).collect();
            let left = usize::try_from(*left).unwrap_or(0);
            all.push(Found { offers, left, has_more: *hunger != 0 });
            match hunger {
                -1 | 0 => {}
                1 => self.hunger.note(channel),
                wait => {
                    self.hunger.put_off(channel, Duration::from_millis(u64::try_from(*wait).unwrap_or(0)));
                }
            }
        }
        all
    }

    pub(super) fn line_length(&self, channel: &str) -> Option<usize> {
        if self.access.is_well() { self.waiting().line_length(channel) } else { None }
    }

    /// The store may hold jobs that are in no window.
    pub(super) fn doubt(&self, channels: &[Arc<str>]) {
        self.waiting().doubt(channels);
    }

    /// Jobs are about to be lined up; [`Windows::end_offers`] tells the end of it.
    pub(super) fn begin_offers(&self, offers: &[Offer]) {
        let mut waiting = self.waiting();
        for offers in offers.chunk_by(in_same_channel) {
            waiting.begin_offers(&offers[0].ready.channel, offers.len());
        }
    }

    pub(super) fn end_offers(&self, channel: &str, jobs: usize) {
        self.waiting().end_offers(channel, jobs);
    }

    pub(super) fn leave(&self, channels: &[Arc<str>], waiter: &Waiter) {
        self.waiting().leave(channels, waiter);
    }

    pub(super) fn wake_all(&self) {
        self.waiting().wake_all();
    }

    /// The looks into the store that this node is given the right to.
    pub(super) async fn hungry(&self) -> Vec<Look> {
        let asked = stream::iter(self.hunger.due()).map(|channel| self.ask(channel));
        asked.buffer_unordered(CALLS_MAX).filter_map(std::future::ready).collect().await
    }

    async fn ask(&self, channel: Arc<str>) -> Option<Look> {
        let look = format!("{}.{}", self.settings.node_id, self.look_number.fetch_add(1, Ordering::Relaxed));
        let keys = self.keys.channel(&channel);
        let call = self.scripts.ask.call(&[keys.window, keys.jobs, keys.more, keys.late]);
        let call = call.arg(self.low()).arg(&look).arg(LOOK_MAX.as_millis() as u64);
        // What is not asked for while Redis is lost is when it returns.
        match self.access.run::<Vec<Value>>(&call).await.unwrap_or_default().as_slice() {
            [Value::Int(-1), Value::BulkString(seen)] => {
                self.looks().insert(channel.clone(), look);
                let after = ready_of(seen, &channel);
                Some(Look { channel, after })
            }
            [Value::Int(wait)] if *wait > 0 => {
                self.hunger.put_off(&channel, Duration::from_millis(u64::try_from(*wait).unwrap_or(0)));
                None
            }
            _ => None,
        }
    }

    pub(super) async fn refill(&self, channel: &Arc<str>, offers: &[Offer], complete: bool) {
        let look = self.looks().remove(channel).unwrap_or_default();
        let front = &offers[..offers.len().min(self.settings.window_max)];
        let verdict = if complete && front.len() == offers.len() { "complete" } else { "incomplete" };
        let parts = front.len().div_ceil(CALL_MAX).max(1);
        for part in 0..parts {
            let verdict = if part + 1 == parts { verdict } else { "part" };
            let mut call = self.lining_up(&self.scripts.refill, channel).arg(&look).arg(verdict);
            for offer in front.iter().skip(part * CALL_MAX).take(CALL_MAX) {
                call.push(&place_of(&offer.ready)[..]);
            }
            match self.access.run::<i64>(&call).await {
                Ok(1) => self.hunger.note(channel),
                Ok(_) => {}
                Err(_) => return,
            }
        }
    }
}

/// Announcements: how many jobs, the node that offers them, and their channel.
impl Listener for Windows {
    fn hear(&self, message: &[u8]) {
        let words = std::str::from_utf8(message).map(|text| text.splitn(3, ' ').collect::<Vec<_>>());
        let Ok([jobs, node_id, channel]) = words.as_deref() else { return };
        let Ok(jobs) = jobs.parse() else { return };
        if **node_id == *self.settings.node_id {
            // Counted when they were offered.
            self.waiting().wake(channel, jobs);
        } else {
            self.waiting().hear(channel, jobs);
        }
    }

    fn hearing(&self) {
        self.wake_all();
    }
}

fn in_same_channel(one: &Offer, next: &Offer) -> bool {
    one.ready.channel == next.ready.channel
}

/// The longest waiting first among the heads of the lines.
fn merged(mut lines: Vec<VecDeque<Offer>>) -> Vec<Offer> {
    let mut all = Vec::new();
    let head = |line: &VecDeque<Offer>| line.front().map(|offer| (offer.ready.ready_at, offer.ready.id));
    while let Some(line) = lines.iter_mut().filter(|line| !line.is_empty()).min_by_key(|line| head(line)) {
        all.extend(line.pop_front());
    }
    all
}

/// A place, and what was kept of its job.
fn offer_of(job: &[Value], channel: &Arc<str>) -> Option<Offer> {
    let [Value::BulkString(place), Value::BulkString(_kept)] = job else { return None };
    Some(Offer { ready: ready_of(place, channel)?, job: None })
}
