//! The windows of every channel: the front of its line of ready jobs, and who waits for more.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::Arc,
};

use crate::{
    model::{JobId, Timestamp, job::Ready},
    queue::{Look, Offer, Waiter},
};

/// Where a job stands in its channel's line: higher priority, then earlier time, then older id.
type Place = (Reverse<i32>, Timestamp, JobId);

pub(super) struct Windows {
    window_max: usize,
    channels: HashMap<Arc<str>, Window>,
    places: HashMap<JobId, (Arc<str>, Place)>,
}

impl Windows {
    pub(super) fn new(window_max: usize) -> Windows {
        Windows { window_max, channels: HashMap::new(), places: HashMap::new() }
    }

    fn window(&mut self, channel: &Arc<str>) -> &mut Window {
        self.channels.entry(channel.clone()).or_default()
    }

    /// Whether a look into the store is due for this channel.
    pub(super) fn is_hungry(&self, channel: &Arc<str>) -> bool {
        let low = self.window_max / 2;
        self.channels.get(channel).is_some_and(|window| window.more == More::Unseen && window.entries.len() <= low)
    }

    pub(super) fn line_length(&self, channel: &Arc<str>) -> Option<usize> {
        match self.channels.get(channel) {
            None => Some(0),
            Some(window) => (window.more == More::None).then_some(window.entries.len()),
        }
    }

    /// Tells whether the channel is hungry for a refill.
    pub(super) fn offer(&mut self, offer: Offer) -> bool {
        let (channel, place) = (offer.ready.channel.clone(), place(&offer));
        if self.is_lined_up(&offer) {
            return false;
        }
        self.forget(offer.ready.id);
        let window_max = self.window_max;
        let window = self.window(&channel);
        let is_behind = Some(place) > window.last().max(window.seen);
        match window.more {
            More::Asked if is_behind && window.late.len() < window_max => self.insert_late(offer),
            More::Asked | More::Unseen if is_behind => window.more = More::Unseen,
            _ => {
                self.insert(offer);
                self.cut(&channel);
                let window = self.window(&channel);
                if window.entries.contains_key(&place) {
                    window.wake_one();
                }
            }
        }
        self.is_hungry(&channel)
    }

    fn is_lined_up(&self, offer: &Offer) -> bool {
        let known = self.places.get(&offer.ready.id);
        known.is_some_and(|(channel, known)| *channel == offer.ready.channel && *known == place(offer))
    }

    fn insert(&mut self, offer: Offer) {
        let (id, channel, place) = (offer.ready.id, offer.ready.channel.clone(), place(&offer));
        self.forget(id);
        self.window(&channel).entries.insert(place, offer);
        self.places.insert(id, (channel, place));
    }

    fn insert_late(&mut self, offer: Offer) {
        let (id, channel, place) = (offer.ready.id, offer.ready.channel.clone(), place(&offer));
        self.window(&channel).late.insert(place, offer);
        self.places.insert(id, (channel, place));
    }

    /// Leaves what goes beyond the window's size to a refill.
    fn cut(&mut self, channel: &Arc<str>) {
        let Some(window) = self.channels.get_mut(channel) else { return };
        while window.entries.len() > self.window_max
            && let Some((_, last)) = window.entries.pop_last()
        {
            let end = window.last();
            window.seen = if window.more == More::None { end } else { window.seen.min(end) };
            window.more = More::Unseen;
            self.places.remove(&last.ready.id);
        }
    }

    pub(super) fn forget(&mut self, id: JobId) {
        if let Some((channel, place)) = self.places.remove(&id)
            && let Some(window) = self.channels.get_mut(&channel)
        {
            window.entries.remove(&place);
            window.late.remove(&place);
        }
    }

