//! Where an adapter puts a node's letters until the node reads them.

use tokio::sync::{Mutex as Turnstile, mpsc};

use super::{LETTERS_MAX, Letter};

/// Letters handed over at once.
const RECEIVE_MAX: usize = 256;

pub(super) struct Inbox(Turnstile<mpsc::Receiver<Letter>>);

impl Inbox {
    /// With the end that letters are put into.
    pub(super) fn new() -> (mpsc::Sender<Letter>, Inbox) {
        let (letters, inbox) = mpsc::channel(LETTERS_MAX);
        (letters, Inbox(Turnstile::new(inbox)))
    }

    /// Waits for the first letter; for ever where nobody can write any more. Cancel-safe.
    pub(super) async fn receive(&self) -> Vec<Letter> {
        let mut inbox = self.0.lock().await;
        let mut letters = Vec::new();
        inbox.recv_many(&mut letters, RECEIVE_MAX).await;
        if letters.is_empty() {
            std::future::pending::<()>().await;
        }
        letters
    }
}
