//! Who of this node waits for jobs.
//!
//! Redis knows of a channel only that somebody waits for it. An offer is then announced to every node, and each wakes as
//! many of its own as there are jobs. Whoever looks is lined up before it looks, so that no announcement is missed.
//!
//! So a node knows without asking how many jobs are in front of a new one: those that its last look left, and those that it
//! has offered since or has heard of. What another node offers is news for as long as the announcement takes.

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
    /// How many jobs are ready at most; `None` where nobody has looked, or where there may be more in the store.
    length: Option<usize>,
    /// All that were ever offered, by this node or, as it heard, by another.
    offered: usize,
    /// Offers of this node that Redis has not been told yet.
    on_their_way: usize,
    /// Grows with each doubt about the length.
    doubts: usize,
}

/// A look that has begun at a channel.
#[derive(Clone, Copy)]
pub(super) struct Begun {
    /// Whether others wait for it, too.
    pub(super) has_others: bool,
    /// Jobs that had been offered without having arrived, and those that had not.
    on_their_way: usize,
    offered: usize,
    doubts: usize,
}

impl Waiting {
    /// Whether a look would only find what the last one did.
    pub(super) fn has_looked(&self, channels: &[Arc<str>], waiter: &Waiter) -> bool {
        channels.iter().all(|channel| {
            let found = self.lines.get(channel).and_then(|line| *line.found_little.get(&waiter.number)?);
            found.is_some_and(|at| at.elapsed() < TRUST)
        })
    }

    /// Before a look; answers for each channel.
    pub(super) fn begin(&mut self, channels: &[Arc<str>], waiter: &Waiter) -> Vec<Begun> {
        let mut begun = Vec::with_capacity(channels.len());
        for channel in channels {
            let line = self.lines.entry(channel.clone()).or_default();
            line.woken.remove(&waiter.number);
            if line.found_little.insert(waiter.number, None).is_none() {
                line.waiters.push_back(waiter.clone());
            }
            let has_others = line.waiters.len() > 1;
            let Line { on_their_way, offered, doubts, .. } = *line;
            begun.push(Begun { has_others, on_their_way, offered, doubts });
        }
        begun
    }

    /// What a look has left in the channel's window; `None` where the store may hold more.
    pub(super) fn found(&mut self, channel: &str, begun: Begun, left: Option<usize>) {
        if let Some(line) = self.lines.get_mut(channel) {
            // The look may have come before these.
            let unseen = begun.on_their_way + (line.offered - begun.offered);
            line.length = left.filter(|_| line.doubts == begun.doubts).map(|left| left + unseen);
        }
    }

    pub(super) fn line_length(&self, channel: &str) -> Option<usize> {
        self.lines.get(channel)?.length
    }

    /// There may be jobs that no look has found.
    pub(super) fn doubt(&mut self, channels: &[Arc<str>]) {
        for channel in channels {
            if let Some(line) = self.lines.get_mut(channel) {
                line.doubt();
            }
        }
    }

    /// Offers are on their way to Redis.
    pub(super) fn begin_offers(&mut self, channel: &Arc<str>, jobs: usize) {
        let line = self.lines.entry(channel.clone()).or_default();
        line.lengthen(jobs);
        line.on_their_way += jobs;
    }

    /// Redis was told of them, or cannot be.
    pub(super) fn end_offers(&mut self, channel: &str, jobs: usize) {
        if let Some(line) = self.lines.get_mut(channel) {
            line.on_their_way = line.on_their_way.saturating_sub(jobs);
        }
        self.tidy(channel);
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

    /// Another node has offered jobs.
    pub(super) fn hear(&mut self, channel: &str, jobs: usize) {
        if let Some(line) = self.lines.get_mut(channel) {
            line.lengthen(jobs);
        }
        self.wake(channel, jobs);
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
            line.doubt();
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
        if self.lines.get(channel).is_some_and(Line::is_of_no_use) {
            self.lines.remove(channel);
        }
    }
}

impl Line {
    fn is_of_no_use(&self) -> bool {
        self.waiters.is_empty() && self.woken.is_empty() && self.on_their_way == 0
    }

    fn lengthen(&mut self, jobs: usize) {
        self.offered += jobs;
        self.length = self.length.map(|length| length + jobs);
    }

    fn doubt(&mut self) {
        self.length = None;
        self.doubts += 1;
    }

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

    fn others(begun: &[Begun]) -> Vec<bool> {
        begun.iter().map(|begun| begun.has_others).collect()
    }

    /// A look that nothing disturbs, and that leaves so many jobs.
    fn look(waiting: &mut Waiting, left: usize) {
        let begun = waiting.begin(&[channel("a")], &waiter(1));
        waiting.found("a", begun[0], Some(left));
    }

    #[tokio::test(start_paused = true)]
    async fn who_found_little_need_not_look_until_it_hears() {
        let (mut waiting, one) = (Waiting::default(), waiter(1));
        let channels = [channel("a"), channel("b")];
        assert!(!waiting.has_looked(&channels, &one));
        assert_eq!(others(&waiting.begin(&channels, &one)), [false, false]);
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
        assert_eq!(others(&waiting.begin(&channels, &waiters[1])), [false], "nobody else is in line");
    }

    #[test]
    fn a_line_is_what_a_look_left_and_what_was_offered_since() {
        let mut waiting = Waiting::default();
        assert_eq!(waiting.line_length("a"), None, "nobody has looked");
        look(&mut waiting, 0);
        assert_eq!((waiting.line_length("a"), waiting.line_length("b")), (Some(0), None));
        waiting.hear("a", 2);
        assert_eq!(waiting.line_length("a"), Some(2));
        waiting.begin_offers(&channel("a"), 3);
        assert_eq!(waiting.line_length("a"), Some(5));
        look(&mut waiting, 1);
        assert_eq!(waiting.line_length("a"), Some(4), "the look may have come before those that are on their way");
        waiting.end_offers("a", 3);
        look(&mut waiting, 1);
        assert_eq!(waiting.line_length("a"), Some(1));
    }

    #[test]
    fn a_line_is_any_number_where_the_store_may_hold_more() {
        let mut waiting = Waiting::default();
        let hungry = |waiting: &mut Waiting| {
            let begun = waiting.begin(&[channel("a")], &waiter(1));
            waiting.found("a", begun[0], None);
        };
        let doubts: [fn(&mut Waiting); 3] = [hungry, |waiting| waiting.doubt(&[channel("a")]), Waiting::wake_all];
        for doubt in doubts {
            look(&mut waiting, 0);
            doubt(&mut waiting);
            waiting.begin_offers(&channel("a"), 1);
            waiting.end_offers("a", 1);
            assert_eq!(waiting.line_length("a"), None);
        }
    }

    #[test]
    fn an_answer_that_was_overtaken_does_not_hide_what_came_since() {
        let mut waiting = Waiting::default();
        let channels = [channel("a")];
        let begun = waiting.begin(&channels, &waiter(1));
        waiting.begin_offers(&channels[0], 1);
        waiting.end_offers("a", 1);
        waiting.hear("a", 1);
        waiting.found("a", begun[0], Some(0));
        assert_eq!(waiting.line_length("a"), Some(2));
        let begun = waiting.begin(&channels, &waiter(1));
        waiting.wake_all();
        waiting.found("a", begun[0], Some(0));
        assert_eq!(waiting.line_length("a"), None);
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
        waiting.begin_offers(&channels[0], 1);
        waiting.end_offers("a", 1);
        assert!(waiting.lines.is_empty());
    }
}
