//! Publishing and withdrawing.

use std::{
    net::{Ipv4Addr, TcpListener, UdpSocket},
    time::Instant,
};

use host_core::{ErrorKind, runtime::Protocol};

use super::world::{
    HOST, NEVER, OUTSIDE, PATIENCE, ask_datagram, call, container, eventually, here, on_scratch_host, port,
    run, serve, tcp, udp, within,
};

#[test]
fn a_taken_port_is_told_and_free_after_withdrawing() {
    on_scratch_host(async |world| {
        let networks = world.open().await;
        let (one, two) = (container(&networks, "one").await, container(&networks, "two").await);
        networks.publish(one.address, &[tcp(8080, 80)]).await.unwrap();
        networks.publish(one.address, &[tcp(8080, 80)]).await.unwrap();
        let on_host = port(HOST, 8080, 80, Protocol::Tcp);
        for clash in [tcp(8080, 81), on_host] {
            let error = networks.publish(two.address, &[udp(8080, 80), clash]).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::AddressInUse, "{error}");
        }
        assert!(UdpSocket::bind((HOST, 8080)).is_ok(), "a failed request left a port behind");
        assert!(TcpListener::bind((HOST, 8080)).is_err(), "anybody can listen on a published port");
        networks.withdraw(one.address).await.unwrap();
        networks.withdraw(one.address).await.unwrap();
        networks.publish(two.address, &[on_host]).await.unwrap();
        assert!(call(&world.outside, HOST, 8080).unwrap().starts_with("two"));
        let elsewhere = call(here(), Ipv4Addr::LOCALHOST, 8080).unwrap_err();
        assert_eq!(elsewhere.kind(), std::io::ErrorKind::ConnectionRefused);
    });
}

#[test]
fn a_programs_port_is_told_but_not_its_past_connections() {
    on_scratch_host(async |world| {
        let networks = world.open().await;
        let one = container(&networks, "one").await;
        let listener = TcpListener::bind((HOST, 8080)).unwrap();
        let error = networks.publish(one.address, &[tcp(8080, 80)]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AddressInUse);
        let client = within(&world.outside, || std::net::TcpStream::connect((HOST, 8080)).unwrap());
        // The side that closes first keeps the connection in TIME_WAIT.
        drop(listener.accept().unwrap());
        drop((client, listener));
        networks.publish(one.address, &[tcp(8080, 80)]).await.unwrap();
        assert!(call(&world.outside, HOST, 8080).unwrap().starts_with("one"));
    });
}

#[test]
fn impossible_requests_are_refused() {
    on_scratch_host(async |world| {
        let networks = world.open().await;
        let one = networks.take().await.unwrap();
        let kind = async |address, ports: &[_]| networks.publish(address, ports).await.unwrap_err().kind();
        let mut v6 = tcp(8080, 80);
        v6.host_ip = std::net::Ipv6Addr::LOCALHOST.into();
        assert_eq!(kind(one.address, &[v6]).await, ErrorKind::Unsupported);
        assert_eq!(kind(one.gateway, &[tcp(8080, 80)]).await, ErrorKind::Invalid);
        let foreign = port(OUTSIDE, 8080, 80, Protocol::Tcp);
        assert_eq!(kind(one.address, &[foreign]).await, ErrorKind::Invalid);
    });
}

#[test]
fn a_hundred_publishes_at_once_are_few_transactions() {
    on_scratch_host(async |world| {
        let networks = world.open().await;
        let mut all = Vec::new();
        for _ in 0..100 {
            all.push(networks.take().await.unwrap());
        }
        let ports = |n: u16| [tcp(20_000 + n, 80), udp(20_000 + n, 80), tcp(30_000 + n, 81)];
        let publishes = all.iter().zip(0..).map(|(one, n)| {
            let (networks, ports) = (&networks, ports(n));
            async move { networks.publish(one.address, &ports).await }
        });
        for result in join(publishes.collect()).await {
            result.unwrap();
        }
        assert!(networks.transactions() <= 3, "{} transactions", networks.transactions());
        for n in [0, 42, 99] {
            serve(&all[usize::from(n)].namespace, Ipv4Addr::UNSPECIFIED, 80, "it");
            assert!(call(&world.outside, HOST, 20_000 + n).unwrap().starts_with("it"));
        }
        assert_eq!(elements(), 300);
        join(all.iter().map(|one| networks.release(one.address)).collect()).await;
        assert_eq!(elements(), 0);
        networks.close().await.unwrap();
    });
}

/// How many ports are in the table.
fn elements() -> usize {
    run("nft", &format!("list table inet host-service-{}", super::world::KEY)).matches(" : 10.").count()
}

