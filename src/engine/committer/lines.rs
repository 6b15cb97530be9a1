//! Where writes of new jobs wait: a line for each channel, and the channels take turns.
//!
//! A channel is calm as long as it has less than half of an equal share of the new jobs. While there are calm ones, a flood,
//! which is any other channel that has more than its turn, gets one turn in a transaction, and all floods then rest for twice
//! as long as that took: a machine that does nothing but take in one channel's jobs has no time left to be quick for another.
//! Floods among themselves need not rest.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use super::Write;

/// How many steps of new jobs a channel has in its turn, and perhaps the rest of a batch. Short ones, so that a channel with
/// single jobs gets as many as one with batches.
const TURN: usize = 64;
/// For how long floods stand back after a calm channel has published.
const CALM_FOR: Duration = Duration::from_secs(1);
/// How long floods rest, in times of what their transaction took: they have a third of the time.
const REST: u32 = 2;
/// The longest rest: a database that stands still is nobody's flood.
const REST_MAX: Duration = Duration::from_millis(50);
/// For how long a channel's new jobs count, at least; twice that at most.
const WINDOW: Duration = Duration::from_secs(1);

pub(super) struct Lines {
    lines: HashMap<Arc<str>, VecDeque<Write>>,
    /// Writes in all of them.
    waiting: usize,
    waiting_max: usize,
    /// Channels with a line, the one whose turn it is first.
    turns: VecDeque<Arc<str>>,
    /// Steps that it has had in this turn.
    taken: usize,
    shares: Shares,
    /// The last calm channel, and when it had its turn.
    calm: Option<(Arc<str>, Instant)>,
    rest: Rest,
    is_closing: bool,
}

/// Whether floods rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rest {
    No,
    /// One had its turn, which is not stored yet.
    UntilStored,
    Until(Instant),
}

impl Lines {
    pub fn new(waiting_max: usize) -> Lines {
        Lines {
            lines: HashMap::new(),
            waiting: 0,
            waiting_max,
            turns: VecDeque::new(),
            taken: 0,
            shares: Shares::default(),
            calm: None,
            rest: Rest::No,
            is_closing: false,
        }
    }

    /// Gives the write back where its channel's line is as long as what is left for all others, so that one channel never has
    /// more than half of the places and there are always some.
    pub fn push(&mut self, write: Write) -> Result<(), Write> {
        let Some(first) = write.steps.first() else { return Err(write) };
        let line = self.lines.entry(first.job.channel.clone()).or_insert_with_key(|channel| {
            self.turns.push_back(channel.clone());
            VecDeque::new()
        });
        if !line.is_empty() && line.len() >= self.waiting_max.saturating_sub(self.waiting) {
            return Err(write);
        }
        line.push_back(write);
        self.waiting += 1;
        Ok(())
    }

    /// The first write of the channel whose turn it is; none while all that wait are floods that rest.
    pub fn pop(&mut self) -> Option<Write> {
        if self.turns.is_empty() {
            return None;
        }
        let now = Instant::now();
        self.pass_over_resting(now)?;
        let line = self.lines.get_mut(self.turns.front()?)?;
        let write = line.pop_front()?;
        self.waiting -= 1;
        self.taken += write.steps.len();
        let is_empty = line.is_empty();
        if is_empty || self.taken >= TURN {
            let channel = self.turns.pop_front()?;
            self.end_turn(&channel, !is_empty, now);
            if is_empty {
                self.lines.remove(&channel);
            } else {
                self.turns.push_back(channel);
            }
        }
        Some(write)
    }

    /// Brings a channel to the front that need not rest; none: there is none.
    fn pass_over_resting(&mut self, now: Instant) -> Option<()> {
        if let Rest::Until(until) = self.rest
            && until <= now
        {
            self.rest = Rest::No;
        }
        if self.rest == Rest::No {
            return Some(());
        }
        let next = self.turns.iter().position(|channel| self.shares.is_calm(channel))?;
        if next > 0 {
            self.turns.rotate_left(next);
            self.taken = 0;
        }
        Some(())
    }

    fn end_turn(&mut self, channel: &Arc<str>, has_more: bool, now: Instant) {
        self.shares.add(channel, std::mem::take(&mut self.taken), now);
        if self.shares.is_calm(channel) {
            self.calm = Some((channel.clone(), now));
        } else if has_more && !self.is_closing {
            // One that has grown does not stand back for what it was.
            let calm = self.calm.as_ref().filter(|(calm, last)| calm != channel && now - *last < CALM_FOR);
            if calm.is_some() {
                self.rest = Rest::UntilStored;
            }
        }
    }

    /// A transaction has ended, and took so long.
    pub fn stored(&mut self, took: Duration) {
        if self.rest == Rest::UntilStored {
            self.rest = Rest::Until(Instant::now() + (took * REST).min(REST_MAX));
        }
    }

    /// When floods that wait may go on, where that is known.
    pub fn rest_ends(&self) -> Option<Instant> {
        match self.rest {
            Rest::Until(until) if !self.turns.is_empty() => Some(until),
            _ => None,
        }
    }

    /// Nothing is to come any more: what waits may all go.
    pub fn close(&mut self) {
        self.is_closing = true;
        self.rest = Rest::No;
    }