    /// The hungry channels, for each of which a look into the store is under way from here on.
    pub(super) fn ask(&mut self) -> Vec<Look> {
        let low = self.window_max / 2;
        let mut looks = Vec::new();
        let mut unheard = Vec::new();
        for (name, window) in &mut self.channels {
            if window.more == More::Unseen && window.entries.len() <= low {
                window.more = More::Asked;
                let ready = |(Reverse(priority), ready_at, id)| Ready { id, channel: name.clone(), priority, ready_at };
                looks.push(Look { channel: name.clone(), after: window.seen.map(ready) });
                // What was offered before the look begins is in the store by then.
                unheard.extend(std::mem::take(&mut window.late).into_values());
            }
        }
        for offer in unheard {
            self.places.remove(&offer.ready.id);
        }
        looks
    }

    pub(super) fn refill(&mut self, channel: &Arc<str>, offers: Vec<Offer>, complete: bool) {
        let read_until = offers.last().map(place);
        for offer in offers {
            // What is lined up already may have its whole job at hand.
            if !self.is_lined_up(&offer) || self.window(channel).late.contains_key(&place(&offer)) {
                self.insert(offer);
            }
        }
        let window = self.window(channel);
        let late = std::mem::take(&mut window.late);
        // Otherwise an offer found no room while the store was being read, and what was read may be without it.
        let is_sound = window.more == More::Asked;
        if is_sound {
            window.more = if complete { More::None } else { More::Unseen };
            window.seen = if complete { None } else { read_until.max(window.seen) };
        } else {
            window.more = More::Unseen;
        }
        let seen = window.seen;
        for (place, offer) in late {
            // The next look begins behind what was read; an offer in front of that may be younger than the look.
            if is_sound && (complete || Some(place) <= seen) {
                self.insert(offer);
            } else {
                self.places.remove(&offer.ready.id);
            }
        }
        self.cut(channel);
        self.window(channel).wake_for_all();
    }

    pub(super) fn take(&mut self, channels: &[Arc<str>], max: usize, waiter: &Waiter) -> Vec<Offer> {
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

    pub(super) fn leave(&mut self, channels: &[Arc<str>], waiter: &Waiter) {
        for channel in channels {
            if let Some(window) = self.channels.get_mut(channel) {
                window.remove_waiter(waiter.number);
                window.pass_on();
            }
        }
        self.tidy(channels);
    }

    pub(super) fn suspect(&mut self, channels: &[Arc<str>]) {
        for channel in channels {
            let window = self.window(channel);
            (window.more, window.seen) = (More::Unseen, None);
        }
    }

    /// Drops windows that hold nothing, know of nothing and are waited for by nobody.
    pub(super) fn tidy(&mut self, channels: &[Arc<str>]) {
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
    /// Yes, behind what was seen.
    Unseen,
    /// A look is under way.
    Asked,
}

#[derive(Default)]
struct Window {
    entries: BTreeMap<Place, Offer>,
    /// What was offered during a look and sorts behind the window: it is lined up when the look is over.
    late: BTreeMap<Place, Offer>,
    more: More,
    /// While there may be more: all up to here was lined up, or is offered, and the next look begins behind it. `None`: the
    /// next look begins at the front.
    seen: Option<Place>,
    waiters: VecDeque<Waiter>,
    waiting: HashSet<u64>,
}

impl Window {
    fn last(&self) -> Option<Place> {
        self.entries.last_key_value().map(|(last, _)| *last)
    }

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::contract::{channel, offer, waiter};

    #[test]
    fn a_line_ends_once_its_last_job_is_taken_and_no_more_are_to_be_had() {
        let mut windows = Windows::new(4);
        let a = channel("a");
        assert_eq!(windows.line_length(&a), Some(0), "nobody knows of the channel");
        windows.offer(offer(1, "a", 0, 1));
        windows.take(std::slice::from_ref(&a), 1, &waiter(1));
        assert_eq!(windows.line_length(&a), Some(0));
        windows.suspect(std::slice::from_ref(&a));
        windows.ask();
        assert_eq!(windows.line_length(&a), None, "a look is under way");
        windows.refill(&a, Vec::new(), true);
        assert_eq!(windows.line_length(&a), Some(0));
    }
}