async fn join<F: Future>(futures: Vec<F>) -> Vec<F::Output> {
    let mut waiting: Vec<_> = futures.into_iter().map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(|context| {
        for (future, done) in waiting.iter_mut().filter(|(_, done)| done.is_none()) {
            if let std::task::Poll::Ready(output) = future.as_mut().poll(context) {
                *done = Some(output);
            }
        }
        let all = waiting.iter().all(|(_, done)| done.is_some());
        if all { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    waiting.into_iter().filter_map(|(_, done)| done).collect()
}

#[test]
fn a_port_that_changes_hands_in_one_batch_reaches_the_new_owner() {
    on_scratch_host(async |world| {
        let networks = world.open().await;
        let (mut one, mut two) = (container(&networks, "one").await, container(&networks, "two").await);
        let third = networks.take().await.unwrap();
        let ways = [[tcp(8080, 80)], [port(HOST, 8080, 80, Protocol::Tcp)]];
        networks.publish(one.address, &ways[1]).await.unwrap();
        // While the writer is busy with the third, the others gather; not in every round.
        for n in 0..30 {
            let busy = [tcp(9000 + n, 80)];
            let (busy, withdrawn, published) = tokio::join!(
                networks.publish(third.address, &busy),
                networks.withdraw(one.address),
                networks.publish(two.address, &ways[usize::from(n % 2)]),
            );
            busy.and(withdrawn).and(published).unwrap();
            std::mem::swap(&mut one, &mut two);
        }
        assert!(call(&world.outside, HOST, 8080).unwrap().starts_with("one"));
    });
}

#[test]
fn a_client_that_keeps_sending_reaches_whoever_has_the_udp_port() {
    on_scratch_host(async |world| {
        let networks = world.open().await;
        let (one, two) = (container(&networks, "one").await, container(&networks, "two").await);
        let outside = within(&world.outside, || UdpSocket::bind((OUTSIDE, 0)).unwrap());
        let local = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let clients = [(&outside, HOST), (&local, Ipv4Addr::LOCALHOST)];
        // Before the port is published the host itself is spoken to, which leaves a flow too.
        for (client, to) in clients {
            assert!(ask_datagram(client, to, 5000).is_err());
        }
        for (container, name) in [(&one, "one"), (&two, "two")] {
            networks.publish(container.address, &[udp(5000, 80)]).await.unwrap();
            for (client, to) in clients {
                let reaches = || ask_datagram(client, to, 5000).is_ok_and(|answer| answer.starts_with(name));
                eventually(&format!("{to} reaches {name}"), reaches).await;
            }
            networks.withdraw(container.address).await.unwrap();
            for (client, to) in clients {
                eventually(&format!("{to} reaches nobody"), || ask_datagram(client, to, 5000).is_err()).await;
            }
        }
    });
}

#[test]
fn a_flow_to_the_same_port_elsewhere_is_left_alone() {
    on_scratch_host(async |world| {
        let networks = world.open().await;
        let (one, two) = (networks.take().await.unwrap(), networks.take().await.unwrap());
        let server = within(&world.outside, || UdpSocket::bind((OUTSIDE, 53)).unwrap());
        let client = within(&one.namespace, || UdpSocket::bind((one.address, 0)).unwrap());
        for socket in [&server, &client] {
            socket.set_read_timeout(Some(NEVER)).unwrap();
        }
        let mut buffer = [0; 8];
        client.send_to(b"question", (OUTSIDE, 53)).unwrap();
        let (_, asker) = server.recv_from(&mut buffer).unwrap();
        // This flow is to be forgotten; once it is, the other would be too.
        let stale = within(&world.outside, || UdpSocket::bind((OUTSIDE, 0)).unwrap());
        assert!(ask_datagram(&stale, HOST, 53).is_err());
        serve(&two.namespace, Ipv4Addr::UNSPECIFIED, 53, "two");
        networks.publish(two.address, &[udp(53, 53)]).await.unwrap();
        eventually("the old flow is forgotten", || ask_datagram(&stale, HOST, 53).is_ok()).await;
        server.send_to(b"answer", asker).unwrap();
        client.recv_from(&mut buffer).unwrap();
    });
}

#[test]
fn a_container_that_sends_from_a_published_port_does_not_get_its_clients() {
    on_scratch_host(async |world| {
        let networks = world.open().await;
        let (one, two) = (networks.take().await.unwrap(), container(&networks, "two").await);
        networks.publish(two.address, &[udp(20000, 80)]).await.unwrap();
        let client = within(&world.outside, || UdpSocket::bind((OUTSIDE, 5000)).unwrap());
        client.set_read_timeout(Some(NEVER)).unwrap();
        let thief = within(&one.namespace, || UdpSocket::bind((one.address, 20000)).unwrap());
        thief.send_to(b"hello", (OUTSIDE, 5000)).unwrap();
        let (_, seen) = client.recv_from(&mut [0; 8]).unwrap();
        assert!((32768..=60999).contains(&seen.port()), "{seen}");
        assert!(ask_datagram(&client, HOST, 20000).unwrap().starts_with("two"));
    });
}

#[test]
fn a_request_that_is_given_up_is_undone_by_withdrawing() {
    on_scratch_host(async |world| {
        let networks = world.open().await;
        let one = container(&networks, "one").await;
        for _ in 0..20 {
            let ports = [tcp(8080, 80), udp(8080, 80)];
            let started = Instant::now();
            tokio::select! {
                biased;
                done = networks.publish(one.address, &ports) => done.unwrap(),
                () = tokio::task::yield_now() => {}
            }
            networks.withdraw(one.address).await.unwrap();
            assert!(TcpListener::bind((HOST, 8080)).is_ok() && UdpSocket::bind((HOST, 8080)).is_ok());
            assert!(started.elapsed() < PATIENCE);
        }
        assert_eq!(elements(), 0);
    });
}
