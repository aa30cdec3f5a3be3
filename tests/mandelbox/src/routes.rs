//! What the two tcp ports answer.

use std::io;
use std::net::TcpStream;
use std::sync::mpsc::Sender;

use crate::abuse;
use crate::facts;
use crate::http::{Request, answer};
use crate::life;
use crate::log::log;
use crate::mappings::Mappings;
use crate::page;
use crate::{FAILURE, Verdict};

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
const HTML: &str = "text/html; charset=utf-8";

/// Serves one connection.
pub(crate) fn serve(stream: &TcpStream, mappings: &Mappings, verdicts: &Sender<Verdict>) -> io::Result<()> {
    let request = Request::read(stream)?;
    log(format_args!("{} {}", request.method, request.path));
    match (request.method.as_str(), request.path.as_str()) {
        ("GET", "/") => answer(stream, "200 OK", HTML, page::render(mappings)),
        ("GET", "/facts.json") => answer(stream, "200 OK", JSON, facts::all(mappings)),
        ("POST", "/exit") => {
            answer(stream, "200 OK", TEXT, "goodbye\n")?;
            let code = request.number("code").unwrap_or(0);
            life::end(verdicts, Verdict::try_from(code).unwrap_or(FAILURE));
            Ok(())
        }
        ("POST", "/oom") => match facts::memory_limit_bytes() {
            Some(_) => {
                answer(stream, "200 OK", TEXT, "eating\n")?;
                abuse::eat_memory()
            }
            None => answer(stream, "409 Conflict", TEXT, "there is no memory limit to run into\n"),
        },
        ("POST", "/fork-bomb") => {
            let children = request.number("n").unwrap_or(100);
            answer(stream, "200 OK", JSON, abuse::fork(children)?)
        }
        (_, "/" | "/facts.json" | "/exit" | "/oom" | "/fork-bomb") => {
            answer(stream, "405 Method Not Allowed", TEXT, "not like this\n")
        }
        _ => answer(stream, "404 Not Found", TEXT, "no such page\n"),
    }
}
