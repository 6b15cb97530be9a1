//! Getting a stream, and getting another one.

use std::time::Duration;

use errand_proto::v1::Hello;
use futures::FutureExt;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep};

use super::{
    Executor, Line, Session, SessionError, Stop,
    backoff::chance,
    link::{Link, LinkError},
};

/// Tries for a runner id that is taken: an own session of before lapses within the resume window of 2 s, and
/// the first eight delays add up to more.
const TAKEN_TRIES_MAX: u32 = 9;
/// A stream that lived this long proves its server; a shorter one counts as a failed attempt.
const STABLE: Duration = Duration::from_secs(1);
const HEARTBEAT_DEFAULT: Duration = Duration::from_secs(5);

impl<E: Executor> Session<E> {
    /// Begins to open a stream, after the backoff. What is held is named as it stands: while no stream is open
    /// no receipt can come, so nothing that Hello names stops being held. A paused runner says so in Hello.
    pub(super) fn dial(&mut self) {
        let hello = Hello {
            runner_id: self.config.runner_id.clone(),
            channels: self.config.channels.clone(),
            capacity: self.ledger.announce(),
            hostname: self.config.hostname.clone(),
            client: self.config.client.clone(),
            session_id: self.session_id.clone(),
            leases: self.ledger.leases(),
        };
        let (delay, servers, index) = (self.backoff.next_delay(chance()), self.config.servers.clone(), self.server);
        let dialled = async move {
            sleep(delay).await;
            Link::open(&servers, index, hello).await
        };
        self.line = Line::Down(dialled.boxed());
    }

    pub(super) fn opened(&mut self, mut link: Box<Link>) {
        self.taken_tries = 0;
        let welcome = std::mem::take(&mut link.welcome);
        tracing::info!(node = welcome.node_id, session = welcome.session_id, "connected");
        self.session_id = welcome.session_id;
        for key in self.ledger.welcomed(&welcome.lost) {
            self.stop(&key, Stop::Kill);
        }
        let period = welcome.heartbeat_interval.and_then(|interval| interval.try_into().ok());
        let period = period.filter(|period: &Duration| !period.is_zero()).unwrap_or(HEARTBEAT_DEFAULT);
        let mut heartbeat = interval_at(Instant::now() + period, period);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.line = Line::Up(link, heartbeat);
    }

    pub(super) fn not_opened(&mut self, error: LinkError) -> Result<(), SessionError> {
        let is_first = self.session_id.is_empty();
        match error {
            LinkError::Refused(status) if is_first => return Err(SessionError::Refused(status)),
            LinkError::Taken(_) if is_first && self.taken_tries >= TAKEN_TRIES_MAX => {
                return Err(SessionError::Taken { runner_id: self.config.runner_id.clone() });
            }
            LinkError::Taken(_) => self.taken_tries += 1,
            error => {
                tracing::warn!(%error, "not connected, trying again");
                self.next_server();
            }
        }
        self.dial();
        Ok(())
    }

    fn next_server(&mut self) {
        self.server = self.server.wrapping_add(1);
    }

    /// The resume window is short, so the same server is tried first, unless it has hardly served.
    pub(super) fn line_lost(&mut self, reason: &str) {
        if let Line::Up(link, _) = &self.line
            && link.since.elapsed() >= STABLE
        {
            self.backoff.reset();
        } else {
            self.next_server();
        }
        tracing::warn!(reason, "connection lost, connecting again");
        self.dial();
    }

    pub(super) fn sent_away(&mut self, reason: &str) {
        tracing::info!(reason, "the server goes away, connecting to another");
        if let Line::Up(link, _) = &self.line
            && link.since.elapsed() >= STABLE
        {
            self.backoff.reset();
        }
        self.next_server();
        self.dial();
    }
}
