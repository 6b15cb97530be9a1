//! A TCP proxy between the runner and a server, for everything that networks do to connections.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::scenario::Verdict;

const BUFFER_BYTES: usize = 16 * 1024;
/// For what is still on its way when the other direction has ended.
const LAST_WORDS_MAX: Duration = Duration::from_millis(100);

/// What connections of one generation are subject to.
#[derive(Clone, Debug, Default)]
struct Fate {
    cut: CancellationToken,
    /// Nothing goes from the runner to the server any more.
    stall_up: CancellationToken,
    /// Nothing goes from the server to the runner any more.
    stall_down: CancellationToken,
}

#[derive(Debug)]
struct State {
    upstream: SocketAddr,
    fate: Mutex<Fate>,
    refuses: AtomicBool,
    connects: AtomicUsize,
    bytes_up: AtomicU64,
}

/// A listener on a free port. Dropped, it closes with all its connections.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    state: Arc<State>,
    closed: CancellationToken,
}

impl Proxy {
    pub async fn before(upstream: SocketAddr) -> Verdict<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let state = Arc::new(State {
            upstream,
            fate: Mutex::default(),
            refuses: AtomicBool::new(false),
            connects: AtomicUsize::new(0),
            bytes_up: AtomicU64::new(0),
        });
        let closed = CancellationToken::new();
        tokio::spawn(closed.clone().run_until_cancelled_owned(accept(listener, Arc::clone(&state))));
        Ok(Self { address, state, closed })
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Severs every connection there is; new ones are taken.
    pub fn cut(&self) {
        std::mem::take(&mut *self.state.fate()).cut.cancel();
    }

    /// Severs every connection, and each new one at once, until [`Self::allow`].
    pub fn refuse(&self) {
        self.state.refuses.store(true, Ordering::SeqCst);
        self.cut();
    }

    /// Takes connections again.
    pub fn allow(&self) {
        self.state.refuses.store(false, Ordering::SeqCst);
    }

    /// Lets every connection there is hang without closing it; new ones work.
    pub fn stall(&self) {
        let fate = self.state.fate();
        fate.stall_up.cancel();
        fate.stall_down.cancel();
        drop(fate);
        self.renew_keeping_open();
    }

    /// Lets the runner speak and hear nothing, until the connection is cut.
    pub fn deafen(&self) {
        self.state.fate().stall_down.cancel();
    }

    /// Connections that the runner opened so far.
    pub fn connects(&self) -> usize {
        self.state.connects.load(Ordering::SeqCst)
    }

    /// Bytes that the runner sent so far.
    pub fn bytes_up(&self) -> u64 {
        self.state.bytes_up.load(Ordering::SeqCst)
    }

    /// A new generation that shares only the cut with the stalled one.
    fn renew_keeping_open(&self) {
        let mut fate = self.state.fate();
        *fate = Fate { cut: fate.cut.clone(), ..Fate::default() };
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.closed.cancel();
        self.cut();
    }
}

impl State {
    fn fate(&self) -> MutexGuard<'_, Fate> {
        // Nothing panics while it holds the lock; what it guards is whole.
        self.fate.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn accept(listener: TcpListener, state: Arc<State>) {
    while let Ok((runner, _)) = listener.accept().await {
        state.connects.fetch_add(1, Ordering::SeqCst);
        if state.refuses.load(Ordering::SeqCst) {
            continue;
        }
        let fate = state.fate().clone();
        let state = Arc::clone(&state);
        tokio::spawn(async move {
            fate.cut.clone().run_until_cancelled(carry(runner, &state, &fate)).await;
        });
    }
}

async fn carry(runner: TcpStream, state: &State, fate: &Fate) {
    let Ok(server) = TcpStream::connect(state.upstream).await else { return };
    // Small messages must not wait for each other.
    let _ = (runner.set_nodelay(true), server.set_nodelay(true));
    let ((from_runner, to_runner), (from_server, to_server)) = (runner.into_split(), server.into_split());
    let up = copy(from_runner, to_server, &fate.stall_up, Some(&state.bytes_up));
    let down = copy(from_server, to_runner, &fate.stall_down, None);
    tokio::pin!(up);
    // Either side's end is the end of both; but what a runner said before it died is still handed on.
    tokio::select! {
        () = &mut up => {}
        () = down => {
            let _ = timeout(LAST_WORDS_MAX, up).await;
        }
    }
}

async fn copy(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, stall: &CancellationToken, count: Option<&AtomicU64>) {
    let mut bytes = vec![0; BUFFER_BYTES];
    loop {
        let read = stall.run_until_cancelled(from.read(&mut bytes)).await;
        match read {
            None => std::future::pending().await,
            Some(Ok(0) | Err(_)) => return,
            Some(Ok(length)) => {
                if let Some(count) = count {
                    count.fetch_add(length as u64, Ordering::SeqCst);
                }
                if to.write_all(&bytes[..length]).await.is_err() {
                    return;
                }
            }
        }
    }
}
