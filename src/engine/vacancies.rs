//! Free slots of runners that wait, and the jobs that are claimed for them in the commit that creates these jobs.
//!
//! A job that is published while a runner waits could be stored, lined up, taken and claimed one after the other, with two
//! waits for the disk. Instead its claim joins its creation: the job is durable and running after one. A slot that is given
//! away so is promised first; its session hears of the job once it is stored, and counts the slot as taken until then.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use super::registry::Place;
use crate::model::Job;

/// A session that found no more jobs.
pub struct Vacancy {
    pub place: Place,
    /// Who will hold the leases.
    pub session_id: Arc<str>,
    /// Woken when a job was stored for it, or a promise was not kept.
    pub notify: Arc<Notify>,
}

/// A slot that waits for its job to be stored.
pub struct Promise {
    number: u64,
    pub runner_id: Arc<str>,
    pub session_id: Arc<str>,
}

/// What became of a session's vacancies.
#[derive(Default)]
pub struct Withdrawn {
    /// Jobs that run on its runner as far as the store knows.
    pub jobs: Vec<Arc<Job>>,
    /// Slots whose jobs are being stored.
    pub promised: usize,
}

#[derive(Default)]
pub struct Vacancies(Mutex<Board>);

#[derive(Default)]
struct Board {
    sessions: HashMap<u64, Entry>,
    channels: HashMap<Arc<str>, Line>,
}

struct Entry {
    vacancy: Vacancy,
    slots: usize,
    promised: usize,
    jobs: Vec<Arc<Job>>,
}

/// Sessions in the order of their turns. One without a free slot leaves the line when its turn comes.
#[derive(Default)]
struct Line {
    turns: VecDeque<u64>,
    listed: HashSet<u64>,
}

impl Vacancies {
    fn board(&self) -> MutexGuard<'_, Board> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session is there; it has no slots yet.
    pub fn enter(&self, number: u64, vacancy: Vacancy) {
        self.board().sessions.insert(number, Entry { vacancy, slots: 0, promised: 0, jobs: Vec::new() });
    }

    /// A session has so many free slots for jobs of these channels.
    pub fn offer(&self, number: u64, channels: &[Arc<str>], slots: usize) {
        let mut board = self.board();
        let Some(entry) = board.sessions.get_mut(&number) else { return };
        entry.slots = slots;
        if slots == 0 {
            return;
        }
        for channel in channels {
            let line = board.channels.entry(channel.clone()).or_default();
            if line.listed.insert(number) {
                line.turns.push_back(number);
            }
        }
    }

    /// A session's free slots are its own again; it takes the jobs that were stored for it.
    pub fn withdraw(&self, number: u64) -> Withdrawn {
        let mut board = self.board();
        let Some(entry) = board.sessions.get_mut(&number) else { return Withdrawn::default() };
        entry.slots = 0;
        Withdrawn { jobs: std::mem::take(&mut entry.jobs), promised: entry.promised }
    }

    /// A session is over. What was promised to it is stored all the same, and lapses with its leases.
    pub fn leave(&self, number: u64, channels: &[Arc<str>]) {
        let mut board = self.board();
        board.sessions.remove(&number);
        for channel in channels {
            if let Some(line) = board.channels.get_mut(channel) {
                if line.listed.remove(&number) {
                    line.turns.retain(|turn| *turn != number);
                }
                if line.turns.is_empty() {
                    board.channels.remove(channel);
                }
            }
        }
    }

    /// Free slots for jobs of this channel, counted no further than `enough`.
    pub fn slots(&self, channel: &str, enough: usize) -> usize {
        let board = self.board();
        let Some(line) = board.channels.get(channel) else { return 0 };
        let mut slots = 0;
        for entry in line.turns.iter().filter_map(|number| board.sessions.get(number)) {
            slots += entry.slots;
            if slots >= enough {
                return enough;
            }
        }
        slots
    }

    /// A slot for a job of this channel, of the sessions that `is_heard` in turn.
    pub fn promise(&self, channel: &str, is_heard: impl Fn(&Place) -> bool) -> Option<Promise> {
        let board = &mut *self.board();
        let line = board.channels.get_mut(channel)?;
        while let Some(number) = line.turns.pop_front() {
            let entry =
                board.sessions.get_mut(&number).filter(|entry| entry.slots > 0 && is_heard(&entry.vacancy.place));
            let Some(entry) = entry else {
                line.listed.remove(&number);
                continue;
            };
            line.turns.push_back(number);
            entry.slots -= 1;
            entry.promised += 1;
            let (runner_id, session_id) = (entry.vacancy.place.runner_id.clone(), entry.vacancy.session_id.clone());
            return Some(Promise { number, runner_id, session_id });
        }
        board.channels.remove(channel);
        None
    }

    /// The job is stored as running there.
    pub fn keep(&self, promise: &Promise, job: Arc<Job>) {
        self.fulfil(promise, Some(job));
    }

