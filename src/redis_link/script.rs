//! Lua scripts, and calls of them.

use redis::{Cmd, RedisResult, ToRedisArgs, aio::ConnectionLike};

/// A script, which Redis knows by its hash once it was loaded.
pub struct Script(redis::Script);

impl Script {
    pub fn new(text: &str) -> Script {
        Script(redis::Script::new(text))
    }

    /// A call with these keys: all that the script touches, in one slot.
    pub fn call<K: ToRedisArgs>(&self, keys: &[K]) -> Call<'_> {
        let mut cmd = redis::cmd("EVALSHA");
        cmd.arg(self.0.get_hash()).arg(keys.len());
        for key in keys {
            cmd.arg(key);
        }
        Call { script: self, cmd }
    }
}

/// One call of a script, ready to be made.
pub struct Call<'s> {
    script: &'s Script,
    pub(super) cmd: Cmd,
}

impl Call<'_> {
    pub fn arg(mut self, arg: impl ToRedisArgs) -> Self {
        self.cmd.arg(arg);
        self
    }

    pub fn push(&mut self, arg: impl ToRedisArgs) {
        self.cmd.arg(arg);
    }

    /// Redis forgets scripts with its memory.
    pub(super) async fn load(&self, connection: &mut impl ConnectionLike) -> RedisResult<()> {
        self.script.0.load_async(connection).await.map(drop)
    }
}