    pub fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }
}

/// How many steps each channel had, in this window of time and the one before.
#[derive(Default)]
struct Shares {
    before: Counts,
    now: Counts,
    began: Option<Instant>,
}

#[derive(Default)]
struct Counts {
    channels: HashMap<Arc<str>, usize>,
    total: usize,
}

impl Shares {
    fn add(&mut self, channel: &Arc<str>, steps: usize, now: Instant) {
        let age = self.began.map_or(Duration::MAX, |began| now - began);
        if age >= WINDOW {
            let last = std::mem::take(&mut self.now);
            self.before = if age < 2 * WINDOW { last } else { Counts::default() };
            self.began = Some(now);
        }
        *self.now.channels.entry(channel.clone()).or_default() += steps;
        self.now.total += steps;
    }

    /// Whether a channel has less than half of what each would have if all had the same.
    fn is_calm(&self, channel: &str) -> bool {
        let windows = [&self.before, &self.now];
        let own: usize = windows.iter().filter_map(|counts| counts.channels.get(channel)).sum();
        let channels = windows.iter().map(|counts| counts.channels.len()).max().unwrap_or_default();
        let total: usize = windows.iter().map(|counts| counts.total).sum();
        own * channels * 2 < total
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::write_to, *};

    fn lines(writes: &[(&str, usize)]) -> Lines {
        let mut lines = Lines::new(1_000);
        push(&mut lines, writes);
        lines
    }

    fn push(lines: &mut Lines, writes: &[(&str, usize)]) {
        for (channel, steps) in writes {
            assert!(lines.push(write_to(channel, *steps)).is_ok());
        }
    }

    /// The channels and sizes of what goes until all that is left has to wait.
    fn popped(lines: &mut Lines) -> Vec<(String, usize)> {
        let popped = std::iter::from_fn(|| lines.pop());
        popped.map(|write| (write.steps[0].job.channel.to_string(), write.steps.len())).collect()
    }

    fn of(writes: &[(&str, usize)]) -> Vec<(String, usize)> {
        writes.iter().map(|(channel, steps)| ((*channel).to_owned(), *steps)).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn channels_take_turns_and_each_keeps_its_order() {
        let (batch, half) = (TURN + 1, TURN / 2);
        let mut lines =
            lines(&[("a", batch), ("a", batch), ("b", half), ("b", half), ("b", 7), ("c", batch), ("a", 2)]);
        let wanted = [("a", batch), ("b", half), ("b", half), ("c", batch), ("a", batch), ("b", 7), ("a", 2)];
        assert_eq!(popped(&mut lines), of(&wanted));
        assert!(lines.is_empty() && lines.lines.is_empty() && lines.waiting == 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_beside_a_calm_channel_gets_one_turn_and_rests() {
        let took = Duration::from_millis(5);
        let mut lines = lines(&[("flood", TURN); 9]);
        push(&mut lines, &[("calm", 1)]);
        assert_eq!(popped(&mut lines), of(&[("flood", TURN), ("calm", 1), ("flood", TURN)]));
        assert_eq!(lines.rest_ends(), None, "the turn is not stored yet");
        lines.stored(took);
        assert_eq!(lines.rest_ends(), Some(Instant::now() + took * REST));
        push(&mut lines, &[("calm", 1), ("other", 1)]);
        assert_eq!(popped(&mut lines), of(&[("calm", 1), ("other", 1)]), "calm channels need not wait");
        tokio::time::sleep(took * REST).await;
        assert_eq!(popped(&mut lines), of(&[("flood", TURN)]));
        lines.close();
        assert_eq!(popped(&mut lines).len(), 6, "nobody rests at the end");
    }

    #[tokio::test(start_paused = true)]
    async fn floods_need_not_rest_by_themselves_or_long_after_others_published() {
        let mut lines = lines(&[("a", TURN), ("a", TURN), ("b", TURN), ("b", TURN)]);
        assert_eq!(popped(&mut lines).len(), 4);
        push(&mut lines, &[("calm", 1)]);
        assert_eq!(popped(&mut lines).len(), 1);
        tokio::time::sleep(CALM_FOR).await;
        push(&mut lines, &[("a", TURN), ("a", TURN), ("b", TURN), ("b", TURN)]);
        assert_eq!(popped(&mut lines).len(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn a_calm_channel_that_grows_need_not_rest_for_itself() {
        let mut lines = lines(&[("gone", 4 * TURN), ("a", 1)]);
        assert_eq!(popped(&mut lines).len(), 2);
        push(&mut lines, &[("a", TURN); 9]);
        assert_eq!(popped(&mut lines).len(), 9);
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_leaves_places_to_other_channels() {
        let mut lines = Lines::new(10);
        let accepted =
            |lines: &mut Lines, channel| (0..10).filter(|_| lines.push(write_to(channel, 1)).is_ok()).count();
        assert_eq!(accepted(&mut lines, "flood"), 5);
        assert_eq!(accepted(&mut lines, "another"), 3);
        assert_eq!(accepted(&mut lines, "calm"), 1);
        assert_eq!(lines.waiting, 9);
    }
}
