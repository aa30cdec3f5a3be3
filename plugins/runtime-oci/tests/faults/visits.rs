//! Somebody who asks at a published port again and again.

use std::{io, net::Ipv4Addr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::world::{LONG, within};

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(20);

/// Ends with the test.
pub(crate) struct Visits {
    visitor: JoinSet<io::Result<usize>>,
    enough: CancellationToken,
}

impl Visits {
    /// Returns after the first answer.
    pub(crate) async fn to(port: u16) -> Self {
        let first = async {
            while visit(port).await.is_err() {
                tokio::time::sleep(PAUSE).await;
            }
        };
        within(LONG, "the first answer", first).await;
        let (mut visitor, enough) = (JoinSet::new(), CancellationToken::new());
        visitor.spawn(again_and_again(port, enough.clone()));
        Self { visitor, enough }
    }

    /// Every one up to now was answered.
    pub(crate) async fn all_succeeded(mut self) {
        self.enough.cancel();
        let visits = self.visitor.join_next().await.unwrap().unwrap().unwrap();
        assert!(visits > 0, "nobody visited");
    }
}

async fn again_and_again(port: u16, enough: CancellationToken) -> io::Result<usize> {
    let mut visits = 0;
    while !enough.is_cancelled() || visits == 0 {
        tokio::time::timeout(ANSWER, visit(port)).await??;
        visits += 1;
        tokio::time::sleep(PAUSE).await;
    }
    Ok(visits)
}

async fn visit(port: u16) -> io::Result<()> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
    stream.write_all(b"GET /facts.json HTTP/1.1\r\nHost: box\r\nConnection: close\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    if answer.starts_with("HTTP/1.1 200") { Ok(()) } else { Err(io::Error::other(answer)) }
}
