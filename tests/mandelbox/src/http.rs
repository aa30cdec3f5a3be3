//! HTTP/1.1, one request for each connection.

use std::fmt::Display;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(5);
const MAX_HEAD_BYTES: u64 = 16 << 10;
const MAX_BODY_BYTES: u64 = 1 << 20;

/// A request's line, taken apart. Its header fields and body are read and not kept.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    query: String,
}

impl Request {
    /// Reads a whole request; an answer sent before the body is read would be lost to a reset.
    pub(crate) fn read(stream: &TcpStream) -> io::Result<Self> {
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut head = BufReader::new(stream).take(MAX_HEAD_BYTES);
        let mut line = String::new();
        head.read_line(&mut line)?;
        let request = Self::parse(&line).ok_or(io::ErrorKind::InvalidData)?;
        let length = body_length(&mut head)?;
        let mut body = head.into_inner().take(length.min(MAX_BODY_BYTES));
        io::copy(&mut body, &mut io::sink())?;
        Ok(request)
    }

    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let (method, target) = (words.next()?, words.next()?);
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        Some(Self { method: method.into(), path: path.into(), query: query.into() })
    }

    /// A number in the query; `None` when it is not there or not a number.
    pub(crate) fn number(&self, name: &str) -> Option<u32> {
        let mut pairs = self.query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.find(|(key, _)| *key == name)?.1.parse().ok()
    }
}

/// Reads the header fields to their end.
fn body_length(head: &mut impl BufRead) -> io::Result<u64> {
    let mut length = 0;
    loop {
        let mut line = String::new();
        head.read_line(&mut line)?;
        let Some((name, value)) = line.split_once(':') else {
            return Ok(length);
        };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().map_err(|_| io::ErrorKind::InvalidData)?;
        }
    }
}

/// Sends a whole answer.
pub(crate) fn answer(mut stream: &TcpStream, status: &str, kind: &str, body: impl Display) -> io::Result<()> {
    let body = body.to_string();
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\
         Cache-Control: no-store\r\nConnection: close\r\n\r\n{body}"
    )?;
    stream.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_taken_apart() {
        let request = Request::parse("POST /exit?a=b&code=3 HTTP/1.1\r\n").unwrap();
        assert_eq!((request.method.as_str(), request.path.as_str()), ("POST", "/exit"));
        assert_eq!(request.number("code"), Some(3));
        assert_eq!(request.number("a"), None);
        assert_eq!(request.number("c"), None);
    }

    #[test]
    fn half_a_line_is_no_request() {
        assert_eq!(Request::parse("GET\r\n"), None);
        assert_eq!(Request::parse(""), None);
    }

    #[test]
    fn the_length_is_found_in_any_case() {
        let mut head = "Host: x\r\ncontent-LENGTH: 12\r\n\r\nbody".as_bytes();
        assert_eq!(body_length(&mut head).unwrap(), 12);
    }
}
