//! The fleet whose nodes share a Redis.
//!
//! Everything is in one slot of a cluster, changed by scripts and timed by Redis's clock. Letters are messages, which Redis
//! keeps for nobody: a node that does not hear at the moment has lost them. Where Redis gives no answer, streams are let
//! in unseen (the state machine's fences refuse what a doubled runner reports late), and nobody leads.
//!
//! | key | type | what |
//! |---|---|---|
//! | `P:{fleet}:runners` | hash by runner | its presence, in JSON |
//! | `P:{fleet}:sessions` | hash by runner | its session |
//! | `P:{fleet}:streams` | hash by runner | `1` or, once closed, `0`, then `:STREAM:NODE` |
//! | `P:{fleet}:heard` | sorted set by ms of Redis's clock | when each runner was last heard of |
//! | `P:{fleet}:nodes` | hash by node | its report, in JSON |
//! | `P:{fleet}:nodes_heard` | sorted set by ms of Redis's clock | when each node was last heard of |
//! | `P:{fleet}:leader` | string that expires | the node that leads |

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use async_trait::async_trait;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, watch};

use super::{
    Admission, Arrival, Beat, Fleet, LETTERS_MAX, Letter, NODE_SILENT_AFTER, NodeReport, REMEMBER, Stream, Unreachable,
    inbox::Inbox,
};
use crate::{
    model::runner::Presence,
    redis_link::{Call, Listener, RedisLink, Script},
};

/// Beats in one call: a call should not keep Redis from others for long.
const BEATS_MAX: usize = 500;
/// Letters in one message.
const LETTERS_SENT_MAX: usize = 256;
/// How long a node may take to begin to hear messages when it joins; afterwards it joins all the same.
const HEARING_PATIENCE: Duration = Duration::from_secs(3);

macro_rules! script {
    ($name:literal) => {
        LazyLock::new(|| {
            Script::new(concat!(include_str!("redis/prelude.lua"), include_str!(concat!("redis/", $name, ".lua"))))
        })
    };
}

static ADMIT: LazyLock<Script> = script!("admit");
static ANNOUNCE: LazyLock<Script> = script!("announce");
static DEPART: LazyLock<Script> = script!("depart");
static ROSTER: LazyLock<Script> = script!("roster");
static FIND: LazyLock<Script> = script!("find");
static NODES: LazyLock<Script> = script!("nodes");
static SEND: LazyLock<Script> = script!("send");
static LEAD: LazyLock<Script> = script!("lead");
static LEAVE: LazyLock<Script> = script!("leave");

pub struct FleetSettings {
    /// Tells the messages of this database's nodes from those of others: Redis's database numbers do not.
    pub database_id: Arc<str>,
    pub node_id: Arc<str>,
    /// A runner that was not heard of for longer is not alive.
    pub silent_after: Duration,
}

pub struct RedisFleet {
    link: RedisLink,
    keys: Keys,
    settings: FleetSettings,
    inbox: Inbox,
}

struct Keys {
    runners: String,
    sessions: String,
    streams: String,
    heard: String,
    nodes: String,
    nodes_heard: String,
    leader: String,
}

impl Keys {
    fn new(prefix: &str) -> Keys {
        let key = |what: &str| format!("{prefix}:{{fleet}}:{what}");
        Keys {
            runners: key("runners"),
            sessions: key("sessions"),
            streams: key("streams"),
            heard: key("heard"),
            nodes: key("nodes"),
            nodes_heard: key("nodes_heard"),
            leader: key("leader"),
        }
    }

    /// What is known of runners, and which nodes are there.
    fn runners(&self) -> [&str; 5] {
        [&self.runners, &self.sessions, &self.streams, &self.heard, &self.nodes_heard]
    }
}

impl RedisFleet {
    /// Joins, and waits until letters are heard.
    pub async fn join(link: RedisLink, settings: FleetSettings) -> RedisFleet {
        let (letters, inbox) = Inbox::new();
        let (hearing, mut heard) = watch::channel(false);
        let listener = Arc::new(Mailbox { letters, hearing });
        let fleet = RedisFleet { keys: Keys::new(link.prefix()), link, settings, inbox };
        fleet.link.listen(fleet.mailbox_of(&fleet.settings.node_id), listener);
        if tokio::time::timeout(HEARING_PATIENCE, heard.wait_for(|hears| *hears)).await.is_err() {
            tracing::warn!("this node does not hear the letters of others yet");
        }
        fleet
    }

