//! Publishing over REST, with the least HTTP client that can do it: a request that never changes, written again as soon
//! as the answer to the one before is there.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::Instant,
};

use super::{ClientError, load::Mould};

/// Connections, with one request in flight each.
pub const CONNECTIONS: usize = 64;
/// An answer to a publish is far smaller.
const ANSWER_MAX: usize = 64 * 1024;

/// Publishes until `end`; tells how many jobs were acknowledged.
pub async fn publish(address: &str, token: &str, mould: &Mould, end: Instant) -> Result<u64, ClientError> {
    let published = Arc::new(AtomicU64::new(0));
    let mut publishers = JoinSet::new();
    for number in 0..CONNECTIONS {
        let connection = TcpStream::connect(address).await.and_then(|stream| {
            stream.set_nodelay(true)?;
            Ok(stream)
        });
        let connection = connection.map_err(|error| ClientError::Unreachable(format!("{address}: {error}")))?;
        publishers.spawn(publisher(connection, request(address, token, mould, number), end, published.clone()));
    }
    while let Some(ended) = publishers.join_next().await {
        let ended = ended.unwrap_or_else(|error| Err(io::Error::other(error)));
        ended.map_err(|error| ClientError::Failed(format!("publishing over REST: {error}")))?;
    }
    Ok(published.load(Relaxed))
}

fn request(address: &str, token: &str, mould: &Mould, number: usize) -> Vec<u8> {
    let (channel, payload) = (mould.channel(number), mould.payload());
    let body = format!(r#"{{"func":"bench.run","payload":{payload},"channel":"{channel}","expires_in":604800}}"#);
    let head = format!(
        "POST /api/jobs/publish HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    (head + &body).into_bytes()
}

async fn publisher(mut stream: TcpStream, request: Vec<u8>, end: Instant, published: Arc<AtomicU64>) -> io::Result<()> {
    let mut answer = Vec::with_capacity(4096);
    while Instant::now() < end {
        stream.write_all(&request).await?;
        answer.clear();
        let whole = loop {
            if let Some(length) = length(&answer) {
                break length;
            }
            if answer.len() > ANSWER_MAX || stream.read_buf(&mut answer).await? == 0 {
                return Err(io::Error::other("the answer broke off"));
            }
        };
        while answer.len() < whole {
            if stream.read_buf(&mut answer).await? == 0 {
                return Err(io::Error::other("the answer broke off"));
            }
        }
        if !answer.starts_with(b"HTTP/1.1 200") {
            return Err(io::Error::other(String::from_utf8_lossy(&answer).into_owned()));
        }
        published.fetch_add(1, Relaxed);
    }
    Ok(())
}

/// How long the whole answer is, once its head is there.
fn length(answer: &[u8]) -> Option<usize> {
    const BLANK_LINE: &[u8] = b"\r\n\r\n";
    const NAME: &[u8] = b"content-length:";
    let head = answer.windows(BLANK_LINE.len()).position(|bytes| bytes == BLANK_LINE)? + BLANK_LINE.len();
    let line = answer[..head].split(|byte| *byte == b'\n').find_map(|line| {
        let (name, value) = line.split_at_checked(NAME.len())?;
        name.eq_ignore_ascii_case(NAME).then_some(value)
    });
    let body: usize = std::str::from_utf8(line?).ok()?.trim().parse().ok()?;
    Some(head + body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_as_long_as_its_head_and_its_body() {
        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n";
        assert_eq!(length(head), Some(head.len() + 2));
        assert_eq!(length(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n"), None);
    }
}
