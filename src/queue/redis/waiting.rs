//! Who of this node waits for jobs.
//!
//! Redis knows of a channel only that somebody waits for it. An offer is then announced to every node, and each wakes as
//! many of its own as there are jobs. Whoever looks is lined up before it looks, so that no announcement is missed.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use crate::queue::Waiter;

/// For how long one who found too little, and has heard of nothing since, need not look again. It heals whatever an
/// announcement that got lost would have told.
const TRUST: Duration = Duration::from_secs(300);

#[derive(Default)]
pub(super) struct Waiting {
    lines: HashMap<Arc<str>, Line>,
}

#[derive(Default)]
struct Line {
    waiters: VecDeque<Waiter>,
    /// Those in line, and when each last found too little; none yet for one that is looking.
    found_little: HashMap<u64, Option<Instant>>,
    /// Woken, and not heard of since.
    woken: HashSet<u64>,
}

impl Waiting {
    /// Whether a look would only find what the last one did.
    pub(super) fn has_looked(&self, channels: &[Arc<str>], waiter: &Waiter) -> bool {
        channels.iter().all(|channel| {
            let found = self.lines.get(channel).and_then(|line| *line.found_little.get(&waiter.number)?);
            found.is_some_and(|at| at.elapsed() < TRUST)
        })
    }

    /// Before a look. Tells for each channel whether others wait for it.
    pub(super) fn begin(&mut self, channels: &[Arc<str>], waiter: &Waiter) -> Vec<bool> {
        let mut others = Vec::with_capacity(channels.len());
        for channel in channels {
            let line = self.lines.entry(channel.clone()).or_default();
            line.woken.remove(&waiter.number);
            if line.found_little.insert(waiter.number, None).is_none() {
                line.waiters.push_back(waiter.clone());
            }
            others.push(line.waiters.len() > 1);
        }
        others
    }

    /// After a look that found enough.
    pub(super) fn found_enough(&mut self, channels: &[Arc<str>], waiter: &Waiter) {
        for channel in channels {
            if let Some(line) = self.lines.get_mut(channel) {
                line.remove(waiter.number);
            }
            self.tidy(channel);
        }
    }

    /// After a look that found too little. One that was woken meanwhile will look again.
    pub(super) fn found_little(&mut self, channels: &[Arc<str>], waiter: &Waiter) {
        for channel in channels {
            if let Some(found) = self.lines.get_mut(channel).and_then(|line| line.found_little.get_mut(&waiter.number))
            {
                *found = Some(Instant::now());
            }
        }
    }

    /// There are so many jobs.
    pub(super) fn wake(&mut self, channel: &str, jobs: usize) {
        if let Some(line) = self.lines.get_mut(channel) {
            for _ in 0..jobs.min(line.waiters.len()) {
                line.wake_one();
            }
        }
    }

    /// Anything may have happened.
    pub(super) fn wake_all(&mut self) {
        for line in self.lines.values_mut() {
            while !line.waiters.is_empty() {
                line.wake_one();
            }
        }
    }

    pub(super) fn leave(&mut self, channels: &[Arc<str>], waiter: &Waiter) {
        for channel in channels {
            if let Some(line) = self.lines.get_mut(channel) {
                line.remove(waiter.number);
                if line.woken.remove(&waiter.number) {
                    line.wake_one();
                }
            }
            self.tidy(channel);
        }
    }

    fn tidy(&mut self, channel: &str) {
        if self.lines.get(channel).is_some_and(|line| line.waiters.is_empty() && line.woken.is_empty()) {
            self.lines.remove(channel);
        }
    }
}

impl Line {
    fn remove(&mut self, number: u64) {
        if self.found_little.remove(&number).is_some() {
            self.waiters.retain(|waiter| waiter.number != number);
        }
    }

    fn wake_one(&mut self) {
        if let Some(waiter) = self.waiters.pop_front() {
            self.found_little.remove(&waiter.number);
            self.woken.insert(waiter.number);
            waiter.notify.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::contract::{channel, still_waits, waiter};

    #[tokio::test(start_paused = true)]
    async fn who_found_little_need_not_look_until_it_hears() {
        let (mut waiting, one) = (Waiting::default(), waiter(1));
        let channels = [channel("a"), channel("b")];
        assert!(!waiting.has_looked(&channels, &one));
        assert_eq!(waiting.begin(&channels, &one), [false, false]);
        assert!(!waiting.has_looked(&channels, &one), "it is still looking");
        waiting.found_little(&channels, &one);
        assert!(waiting.has_looked(&channels, &one));
        waiting.wake("b", 1);
        assert!(!waiting.has_looked(&channels, &one) && !still_waits(&one));
        waiting.begin(&channels, &one);
        waiting.found_little(&channels, &one);
        tokio::time::advance(TRUST).await;
        assert!(!waiting.has_looked(&channels, &one));
    }

    #[tokio::test]
    async fn an_announcement_during_a_look_is_heard() {
        let (mut waiting, one, channels) = (Waiting::default(), waiter(1), [channel("a")]);
        waiting.begin(&channels, &one);
        waiting.wake("a", 1);
        waiting.found_little(&channels, &one);
        assert!(!still_waits(&one) && !waiting.has_looked(&channels, &one));
    }

    #[tokio::test]
    async fn the_longest_waiting_are_woken_first_and_no_more_than_there_are_jobs() {
        let (mut waiting, channels) = (Waiting::default(), [channel("a")]);
        let waiters: Vec<Waiter> = (1..=4).map(waiter).collect();
        for one in &waiters {
            waiting.begin(&channels, one);
            waiting.found_little(&channels, one);
        }
        waiting.wake("a", 2);
        let woken: Vec<bool> = waiters.iter().map(|one| !still_waits(one)).collect();
        assert_eq!(woken, [true, true, false, false]);
        waiting.leave(&channels, &waiters[0]);
        assert!(!still_waits(&waiters[2]), "what it was woken for is passed on");
        waiting.leave(&channels, &waiters[3]);
        assert_eq!(waiting.begin(&channels, &waiters[1]), [false], "nobody else is in line");
    }

    #[tokio::test]
    async fn nothing_is_kept_of_those_who_left() {
        let (mut waiting, one, two, channels) = (Waiting::default(), waiter(1), waiter(2), [channel("a")]);
        waiting.begin(&channels, &one);
        waiting.found_enough(&channels, &one);
        waiting.begin(&channels, &one);
        waiting.begin(&channels, &two);
        waiting.wake_all();
        waiting.leave(&channels, &one);
        waiting.leave(&channels, &two);
        assert!(waiting.lines.is_empty());
    }
}