    /// The name of the message channel that a node listens to.
    fn mailbox_of(&self, node_id: &str) -> String {
        format!("{}:{}:node:{node_id}", self.link.prefix(), self.settings.database_id)
    }

    async fn run<T: redis::FromRedisValue>(&self, call: Call<'_>) -> Result<T, Unreachable> {
        self.link.run(&call).await.map_err(|_| Unreachable)
    }

    fn presence(&self, runner: Known) -> Option<Presence> {
        let Known { presence, stream, lives } = runner;
        let presence: Presence = read(&presence)?;
        let attached = stream.starts_with('1');
        let running = if attached { presence.running } else { 0 };
        Some(Presence { alive: lives, running, ..presence })
    }

    fn silences(&self) -> [u64; 2] {
        [millis(self.settings.silent_after), millis(NODE_SILENT_AFTER)]
    }
}

/// One runner as the scripts tell it: its presence, its stream, and whether it lives.
struct Known {
    presence: String,
    stream: String,
    lives: bool,
}

impl Known {
    fn from(told: (String, String, u8)) -> Known {
        let (presence, stream, lives) = told;
        Known { presence, stream, lives: lives == 1 }
    }
}

#[async_trait]
impl Fleet for RedisFleet {
    async fn admit(&self, arrival: Arrival) -> Admission {
        let Arrival { presence, session_id, resumes, stream } = arrival;
        let beat = Beat { presence, session_id, stream, heard_ago: Duration::ZERO };
        let call = add_beat(ADMIT.call(&self.keys.runners()), &beat);
        let [silent, node_silent] = self.silences();
        let call = call.arg(u8::from(resumes)).arg(silent).arg(node_silent);
        let Ok((kind, earlier, session_id, known)) = self.run::<(String, String, String, String)>(call).await else {
            return Admission::Fresh;
        };
        let earlier = stream_of(&earlier);
        match (kind.as_str(), earlier) {
            ("taken", _) => Admission::Taken,
            ("replaced", Some(earlier)) => Admission::Replaced { earlier, session_id: session_id.into() },
            ("resumed", Some(earlier)) => {
                let Some(known) = read::<Presence>(&known) else { return Admission::Fresh };
                let Presence { jobs_processed, jobs_failed, started, .. } = known;
                let presence = Presence { jobs_processed, jobs_failed, started, ..beat.presence.clone() };
                self.beat(None, &[Beat { presence, ..beat }]).await;
                Admission::Resumed { earlier, jobs_processed, jobs_failed, started }
            }
            _ => Admission::Fresh,
        }
    }

    async fn announce(&self, report: Option<NodeReport>, beats: Vec<Beat>) {
        let (first, rest) = beats.split_at(beats.len().min(BEATS_MAX));
        if report.is_some() || !first.is_empty() {
            self.beat(report.as_ref(), first).await;
        }
        for page in rest.chunks(BEATS_MAX) {
            self.beat(None, page).await;
        }
    }

    async fn depart(&self, last: Beat) -> bool {
        let call = add_beat(DEPART.call(&self.keys.runners()), &last);
        // Where nobody can be asked, its leases must lapse all the same.
        self.run::<u8>(call).await.is_ok_and(|own| own == 1) || !self.link.is_well()
    }

    async fn roster(&self) -> Vec<Presence> {
        let [silent, node_silent] = self.silences();
        let call = ROSTER.call(&self.keys.runners()).arg(silent).arg(node_silent).arg(millis(REMEMBER));
        let told: Vec<(String, String, u8)> = self.run(call).await.unwrap_or_default();
        let mut roster: Vec<Presence> =
            told.into_iter().filter_map(|runner| self.presence(Known::from(runner))).collect();
        roster.sort_by(|a, b| a.runner_id.cmp(&b.runner_id));
        roster
    }

    async fn find(&self, runner_id: &str) -> Result<Option<Presence>, Unreachable> {
        let [silent, node_silent] = self.silences();
        let call = FIND.call(&self.keys.runners()).arg(silent).arg(node_silent).arg(runner_id);
        let told: Vec<(String, String, u8)> = self.run(call).await?;
        Ok(told.into_iter().next().and_then(|runner| self.presence(Known::from(runner))))
    }

