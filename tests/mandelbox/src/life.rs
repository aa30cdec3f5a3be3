//! The life of a mandelbox that follows the contract: wait, read, serve, announce, and leave when nobody comes.

use std::env;
use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use crate::behaviour::{Announce, Behaviour};
use crate::log::log;
use crate::mappings::Mappings;
use crate::{Verdict, facts, routes};

/// Ends the process; the first verdict wins, so a later one may find nobody listening.
pub(crate) fn end(verdicts: &Sender<Verdict>, verdict: Verdict) {
    let _late = verdicts.send(verdict);
}

/// Returns when the first client has come or none did in time; the listeners go on by themselves.
pub(crate) fn live(behaviour: &Behaviour, verdicts: &Sender<Verdict>) -> io::Result<()> {
    let mappings = Mappings::from_environment();
    log(format_args!("{} waits for .ready in {}", facts::id(), mappings.directory().display()));
    if let Some(target) = &behaviour.symlinks_to {
        mappings.attack(target)?;
        log(format_args!("put links to {} in the host's way", target.display()));
    }
    let born = Instant::now();
    mappings.wait_until_ready()?;
    log(format_args!("ready after {} ms", born.elapsed().as_millis()));

    let client = open_ports(&mappings, verdicts)?;
    announce(behaviour.announce, &mappings)?;
    wait_for_client(&client, mappings.patience(), verdicts);
    Ok(())
}

fn announce(when: Announce, mappings: &Mappings) -> io::Result<()> {
    match when {
        Announce::AtOnce => {}
        Announce::After(late) => thread::sleep(late),
        Announce::Never => {
            log("never ready");
            return Ok(());
        }
    }
    mappings.announce()?;
    log("takes its client");
    Ok(())
}

fn wait_for_client(client: &Receiver<()>, patience: Option<Duration>, verdicts: &Sender<Verdict>) {
    let Some(patience) = patience else { return };
    if client.recv_timeout(patience) == Err(RecvTimeoutError::Timeout) {
        log(format_args!("no client in {} s: goodbye", patience.as_secs()));
        end(verdicts, 0);
    } else {
        log("its client has come");
    }
}

/// Binds all three ports before any is served. The receiver hears of every client.
fn open_ports(mappings: &Mappings, verdicts: &Sender<Verdict>) -> io::Result<Receiver<()>> {
    let [tcp, udp, tcp_too] = ports()?;
    let listeners = [(32262, bind(tcp)?), (32273, bind(tcp_too)?)];
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, udp))?;
    let (clients, client) = mpsc::channel();

    log(format_args!("listens for 32263/udp on {}", socket.local_addr()?));
    let udp_clients = clients.clone();
    thread::spawn(move || answer_datagrams(&socket, &udp_clients));
    for (name, listener) in listeners {
        log(format_args!("listens for {name}/tcp on {}", listener.local_addr()?));
        let served = Arc::new((mappings.clone(), verdicts.clone()));
        let clients = clients.clone();
        thread::spawn(move || accept(&listener, &served, &clients));
    }
    Ok(client)
}

fn ports() -> io::Result<[u16; 3]> {
    let text = env::var("MANDELBOX_PORTS").unwrap_or_else(|_| "32262,32263,32273".into());
    let ports: Option<Vec<u16>> = text.split(',').map(|port| port.trim().parse().ok()).collect();
    ports
        .and_then(|ports| ports.try_into().ok())
        .ok_or_else(|| io::Error::other(format!("MANDELBOX_PORTS: '{text}' is not three port numbers")))
}

fn bind(port: u16) -> io::Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))
}

/// A connection costs a thread; one that the pids limit refuses is closed unanswered.
fn accept(listener: &TcpListener, served: &Arc<(Mappings, Sender<Verdict>)>, clients: &Sender<()>) {
    for stream in listener.incoming() {
        let _nobody_waits_any_more = clients.send(());
        let served = Arc::clone(served);
        let outcome =
            stream.and_then(|stream| thread::Builder::new().spawn(move || converse(&stream, &served)));
        if let Err(error) = outcome {
            log(format_args!("cannot serve a connection: {error}"));
        }
    }
}

fn converse(stream: &TcpStream, (mappings, verdicts): &(Mappings, Sender<Verdict>)) {
    if let Err(error) = routes::serve(stream, mappings, verdicts) {
        log(format_args!("a connection failed: {error}"));
    }
}

fn answer_datagrams(socket: &UdpSocket, clients: &Sender<()>) {
    let id = facts::id();
    loop {
        let outcome = socket.recv_from(&mut [0]).and_then(|(_, client)| {
            let _nobody_waits_any_more = clients.send(());
            socket.send_to(id.as_bytes(), client)
        });
        if let Err(error) = outcome {
            log(format_args!("a datagram failed: {error}"));
        }
    }
}
