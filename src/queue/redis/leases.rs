//! Who holds which job until when, by Redis's own clock.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use redis::Value;
use tokio::time::Instant;

use super::{
    RedisSettings,
    access::Access,
    hunger::Hunger,
    keys::{Keys, LeaseKeys, bytes_of, lease_of},
};
use crate::{
    model::Lease,
    queue::{Lapsed, Unreachable},
    redis_link::Script,
};

/// How often Redis is asked for lapsed leases: no sooner than the first, and no later than the second.
const LOOK_MIN: Duration = Duration::from_millis(250);
const LOOK_MAX: Duration = Duration::from_millis(500);
/// How long nobody may have looked before it is taken for a loss of Redis: four looks of one node.
const ALIVE: Duration = Duration::from_secs(2);
/// Leases in one call, within the arguments that a Lua function takes.
const CALL_MAX: usize = 1_000;

pub(super) struct Leases {
    access: Arc<Access>,
    hunger: Arc<Hunger>,
    keys: LeaseKeys,
    settings: RedisSettings,
    scripts: Scripts,
    next_look: Mutex<Instant>,
    /// The name of Redis's memory when it was last seen.
    home: Mutex<Option<String>>,
}

struct Scripts {
    hold: Script,
    renew: Script,
    release: Script,
    shorten: Script,
    lapsed: Script,
}

/// What a look found out about Redis's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Home {
    Ours,
    /// It serves another database.
    Foreign,
}

impl Leases {
    pub(super) fn new(access: Arc<Access>, hunger: Arc<Hunger>, settings: RedisSettings) -> Leases {
        let keys = Keys::new(access.link.prefix()).leases();
        let scripts = Scripts {
            hold: Script::new(include_str!("scripts/hold.lua")),
            renew: Script::new(include_str!("scripts/renew.lua")),
            release: Script::new(include_str!("scripts/release.lua")),
            shorten: Script::new(include_str!("scripts/shorten.lua")),
            lapsed: Script::new(include_str!("scripts/lapsed.lua")),
        };
        let next_look = Mutex::new(Instant::now());
        Leases { access, hunger, keys, settings, scripts, next_look, home: Mutex::default() }
    }

    pub(super) async fn hold(&self, leases: &[Lease], holder: &str, ttl: Duration) -> Result<Vec<Lease>, Unreachable> {
        let mut given = Vec::with_capacity(leases.len());
        for chunk in leases.chunks(CALL_MAX) {
            let refused = self.give(&self.scripts.hold, chunk, holder, ttl).await?;
            given.extend(numbered(chunk).filter(|(number, _)| !refused.contains(number)).map(|(_, lease)| lease));
        }
        Ok(given)
    }

    pub(super) async fn renew(&self, leases: &[Lease], holder: &str, ttl: Duration) -> Vec<Lease> {
        let mut doubtful = Vec::new();
        for chunk in leases.chunks(CALL_MAX) {
            // What is not renewed lives until its deadline; the next heartbeat names it again.
            let Ok(numbers) = self.give(&self.scripts.renew, chunk, holder, ttl).await else { break };
            doubtful.extend(numbered(chunk).filter(|(number, _)| numbers.contains(number)).map(|(_, lease)| lease));
        }
        doubtful
    }

    async fn give(
        &self,
        script: &Script,
        leases: &[Lease],
        holder: &str,
        ttl: Duration,
    ) -> Result<Vec<usize>, Unreachable> {
        let keys = [&self.keys.deadlines, &self.keys.holders, &self.keys.by_holder];
        let mut call = script.call(&keys).arg(millis(ttl)).arg(holder);
        for lease in leases {
            call.push(&bytes_of(lease)[..]);
        }
        self.access.run(&call).await
    }

    pub(super) async fn shorten(&self, holder: &str, window: Duration) {
        let keys = [&self.keys.deadlines, &self.keys.by_holder];
        let call = self.scripts.shorten.call(&keys).arg(millis(window)).arg(holder);
        // Where it is not shortened, it lapses at its own time.
        let _ = self.access.run::<()>(&call).await;
        self.look_in(window);
    }

    pub(super) async fn release(&self, leases: &[Lease]) {
        let keys = [&self.keys.deadlines, &self.keys.holders, &self.keys.by_holder];
        for chunk in leases.chunks(CALL_MAX) {
            let mut call = self.scripts.release.call(&keys);
            for lease in chunk {
                call.push(&bytes_of(lease)[..]);
            }
            // What is not released lapses, and the state machine refuses its attempt.
            let _ = self.access.run::<()>(&call).await;
        }
    }