    async fn nodes(&self) -> Vec<NodeReport> {
        let call = NODES.call(&[&self.keys.nodes, &self.keys.nodes_heard]).arg(millis(NODE_SILENT_AFTER));
        let told: Vec<String> = self.run(call).await.unwrap_or_default();
        let mut nodes: Vec<NodeReport> = told.iter().filter_map(|report| read(report)).collect();
        nodes.sort_by(|a, b| a.node_id.cmp(&b.node_id));
        nodes
    }

    async fn send(&self, node_id: &str, letters: Vec<Letter>) -> bool {
        for page in letters.chunks(LETTERS_SENT_MAX) {
            let call = SEND.call(&[&self.keys.nodes_heard]).arg(millis(NODE_SILENT_AFTER)).arg(node_id);
            let call = call.arg(self.mailbox_of(node_id)).arg(write(&page));
            if self.run::<u8>(call).await != Ok(1) {
                return false;
            }
        }
        true
    }

    async fn receive(&self) -> Vec<Letter> {
        self.inbox.receive().await
    }

    async fn lead(&self, ttl: Duration) -> bool {
        let call = LEAD.call(&[&self.keys.leader]).arg(&*self.settings.node_id).arg(millis(ttl));
        self.run::<u8>(call).await == Ok(1)
    }

    async fn leader(&self) -> Option<Arc<str>> {
        let mut get = redis::cmd("GET");
        get.arg(&self.keys.leader);
        self.link.query::<Option<String>>(&get).await.ok().flatten().map(Arc::from)
    }

    async fn leave(&self) {
        let keys = [&self.keys.nodes, &self.keys.nodes_heard, &self.keys.leader];
        // A node that cannot say so is missed soon.
        let _ = self.run::<u8>(LEAVE.call(&keys).arg(&*self.settings.node_id)).await;
    }
}

impl RedisFleet {
    async fn beat(&self, report: Option<&NodeReport>, beats: &[Beat]) {
        let keys = [&self.keys.runners()[..], &[&*self.keys.nodes]].concat();
        let mut call = ANNOUNCE.call(&keys);
        call.push(&*self.settings.node_id);
        call.push(report.map(write).unwrap_or_default());
        for beat in beats {
            call = add_beat(call, beat);
        }
        // The next announcement says it again.
        let _ = self.run::<u8>(call).await;
    }
}

/// Runner, session, stream, presence, and how long ago it was heard of.
fn add_beat<'s>(call: Call<'s>, beat: &Beat) -> Call<'s> {
    let stream = format!("1:{}:{}", beat.stream, beat.presence.node_id);
    let call = call.arg(&*beat.presence.runner_id).arg(&*beat.session_id).arg(stream);
    call.arg(write(&beat.presence)).arg(millis(beat.heard_ago))
}

fn stream_of(text: &str) -> Option<Stream> {
    let mut parts = text.splitn(3, ':');
    let attached = parts.next()? == "1";
    let stream = parts.next()?.parse().ok()?;
    Some(Stream { node_id: parts.next()?.into(), stream, attached })
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// What cannot be read was written by another version; it is as if it were not there.
fn read<T: DeserializeOwned>(json: &str) -> Option<T> {
    serde_json::from_str(json).inspect_err(|error| tracing::debug!(%error, "a note in redis is not understood")).ok()
}

fn write(value: &impl serde::Serialize) -> String {
    // Plain data with texts as keys is always spelt.
    serde_json::to_string(value).unwrap_or_default()
}

/// Hears the letters of other nodes.
struct Mailbox {
    letters: mpsc::Sender<Letter>,
    hearing: watch::Sender<bool>,
}

impl Listener for Mailbox {
    fn hear(&self, message: &[u8]) {
        let letters: Vec<Letter> = std::str::from_utf8(message).ok().and_then(read).unwrap_or_default();
        for letter in letters {
            if self.letters.try_send(letter).is_err() {
                tracing::warn!("a letter of another node was lost: {LETTERS_MAX} wait to be read");
            }
        }
    }

    fn hearing(&self) {
        self.hearing.send_replace(true);
    }
}
