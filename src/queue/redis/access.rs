//! Calls of Redis, as long as it serves this database and no other.

use std::sync::atomic::{AtomicBool, Ordering};

use redis::{Cmd, FromRedisValue};

use crate::{
    queue::Unreachable,
    redis_link::{Call, RedisLink},
};

pub(super) struct Access {
    pub(super) link: RedisLink,
    is_barred: AtomicBool,
}

impl Access {
    pub(super) fn new(link: RedisLink) -> Access {
        Access { link, is_barred: AtomicBool::new(false) }
    }

    pub(super) async fn run<T: FromRedisValue>(&self, call: &Call<'_>) -> Result<T, Unreachable> {
        if self.is_barred.load(Ordering::Acquire) {
            return Err(Unreachable);
        }
        self.link.run(call).await.map_err(|_| Unreachable)
    }

    pub(super) async fn query<T: FromRedisValue>(&self, cmd: &Cmd) -> Result<T, Unreachable> {
        if self.is_barred.load(Ordering::Acquire) {
            return Err(Unreachable);
        }
        self.link.query(cmd).await.map_err(|_| Unreachable)
    }

    /// Redis serves another database; nothing must be mixed with what it holds. Tells whether that is news.
    pub(super) fn bar(&self) -> bool {
        !self.is_barred.swap(true, Ordering::AcqRel)
    }

    /// Redis serves this database. Tells whether that is news.
    pub(super) fn unbar(&self) -> bool {
        self.is_barred.swap(false, Ordering::AcqRel)
    }

    pub(super) fn is_well(&self) -> bool {
        self.link.is_well() && !self.is_barred.load(Ordering::Acquire)
    }
}
