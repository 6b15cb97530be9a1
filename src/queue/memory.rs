//! The queue of one process.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use tokio::{sync::Notify, time::Instant};

use super::{Lapsed, Offer, Queue, Waiter};
use crate::model::{JobId, Lease, Timestamp};

/// Where a job stands in its channel's line: higher priority, then earlier time, then older id.
type Place = (Reverse<i32>, Timestamp, JobId);

pub struct MemoryQueue {
    windows: Mutex<Windows>,
    leases: Mutex<Leases>,
    hunger: Arc<Notify>,
}

impl MemoryQueue {
    /// `window_max`: how many jobs of one channel are kept at hand.
    pub fn new(window_max: usize) -> MemoryQueue {
        MemoryQueue {
            windows: Mutex::new(Windows { window_max, channels: HashMap::new(), places: HashMap::new() }),
            leases: Mutex::new(Leases::default()),
            hunger: Arc::new(Notify::new()),
        }
    }

    fn windows(&self) -> MutexGuard<'_, Windows> {
        self.windows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn leases(&self) -> MutexGuard<'_, Leases> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Queue for MemoryQueue {
    async fn offer(&self, offers: Vec<Offer>) {
        let mut windows = self.windows();
        let mut hungry = false;
        for offer in offers {
            hungry |= windows.offer(offer);
        }
        if hungry {
            self.hunger.notify_one();
        }
    }

    async fn take(&self, channels: &[Arc<str>], max: usize, waiter: &Waiter) -> Vec<Offer> {
        let mut windows = self.windows();
        let taken = windows.take(channels, max, waiter);
        if channels.iter().any(|channel| windows.is_hungry(channel)) {
            self.hunger.notify_one();
        }
        taken
    }

    async fn leave(&self, channels: &[Arc<str>], waiter: &Waiter) {
        let mut windows = self.windows();
        for channel in channels {
            if let Some(window) = windows.channels.get_mut(channel) {
                window.remove_waiter(waiter.number);
                window.pass_on();
            }
        }
        windows.tidy(channels);
    }

    async fn forget(&self, ids: &[JobId]) {
        let mut windows = self.windows();
        for id in ids {
            windows.forget(*id);
        }
    }

    async fn suspect(&self, channels: &[Arc<str>]) {
        let mut windows = self.windows();
        for channel in channels {
            windows.window(channel).more = More::Unseen;
        }
        self.hunger.notify_one();
    }

    fn hunger(&self) -> Arc<Notify> {
        self.hunger.clone()
    }

    async fn hungry(&self) -> Vec<Arc<str>> {
        let mut windows = self.windows();
        let low = windows.window_max / 2;
        let mut hungry = Vec::new();
        for (name, window) in &mut windows.channels {
            if window.more == More::Unseen && window.entries.len() <= low {
                window.more = More::Asked;
                hungry.push(name.clone());
            }
        }
        hungry
    }

    async fn refill(&self, channel: &Arc<str>, offers: Vec<Offer>, complete: bool) {
        let mut windows = self.windows();
        for offer in offers {
            windows.insert(offer);
        }
        let window = windows.window(channel);
        // An offer that was turned away while the store was being read may be missing from what was read.
        if complete && window.more == More::Asked {
            window.more = More::None;
        } else {
            window.more = More::Unseen;
        }
        window.wake_for_all();
        windows.tidy(std::slice::from_ref(channel));
    }

    async fn hold(&self, leases: &[Lease], holder: &Arc<str>, ttl: Duration) {
        let mut table = self.leases();
        let deadline = Instant::now() + ttl;
        for lease in leases {
            table.put(*lease, Held { holder: holder.clone(), deadline, accepted: false });
        }
    }

    async fn renew(&self, leases: &[Lease], holder: &Arc<str>, ttl: Duration) {
        let mut table = self.leases();
        let deadline = Instant::now() + ttl;
        for lease in leases {
            if table.held.get(lease).is_some_and(|held| held.holder == *holder) {
                table.put(*lease, Held { holder: holder.clone(), deadline, accepted: true });
            }
        }
    }

    async fn shorten(&self, holder: &Arc<str>, window: Duration) {
        let mut table = self.leases();
        let latest = Instant::now() + window;
        for lease in table.of(holder) {
            if let Some(held) = table.held.get(&lease).cloned()
                && held.deadline > latest
            {
                table.put(lease, Held { deadline: latest, ..held });
            }
        }
    }

    async fn release(&self, leases: &[Lease]) {
        let mut table = self.leases();
        for lease in leases {
            table.remove(*lease);
        }
    }

    async fn holder(&self, lease: Lease) -> Option<Arc<str>> {
        self.leases().held.get(&lease).map(|held| held.holder.clone())
    }

    async fn held_by(&self, holder: &Arc<str>) -> Vec<Lease> {
        self.leases().of(holder)
    }

    async fn lapsed(&self, limit: usize) -> Vec<Lapsed> {
        self.leases().lapsed(Instant::now(), limit)
    }
}

struct Windows {
    window_max: usize,
    channels: HashMap<Arc<str>, Window>,
    places: HashMap<JobId, (Arc<str>, Place)>,
}

impl Windows {
    fn window(&mut self, channel: &Arc<str>) -> &mut Window {
        self.channels.entry(channel.clone()).or_default()
    }

    /// Whether a look into the store is due for this channel.
    fn is_hungry(&self, channel: &Arc<str>) -> bool {
        let low = self.window_max / 2;
        self.channels.get(channel).is_some_and(|window| window.more == More::Unseen && window.entries.len() <= low)
    }

