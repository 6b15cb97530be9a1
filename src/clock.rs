//! The only doors to time and chance.
//!
//! Everything that needs to know the time or draw a random number gets one of these, so that a simulation can run the
//! whole service on paused time from a seed.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::time::Instant;

use crate::model::{JobId, Timestamp};

/// Tells the time.
pub trait Clock: Send + Sync {
    fn now(&self) -> Timestamp;
}

/// Wall time at its making, and from then on tokio's monotonic time: it never jumps, and it stands still where tokio's
/// time is paused.
pub struct SystemClock {
    origin: Timestamp,
    started: Instant,
}

impl SystemClock {
    #[expect(clippy::new_without_default, reason = "reading the time is an effect, not a default")]
    #[expect(clippy::disallowed_methods, reason = "this is the door")]
    pub fn new() -> SystemClock {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        SystemClock { origin: Timestamp(0).plus(since_epoch), started: Instant::now() }
    }

    /// Starts at `origin`, whatever the wall says.
    pub fn starting_at(origin: Timestamp) -> SystemClock {
        SystemClock { origin, started: Instant::now() }
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        self.origin.plus(self.started.elapsed())
    }
}

/// Draws 64 random bits.
pub trait Dice: Send + Sync {
    fn roll(&self) -> u64;

    /// A new job id of this time; ids sort by creation time, to the millisecond.
    fn job_id(&self, now: Timestamp) -> JobId;
}

/// The operating system's randomness.
pub struct SystemDice {
    /// Orders ids made within one millisecond.
    context: Mutex<uuid::ContextV7>,
}

impl SystemDice {
    #[expect(clippy::new_without_default, reason = "drawing randomness is an effect, not a default")]
    pub fn new() -> SystemDice {
        SystemDice { context: Mutex::new(uuid::ContextV7::new()) }
    }
}

impl Dice for SystemDice {
    #[expect(clippy::disallowed_methods, reason = "this is the door")]
    fn roll(&self) -> u64 {
        uuid::Uuid::new_v4().as_u64_pair().1 ^ uuid::Uuid::new_v4().as_u64_pair().0.rotate_left(17)
    }

    fn job_id(&self, now: Timestamp) -> JobId {
        let seconds = u64::try_from(now.0 / 1_000_000).unwrap_or(0);
        let nanos = u32::try_from(now.0.rem_euclid(1_000_000) * 1_000).unwrap_or(0);
        let context = self.context.lock().unwrap_or_else(PoisonError::into_inner);
        JobId(uuid::Uuid::new_v7(uuid::Timestamp::from_unix(&*context, seconds, nanos)))
    }
}

/// Pseudo-random from a seed: the same seed, the same rolls.
pub struct SeededDice(Mutex<u64>);

impl SeededDice {
    pub fn new(seed: u64) -> SeededDice {
        SeededDice(Mutex::new(seed))
    }
}

impl Dice for SeededDice {
    fn roll(&self) -> u64 {
        // SplitMix64: one addition and two multiplications give well-mixed bits from a counter.
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = *state;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    fn job_id(&self, now: Timestamp) -> JobId {
        let millis = u64::try_from(now.0 / 1_000).unwrap_or(0);
        let mut random = [0u8; 10];
        random[..8].copy_from_slice(&self.roll().to_be_bytes());
        random[8..].copy_from_slice(&self.roll().to_be_bytes()[..2]);
        JobId(uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid())
    }
}
