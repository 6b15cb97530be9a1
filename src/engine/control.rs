//! Steering runners: commands, and the replies that come back.

use std::{sync::Arc, time::Duration};

use serde_json::value::RawValue;
use tokio::{sync::mpsc, time::Instant};

use super::{
    EngineError, Shared,
    error::RUNNER_NOT_FOUND,
    messages::{Command, CommandKind, Presence, Reply},
};
use crate::fleet;

/// A command for many runners.
#[derive(Debug, Clone, PartialEq)]
pub struct Order {
    pub kind: CommandKind,
    /// A JSON object, or empty.
    pub data: String,
    pub timeout: Duration,
    /// Empty: every live runner.
    pub runner_ids: Vec<String>,
}

impl Shared {
    fn command(&self, kind: CommandKind, data: String, graceful: bool) -> Command {
        let command_id = format!("{:016x}", self.dice.roll());
        Command { command_id, kind, data, graceful }
    }

    /// The round trip to a runner and back; none where it does not answer in time.
    pub(super) async fn ping(&self, runner_id: &str, timeout: Duration) -> Option<Duration> {
        let command = self.command(CommandKind::Ping, String::new(), false);
        let command_id = command.command_id.clone();
        let (to, mut replies) = mpsc::channel(1);
        let started = Instant::now();
        let alive = self.registry.lives(runner_id, self.now()).await;
        if !alive || !self.registry.expect_reply(&command_id, to) {
            return None;
        }
        let sent = self.give(&runner_id.into(), command).await;
        let reply = if sent { tokio::time::timeout(timeout, replies.recv()).await.ok().flatten() } else { None };
        self.registry.forget_reply(&command_id);
        reply.map(|_| started.elapsed())
    }

    /// Gives a command to a runner, whose reply comes back to this node. False where it does not take it.
    async fn give(&self, runner_id: &Arc<str>, command: Command) -> bool {
        let reply_to = self.settings.node_id.clone();
        self.registry.order(runner_id, fleet::Order::Command { command, reply_to }).await
    }

    pub(super) async fn shutdown(&self, runner_id: &str, graceful: bool) -> Result<(), EngineError> {
        let command = self.command(CommandKind::Shutdown, String::new(), graceful);
        if self.give(&runner_id.into(), command).await {
            return Ok(());
        }
        let known = self.registry.lives(runner_id, self.now()).await;
        Err(if known { EngineError::Busy("the runner takes no commands; try again") } else { RUNNER_NOT_FOUND })
    }

    /// Sends a command to every runner meant, and gathers the replies that come in time.
    pub(super) async fn broadcast(&self, order: Order) -> Vec<Reply> {
        let Order { kind, data, timeout, runner_ids } = order;
        let meant = |runner: &Presence| {
            runner.alive && (runner_ids.is_empty() || runner_ids.iter().any(|id| **id == *runner.runner_id))
        };
        let runners: Vec<Presence> = self.registry.roster(self.now()).await.into_iter().filter(meant).collect();
        let (to, mut replies) = mpsc::channel(runners.len().max(1));
        let mut awaited = Vec::new();
        for runner in &runners {
            let command = self.command(kind, data.clone(), true);
            let command_id = command.command_id.clone();
            if self.registry.expect_reply(&command_id, to.clone()) {
                if self.give(&runner.runner_id, command).await {
                    awaited.push(command_id);
                } else {
                    self.registry.forget_reply(&command_id);
                }
            }
        }
        drop(to);
        let deadline = Instant::now() + timeout;
        let mut gathered = Vec::new();
        while gathered.len() < awaited.len() {
            match tokio::time::timeout_at(deadline, replies.recv()).await {
                Ok(Some(reply)) => gathered.push(self.with_what_is_known(reply, &runners)),
                Ok(None) | Err(_) => break,
            }
        }
        for command_id in awaited {
            self.registry.forget_reply(&command_id);
        }
        gathered.sort_by(|a, b| a.runner_id.cmp(&b.runner_id));
        gathered
    }

    /// What the service knows of the runner, and then what its own reply adds.
    fn with_what_is_known(&self, reply: Reply, runners: &[Presence]) -> Reply {
        let Some(runner) = runners.iter().find(|runner| runner.runner_id == reply.runner_id) else { return reply };
        let channels: Vec<&str> = runner.channels.iter().map(Arc::as_ref).collect();
        let known = serde_json::json!({
            "runner_id": &*runner.runner_id,
            "channels": channels,
            "jobs_processed": runner.jobs_processed,
            "jobs_failed": runner.jobs_failed,
            "started": runner.started.to_rfc3339(),
            "timestamp": self.now().to_rfc3339(),
        });
        let own: std::collections::BTreeMap<String, Box<RawValue>> =
            serde_json::from_str(&reply.data).unwrap_or_default();
        let mut fields = Vec::new();
        if let serde_json::Value::Object(known) = known {
            for (key, value) in known.into_iter().filter(|(key, _)| !own.contains_key(key) || key == "runner_id") {
                fields.push(format!("{}:{value}", serde_json::Value::from(key)));
            }
        }
        for (key, value) in own.into_iter().filter(|(key, _)| key != "runner_id") {
            fields.push(format!("{}:{}", serde_json::Value::from(key), value.get()));
        }
        Reply { data: format!("{{{}}}", fields.join(",")), ..reply }
    }
}