    /// Tells whether the channel is hungry for a refill.
    fn offer(&mut self, offer: Offer) -> bool {
        let window_max = self.window_max;
        let window = self.window(&offer.ready.channel);
        let behind_the_window =
            window.entries.last_key_value().is_none_or(|(last, _)| place(&offer) > *last) && window.more != More::None;
        if behind_the_window || window.entries.len() >= window_max {
            window.more = More::Unseen;
            return self.is_hungry(&offer.ready.channel);
        }
        let channel = offer.ready.channel.clone();
        self.insert(offer);
        self.window(&channel).wake_one();
        false
    }

    fn insert(&mut self, offer: Offer) {
        let (id, channel, place) = (offer.ready.id, offer.ready.channel.clone(), place(&offer));
        self.forget(id);
        self.window(&channel).entries.insert(place, offer);
        self.places.insert(id, (channel, place));
    }

    fn forget(&mut self, id: JobId) {
        if let Some((channel, place)) = self.places.remove(&id)
            && let Some(window) = self.channels.get_mut(&channel)
        {
            window.entries.remove(&place);
        }
    }

    fn take(&mut self, channels: &[Arc<str>], max: usize, waiter: &Waiter) -> Vec<Offer> {
        let mut taken = Vec::new();
        while taken.len() < max {
            let first = channels
                .iter()
                .filter_map(|channel| Some((self.channels.get(channel)?.entries.first_key_value()?.0, channel)))
                .min_by_key(|((_, ready_at, id), _)| (*ready_at, *id));
            let Some((place, channel)) = first.map(|(place, channel)| (*place, channel.clone())) else { break };
            if let Some(offer) = self.window(&channel).entries.remove(&place) {
                self.places.remove(&offer.ready.id);
                taken.push(offer);
            }
        }
        for channel in channels {
            let wants_more = taken.len() < max;
            let window = self.window(channel);
            if wants_more {
                window.add_waiter(waiter)
            } else {
                window.remove_waiter(waiter.number)
            }
            window.pass_on();
        }
        self.tidy(channels);
        taken
    }

    /// Drops windows that hold nothing, know of nothing and are waited for by nobody.
    fn tidy(&mut self, channels: &[Arc<str>]) {
        for channel in channels {
            if self.channels.get(channel).is_some_and(Window::is_idle) {
                self.channels.remove(channel);
            }
        }
    }
}

/// Whether the store may hold ready jobs that are not in the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum More {
    #[default]
    None,
    /// Yes, and since the last look.
    Unseen,
    /// A look is under way.
    Asked,
}

#[derive(Default)]
struct Window {
    entries: BTreeMap<Place, Offer>,
    more: More,
    waiters: VecDeque<Waiter>,
    waiting: HashSet<u64>,
}

impl Window {
    fn is_idle(&self) -> bool {
        self.entries.is_empty() && self.more == More::None && self.waiters.is_empty()
    }

    fn add_waiter(&mut self, waiter: &Waiter) {
        if self.waiting.insert(waiter.number) {
            self.waiters.push_back(waiter.clone());
        }
    }

    fn remove_waiter(&mut self, number: u64) {
        if self.waiting.remove(&number) {
            self.waiters.retain(|waiter| waiter.number != number);
        }
    }

    fn wake_one(&mut self) {
        if let Some(waiter) = self.waiters.pop_front() {
            self.waiting.remove(&waiter.number);
            waiter.notify.notify_one();
        }
    }

    /// A waiter that was woken may have found no use for it; the next one gets its turn.
    fn pass_on(&mut self) {
        if !self.entries.is_empty() {
            self.wake_one();
        }
    }

    fn wake_for_all(&mut self) {
        for _ in 0..self.entries.len().min(self.waiters.len()) {
            self.wake_one();
        }
    }
}

fn place(offer: &Offer) -> Place {
    (Reverse(offer.ready.priority), offer.ready.ready_at, offer.ready.id)
}

#[derive(Clone)]
struct Held {
    holder: Arc<str>,
    deadline: Instant,
    accepted: bool,
}

#[derive(Default)]
struct Leases {
    held: HashMap<Lease, Held>,
    by_deadline: BTreeSet<(Instant, Lease)>,
    by_holder: HashMap<Arc<str>, HashSet<Lease>>,
}

impl Leases {
    fn put(&mut self, lease: Lease, held: Held) {
        self.remove(lease);
        self.by_deadline.insert((held.deadline, lease));
        self.by_holder.entry(held.holder.clone()).or_default().insert(lease);
        self.held.insert(lease, held);
    }

    fn remove(&mut self, lease: Lease) -> Option<Held> {
        let held = self.held.remove(&lease)?;
        self.by_deadline.remove(&(held.deadline, lease));
        if let Some(leases) = self.by_holder.get_mut(&held.holder) {
            leases.remove(&lease);
            if leases.is_empty() {
                self.by_holder.remove(&held.holder);
            }
        }
        Some(held)
    }

    fn of(&self, holder: &Arc<str>) -> Vec<Lease> {
        self.by_holder.get(holder).map(|leases| leases.iter().copied().collect()).unwrap_or_default()
    }

    fn lapsed(&mut self, now: Instant, limit: usize) -> Vec<Lapsed> {
        let due: Vec<Lease> = self
            .by_deadline
            .iter()
            .take_while(|(deadline, _)| *deadline <= now)
            .take(limit)
            .map(|(_, lease)| *lease)
            .collect();
        due.into_iter()
            .filter_map(|lease| {
                let held = self.remove(lease)?;
                Some(Lapsed { lease, holder: held.holder, accepted: held.accepted })
            })
            .collect()
    }
}
