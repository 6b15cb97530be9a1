//! A connection that puts its writes off for one turn.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

/// Reads and writes like `IO`, but puts the first write after a flush off until the tasks that are ready now have had their
/// turn.
pub struct Gathered<IO> {
    io: IO,
    /// Whether the others had their turn.
    is_due: bool,
}

impl<IO> Gathered<IO> {
    /// Wraps a connection.
    pub fn new(io: IO) -> Gathered<IO> {
        Gathered { io, is_due: false }
    }

    fn poll_due(&mut self, context: &Context<'_>) -> Poll<()> {
        if self.is_due {
            return Poll::Ready(());
        }
        self.is_due = true;
        // A task that wakes itself while it runs goes behind those that are ready.
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Gathered<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Gathered<IO> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_due(context));
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.is_due = false;
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_due(context));
        Pin::new(&mut self.io).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

impl<IO: Connected> Connected for Gathered<IO> {
    type ConnectInfo = IO::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.io.connect_info()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering::Relaxed},
        },
        task::{Wake, Waker},
    };

    use tokio::io::AsyncReadExt;

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    #[tokio::test]
    async fn the_first_write_after_a_flush_waits_for_another_turn() {
        let (mut far, near) = tokio::io::duplex(16);
        let mut connection = Gathered::new(near);
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(woken.clone());
        let mut context = Context::from_waker(&waker);
        for turn in 1..=2 {
            assert!(Pin::new(&mut connection).poll_write(&mut context, b"a").is_pending());
            assert_eq!(woken.0.load(Relaxed), turn, "it comes back by itself");
            for piece in [b"ab", b"cd"] {
                let written = Pin::new(&mut connection).poll_write(&mut context, piece);
                assert!(matches!(written, Poll::Ready(Ok(2))));
            }
            assert!(Pin::new(&mut connection).poll_flush(&mut context).is_ready());
            let mut read = [0; 4];
            far.read_exact(&mut read).await.expect("what was written");
            assert_eq!(&read, b"abcd");
        }
    }
}