    pub(super) async fn holders(&self, leases: &[Lease]) -> Result<Vec<Option<Arc<str>>>, Unreachable> {
        let mut holders = Vec::with_capacity(leases.len());
        for chunk in leases.chunks(CALL_MAX) {
            let mut cmd = redis::cmd("HMGET");
            cmd.arg(&self.keys.holders);
            for lease in chunk {
                cmd.arg(&bytes_of(lease)[..]);
            }
            let known: Vec<Option<String>> = self.access.query(&cmd).await?;
            holders.extend(known.into_iter().map(|held| held.as_deref().and_then(|held| held.get(1..)).map(Arc::from)));
        }
        Ok(holders)
    }

    pub(super) async fn held_by(&self, holder: &str) -> Vec<Lease> {
        let mut cmd = redis::cmd("ZRANGE");
        cmd.arg(&self.keys.by_holder).arg(format!("[{holder}\0")).arg(format!("({holder}\x01")).arg("BYLEX");
        let members: Vec<Vec<u8>> = self.access.query(&cmd).await.unwrap_or_default();
        members.iter().filter_map(|member| lease_of(member.get(holder.len() + 1..)?)).collect()
    }

    /// Asks Redis where a look is due.
    pub(super) async fn lapsed(&self, limit: usize) -> Vec<Lapsed> {
        if limit == 0 || !self.begin_look() {
            return Vec::new();
        }
        let Ok((home, lapsed)) = self.look(limit.min(CALL_MAX)).await else { return Vec::new() };
        self.go_by(home);
        lapsed
    }

    /// Takes note of what Redis's memory is, and takes away up to `limit` lapsed leases if it is ours.
    pub(super) async fn look(&self, limit: usize) -> Result<(Home, Vec<Lapsed>), Unreachable> {
        let keys = &self.keys;
        let keys = [&keys.deadlines, &keys.holders, &keys.by_holder, &keys.home, &keys.alive, &keys.grace];
        let RedisSettings { database_id, node_id, lease_grace, .. } = &self.settings;
        let call = self.scripts.lapsed.call(&keys).arg(limit).arg(&**database_id).arg(&**node_id);
        let call = call.arg(millis(ALIVE)).arg(millis(*lease_grace));
        // Past the bar: somebody has to find out when it can be lifted.
        let answer: Vec<Value> = self.access.link.run(&call).await.map_err(|_| Unreachable)?;
        let [Value::BulkString(home), Value::Int(next_ms), leases @ ..] = answer.as_slice() else {
            return Err(Unreachable);
        };
        let home = String::from_utf8_lossy(home).into_owned();
        if home.split(' ').next() != Some(&**database_id) {
            return Ok((Home::Foreign, Vec::new()));
        }
        self.compare(home);
        let lapsed: Vec<Lapsed> = leases.chunks_exact(2).filter_map(lapsed_of).collect();
        let wait = if lapsed.len() == limit { Duration::ZERO } else { wait_for(*next_ms) };
        self.look_in(wait);
        Ok((Home::Ours, lapsed))
    }

    /// A memory with another name is another memory.
    fn compare(&self, seen: String) {
        let mut home = self.home.lock().unwrap_or_else(PoisonError::into_inner);
        if home.as_ref().is_some_and(|known| *known != seen) {
            tracing::warn!("redis has lost its memory; what it held is brought back from the store");
            self.hunger.forget_everything();
        }
        *home = Some(seen);
    }

    fn go_by(&self, home: Home) {
        match home {
            Home::Foreign if self.access.bar() => {
                tracing::error!("another database has taken this redis over; it is not used until that has ended");
            }
            Home::Ours if self.access.unbar() => self.hunger.forget_everything(),
            Home::Foreign | Home::Ours => {}
        }
    }

    fn next_look(&self) -> MutexGuard<'_, Instant> {
        self.next_look.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True where a look is due; until it is over, for nobody else.
    fn begin_look(&self) -> bool {
        let (mut next, now) = (self.next_look(), Instant::now());
        let due = *next <= now;
        if due {
            *next = now + LOOK_MAX;
        }
        due
    }

    /// Something of this node's lapses by then.
    pub(super) fn look_in(&self, wait: Duration) {
        let at = Instant::now() + wait;
        let mut next = self.next_look();
        *next = at.min(*next);
    }
}

/// How long to wait where the next lease lapses in so many ms, -1 for never: another node's may come before it.
fn wait_for(next_ms: i64) -> Duration {
    u64::try_from(next_ms).map_or(LOOK_MAX, |ms| Duration::from_millis(ms).clamp(LOOK_MIN, LOOK_MAX))
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// With their numbers, from 1 as scripts count.
fn numbered(leases: &[Lease]) -> impl Iterator<Item = (usize, Lease)> {
    leases.iter().enumerate().map(|(index, lease)| (index + 1, *lease))
}

fn lapsed_of(pair: &[Value]) -> Option<Lapsed> {
    let [Value::BulkString(lease), Value::BulkString(held)] = pair else { return None };
    let (kind, holder) = held.split_first()?;
    let holder = std::str::from_utf8(holder).ok()?.into();
    Some(Lapsed { lease: lease_of(lease)?, holder, accepted: *kind == b'a' })
}