    /// The job is not to be had.
    pub fn retract(&self, promise: &Promise) {
        self.fulfil(promise, None);
    }

    fn fulfil(&self, promise: &Promise, job: Option<Arc<Job>>) {
        if let Some(entry) = self.board().sessions.get_mut(&promise.number) {
            entry.promised = entry.promised.saturating_sub(1);
            entry.jobs.extend(job);
            entry.vacancy.notify.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;
    use crate::model::{JobId, JobSpec, Timestamp, create};

    fn vacancies(sessions: &[u64]) -> (Vacancies, Vec<Arc<Notify>>) {
        let vacancies = Vacancies::default();
        let notifies: Vec<Arc<Notify>> = sessions.iter().map(|_| Arc::default()).collect();
        for (number, notify) in sessions.iter().zip(&notifies) {
            let place = Place { runner_id: format!("r{number}").into(), stream: *number };
            let vacancy = Vacancy { place, session_id: format!("s{number}").into(), notify: notify.clone() };
            vacancies.enter(*number, vacancy);
        }
        (vacancies, notifies)
    }

    fn channels(names: &[&str]) -> Vec<Arc<str>> {
        names.iter().map(|name| Arc::from(*name)).collect()
    }

    fn runners(vacancies: &Vacancies, channel: &str, times: usize) -> Vec<String> {
        let promises = (0..times).map_while(|_| vacancies.promise(channel, |_| true));
        promises.map(|promise| promise.runner_id.to_string()).collect()
    }

    fn job() -> Arc<Job> {
        create(JobId(uuid::Uuid::from_u128(1)), JobSpec::sample(), "me".into(), Timestamp(1)).expect("a job").job
    }

    #[test]
    fn sessions_take_turns_until_their_slots_are_gone() {
        let (vacancies, _) = vacancies(&[1, 2]);
        vacancies.offer(1, &channels(&["a"]), 1);
        vacancies.offer(2, &channels(&["a", "b"]), 3);
        assert_eq!(runners(&vacancies, "a", 3), ["r1", "r2", "r2"]);
        assert_eq!(runners(&vacancies, "b", 9), ["r2"], "its slots are for either channel");
        assert!(runners(&vacancies, "a", 1).is_empty());
        vacancies.offer(1, &channels(&["a"]), 1);
        assert_eq!(runners(&vacancies, "a", 9), ["r1"]);
    }

    #[test]
    fn free_slots_are_counted() {
        let (vacancies, _) = vacancies(&[1, 2]);
        vacancies.offer(1, &channels(&["a"]), 2);
        vacancies.offer(2, &channels(&["a", "b"]), 3);
        assert_eq!((vacancies.slots("a", 9), vacancies.slots("a", 4)), (5, 4));
        assert_eq!((vacancies.slots("b", 9), vacancies.slots("c", 9)), (3, 0));
        vacancies.promise("b", |_| true).expect("a slot");
        vacancies.withdraw(1);
        assert_eq!(vacancies.slots("a", 9), 2);
    }

    #[test]
    fn what_was_withdrawn_or_is_not_heard_is_not_promised() {
        let (vacancies, _) = vacancies(&[1, 2]);
        vacancies.offer(1, &channels(&["a"]), 1);
        vacancies.offer(2, &channels(&["a"]), 1);
        vacancies.withdraw(1);
        assert!(vacancies.promise("a", |place| &*place.runner_id != "r2").is_none());
        vacancies.offer(2, &channels(&["a"]), 1);
        assert_eq!(runners(&vacancies, "a", 9), ["r2"], "it is in line again");
    }

    #[test]
    fn a_promise_counts_until_it_is_kept_or_retracted() {
        let (vacancies, notifies) = vacancies(&[1]);
        vacancies.offer(1, &channels(&["a"]), 2);
        let promises: Vec<Promise> = (0..2).map_while(|_| vacancies.promise("a", |_| true)).collect();
        assert_eq!(vacancies.withdraw(1).promised, 2);
        vacancies.keep(&promises[0], job());
        assert!(notifies[0].notified().now_or_never().is_some());
        let withdrawn = vacancies.withdraw(1);
        assert_eq!((withdrawn.jobs.len(), withdrawn.promised), (1, 1));
        vacancies.retract(&promises[1]);
        assert!(notifies[0].notified().now_or_never().is_some());
        let withdrawn = vacancies.withdraw(1);
        assert_eq!((withdrawn.jobs.len(), withdrawn.promised), (0, 0));
    }

    #[test]
    fn a_session_that_left_is_promised_nothing() {
        let (vacancies, _) = vacancies(&[1]);
        vacancies.offer(1, &channels(&["a"]), 2);
        let promise = vacancies.promise("a", |_| true).expect("a slot");
        vacancies.leave(1, &channels(&["a"]));
        vacancies.keep(&promise, job());
        assert!(vacancies.promise("a", |_| true).is_none());
        assert!(vacancies.board().channels.is_empty() && vacancies.board().sessions.is_empty());
    }
}
