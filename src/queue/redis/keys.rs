//! How things are named and spelt in Redis.
//!
//! | key | type | what |
//! |---|---|---|
//! | `P:{CHANNEL}:window` | sorted set, all scores 0 | places of the jobs that can be taken: they sort as the line does |
//! | `P:{CHANNEL}:jobs` | hash by id | the head of the place of each job in `window` or `late`, and what is kept of it |
//! | `P:{CHANNEL}:late` | sorted set | places of jobs offered during a look into the store |
//! | `P:{CHANNEL}:more` | string | absent: the store holds no more; `uPLACE`: it may, behind that place, or anywhere where there is none; `aMS LOOK PLACE`: that look is under way until MS, from behind that place |
//! | `P:{CHANNEL}:quiet` | string, 10 s | an offer was announced since anybody last found too little |
//! | `P:{leases}:deadlines` | sorted set by ms of Redis's clock | leases |
//! | `P:{leases}:holders` | hash by lease | `h` or, once accepted, `a`, and the holder |
//! | `P:{leases}:by_holder` | sorted set, all scores 0 | holder, a zero byte, lease |
//! | `P:{leases}:home` | string | the database that this memory serves, and the memory's own name |
//! | `P:{leases}:alive`, `P:{leases}:grace` | string | somebody looked for lapsed leases lately; none lapses yet |
//!
//! What stands in braces chooses the slot of a cluster: all of a channel is in one, all leases are in one.

use std::sync::Arc;

use crate::model::{JobId, Lease, Timestamp, job::Ready};

/// Priority, time and id.
pub(super) const PLACE_LEN: usize = 4 + 8 + 16;
const LEASE_LEN: usize = 16 + 4;

pub(super) struct Keys {
    prefix: String,
}

pub(super) struct ChannelKeys {
    pub(super) window: String,
    pub(super) jobs: String,
    pub(super) more: String,
    pub(super) quiet: String,
    pub(super) late: String,
}

pub(super) struct LeaseKeys {
    pub(super) deadlines: String,
    pub(super) holders: String,
    pub(super) by_holder: String,
    pub(super) home: String,
    pub(super) alive: String,
    pub(super) grace: String,
}

impl Keys {
    pub(super) fn new(prefix: &str) -> Keys {
        Keys { prefix: prefix.to_owned() }
    }

    pub(super) fn channel(&self, channel: &str) -> ChannelKeys {
        let key = |what: &str| format!("{}:{{{channel}}}:{what}", self.prefix);
        ChannelKeys {
            window: key("window"),
            jobs: key("jobs"),
            more: key("more"),
            quiet: key("quiet"),
            late: key("late"),
        }
    }

    pub(super) fn leases(&self) -> LeaseKeys {
        let key = |what: &str| format!("{}:{{leases}}:{what}", self.prefix);
        LeaseKeys {
            deadlines: key("deadlines"),
            holders: key("holders"),
            by_holder: key("by_holder"),
            home: key("home"),
            alive: key("alive"),
            grace: key("grace"),
        }
    }
}

/// Bytes that sort as jobs do in their line: higher priority, then earlier time, then older id.
pub(super) fn place_of(job: &Ready) -> [u8; PLACE_LEN] {
    let mut place = [0; PLACE_LEN];
    place[..4].copy_from_slice(&(i32::MAX.abs_diff(job.priority)).to_be_bytes());
    place[4..12].copy_from_slice(&u64::try_from(job.ready_at.0).unwrap_or(0).to_be_bytes());
    place[12..].copy_from_slice(job.id.as_bytes());
    place
}

/// None for bytes that are no place.
pub(super) fn ready_of(place: &[u8], channel: &Arc<str>) -> Option<Ready> {
    let (priority, rest) = place.split_first_chunk::<4>()?;
    let (ready_at, id) = rest.split_first_chunk::<8>()?;
    let priority = i64::from(i32::MAX) - i64::from(u32::from_be_bytes(*priority));
    Some(Ready {
        id: JobId::from_slice(id)?,
        channel: channel.clone(),
        priority: i32::try_from(priority).ok()?,
        ready_at: Timestamp(i64::try_from(u64::from_be_bytes(*ready_at)).ok()?),
    })
}

pub(super) fn bytes_of(lease: &Lease) -> [u8; LEASE_LEN] {
    let mut bytes = [0; LEASE_LEN];
    bytes[..16].copy_from_slice(lease.job_id.as_bytes());
    bytes[16..].copy_from_slice(&lease.attempt.to_be_bytes());
    bytes
}

/// None for bytes that are no lease.
pub(super) fn lease_of(bytes: &[u8]) -> Option<Lease> {
    let (id, attempt) = bytes.split_first_chunk::<16>()?;
    let attempt = u32::from_be_bytes(attempt.try_into().ok()?);
    Some(Lease { job_id: JobId::from_slice(id)?, attempt })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_ready() -> impl Strategy<Value = Ready> {
        (any::<i32>(), 0..=Timestamp::MAX.0, any::<u128>()).prop_map(|(priority, ready_at, id)| Ready {
            id: JobId(uuid::Uuid::from_u128(id)),
            channel: "a".into(),
            priority,
            ready_at: Timestamp(ready_at),
        })
    }

    proptest! {
        #[test]
        fn a_place_tells_its_job(ready in any_ready()) {
            prop_assert_eq!(ready_of(&place_of(&ready), &"a".into()), Some(ready));
        }

        #[test]
        fn places_sort_as_the_line_does(a in any_ready(), b in any_ready()) {
            let key = |ready: &Ready| (std::cmp::Reverse(ready.priority), ready.ready_at, ready.id);
            prop_assert_eq!(place_of(&a).cmp(&place_of(&b)), key(&a).cmp(&key(&b)));
        }

        #[test]
        fn bytes_tell_their_lease(id in any::<u128>(), attempt in any::<u32>()) {
            let lease = Lease { job_id: JobId(uuid::Uuid::from_u128(id)), attempt };
            prop_assert_eq!(lease_of(&bytes_of(&lease)), Some(lease));
        }
    }

    #[test]
    fn other_bytes_are_neither_place_nor_lease() {
        for length in [0, 3, 12, 19, 21, 27, 29] {
            assert_eq!(ready_of(&vec![0; length], &"a".into()), None);
            assert_eq!(lease_of(&vec![0; length]), None);
        }
    }
}
