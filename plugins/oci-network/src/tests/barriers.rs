//! What a container must not reach, and who must not reach it. Where a barrier's absence could go unnoticed, the
//! same way is tried first by somebody who may.

use std::{
    net::{Ipv4Addr, TcpListener, UdpSocket},
    os::fd::OwnedFd,
    time::Duration,
};

use super::world::{
    HOST, METADATA, OUTSIDE, World, active, assert_silent, call, container, eventually, here, ip,
    on_scratch_host, send, serve, tcp, udp, within,
};
use crate::{Config, Networks, isolated, nft::Nft};

/// Where two more clouds tell instances their secrets.
const AZURE: Ipv4Addr = Ipv4Addr::new(168, 63, 129, 16);
const ALIBABA: Ipv4Addr = Ipv4Addr::new(100, 100, 100, 200);

#[test]
fn containers_do_not_reach_each_other() {
    on_scratch_host(async |world| {
        let networks = world.open().await;
        let (one, two) = (container(&networks, "one").await, container(&networks, "two").await);
        networks.publish(two.address, &[tcp(8080, 80), udp(8080, 80)]).await.unwrap();
        assert_eq!(call(here(), two.address, 80).unwrap(), format!("two {}", two.gateway));
        assert_silent(&one.namespace, two.address, 80, "to another container");
        for address in [HOST, two.gateway] {
            assert_silent(&one.namespace, address, 8080, "to a published port");
        }
        assert_silent(&two.namespace, HOST, 8080, "to the container's own published port");
    });
}

#[test]
fn containers_of_two_stores_do_not_reach_each_other_and_both_work() {
    on_scratch_host(async |world| {
        let networks = world.open().await;
        let state = tempfile::tempdir().unwrap();
        let others =
            Networks::open(super::world::config(0), "12345678", state.path(), Vec::new()).await.unwrap();
        assert!(!networks.block().overlaps(others.block()));
        let (one, two) = (container(&networks, "one").await, container(&others, "two").await);
        networks.publish(one.address, &[tcp(8080, 80), udp(8080, 80)]).await.unwrap();
        others.publish(two.address, &[tcp(8081, 80), udp(8081, 80)]).await.unwrap();
        assert_silent(&one.namespace, two.address, 80, "to another store's container");
        assert_silent(&one.namespace, HOST, 8081, "to another store's published port");
        assert!(call(&world.outside, HOST, 8080).unwrap().starts_with("one"));
        assert!(call(&world.outside, HOST, 8081).unwrap().starts_with("two"));
        // The first turned forwarding on, and leaves it on for the other.
        networks.release(one.address).await;
        networks.close().await.unwrap();
        assert!(call(&world.outside, HOST, 8081).unwrap().starts_with("two"));
        others.release(two.address).await;
        others.close().await.unwrap();
        assert_eq!(forwarding(), "0");
    });
}

#[test]
fn nothing_of_the_host_is_reached() {
    on_scratch_host(async |world| {
        let networks = world.open().await;
        let one = container(&networks, "one").await;
        serve(here(), Ipv4Addr::UNSPECIFIED, 9000, "host");
        assert!(call(&world.outside, HOST, 9000).unwrap().starts_with("host"));
        assert!(send(here(), Ipv4Addr::LOCALHOST, 9000).unwrap().starts_with("host"));
        for address in [HOST, one.gateway] {
            assert_silent(&one.namespace, address, 9000, "to the host");
        }
        // A container with all capabilities can send its own loopback's addresses out.
        within(&one.namespace, || {
            std::fs::write("/proc/sys/net/ipv4/conf/all/route_localnet", "1").unwrap();
            ip("addr del 127.0.0.1/8 dev lo");
            ip(&format!("route add 127.0.0.0/8 via {} dev eth0 src {}", one.gateway, one.address));
        });
        assert_silent(&one.namespace, Ipv4Addr::LOCALHOST, 9000, "to the host's loopback");
    });
}

#[test]
fn ports_that_other_engines_publish_on_the_host_are_not_reached() {
    on_scratch_host(async |world| {
        let networks = world.open().await;
        let one = container(&networks, "one").await;
        serve(&world.outside, OUTSIDE, 80, "engine");
        super::world::run("nft", "add table ip engine");
        super::world::run("nft", "add chain ip engine pre { type nat hook prerouting priority -100 ; }");
        for protocol in ["tcp", "udp"] {
            let rule = format!("add rule ip engine pre {protocol} dport 9000 dnat to {OUTSIDE}:80");
            super::world::run("nft", &rule);
        }
        assert!(call(&one.namespace, OUTSIDE, 80).unwrap().starts_with("engine"));
        assert_silent(&one.namespace, HOST, 9000, "to another engine's published port");
    });
}

#[test]
fn the_metadata_addresses_are_not_reached() {
    on_scratch_host(async |world| {
        let networks = world.open().await;
        let one = container(&networks, "one").await;
        for address in [METADATA, AZURE, ALIBABA] {
            if address != METADATA {
                within(&world.outside, || ip(&format!("addr add {address}/32 dev eth9")));
            }
            for port in [53, 80] {
                serve(&world.outside, address, port, "secrets");
                assert!(call(here(), address, port).unwrap().starts_with("secrets"));
            }
            assert_silent(&one.namespace, address, 80, "to a metadata address");
            if address != AZURE {
                assert_silent(&one.namespace, address, 53, "to a metadata address");
            }
        }
        // Azure's name server is there too.
        assert!(call(&one.namespace, AZURE, 53).is_ok() && send(&one.namespace, AZURE, 53).is_ok());
    });
}

#[test]
fn a_link_local_name_server_is_asked_for_names_only() {
    on_scratch_host(async |world| {
        let config = Config { dns: vec![METADATA.into()], ..super::world::config(0) };
        let networks = world.open_with(Nft::default(), config, Vec::new()).await.unwrap();
        let one = container(&networks, "one").await;
        serve(&world.outside, METADATA, 53, "names");
        serve(&world.outside, METADATA, 80, "secrets");
        assert!(networks.resolv_conf().await.unwrap().starts_with(&format!("nameserver {METADATA}\n")));
        assert!(call(&one.namespace, METADATA, 53).unwrap().starts_with("names"));
        assert!(send(&one.namespace, METADATA, 53).unwrap().starts_with("names"));
        assert!(call(here(), METADATA, 80).unwrap().starts_with("secrets"));
        assert_silent(&one.namespace, METADATA, 80, "to the metadata address");
    });
}

#[test]
fn there_is_no_ipv6_between_a_container_and_the_host() {
    on_scratch_host(async |world| {
        let networks = world.open().await;
        let one = container(&networks, "one").await;
        let host_end = networks.interface(one.address);
        assert_eq!(within(&one.namespace, || ip("-6 addr show dev eth0")), "");
        assert_eq!(ip(&format!("-6 addr show dev {host_end}")), "");
        // Even if somebody turns it on at both ends, the table drops it.
        let enable = |interface: &str, address: &str| {
            std::fs::write(format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6"), "0").unwrap();
            ip(&format!("-6 addr add {address}/64 dev {interface} nodad"));
        };
        enable(&host_end, "fd00::1");
        within(&one.namespace, || enable("eth0", "fd00::2"));
        let _listener = TcpListener::bind("[fd00::1]:9000").unwrap();
        let connect = |from: &OwnedFd| {
            within(from, || {
                std::net::TcpStream::connect_timeout(
                    &"[fd00::1]:9000".parse().unwrap(),
                    Duration::from_millis(300),
                )
            })
            .map(drop)
        };
        eventually("the listener is reached by its own host", || connect(&here()).is_ok()).await;
        connect(&one.namespace).unwrap_err();
    });
}

#[test]
fn a_wrong_source_address_is_dropped() {
    on_scratch_host(async |world| {
        let networks = world.open().await;
        let (one, two) = (networks.take().await.unwrap(), networks.take().await.unwrap());
        let sink = within(&world.outside, || UdpSocket::bind((OUTSIDE, 5000)).unwrap());
        sink.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let foreign = Ipv4Addr::new(203, 0, 113, 7);
        let mut buffer = [0; 8];
        for source in [foreign, two.address] {
            within(&one.namespace, || {
                ip(&format!("addr add {source}/32 dev eth0"));
                let socket = UdpSocket::bind((source, 0)).unwrap();
                socket.send_to(b"spoofed", (OUTSIDE, 5000)).unwrap();
            });
            let received = sink.recv_from(&mut buffer);
            assert!(received.is_err(), "{source} came through: {received:?}");
        }
        within(&one.namespace, || {
            UdpSocket::bind((one.address, 0)).unwrap().send_to(b"honest", (OUTSIDE, 5000)).unwrap();
        });
        sink.recv_from(&mut buffer).unwrap();
    });
}

#[test]
fn a_container_is_reached_by_its_published_ports_only() {
    on_scratch_host(async |world| {
        // On a router: otherwise nothing is forwarded anyway.
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        let networks = world.open().await;
        let one = container(&networks, "one").await;
        within(&world.outside, || ip(&format!("route add {} via {HOST}", networks.block())));
        assert_silent(&world.outside, one.address, 80, "to a container's address");
        networks.publish(one.address, &[tcp(8080, 80)]).await.unwrap();
        assert!(call(&world.outside, HOST, 8080).is_ok());
        assert_silent(&world.outside, one.address, 80, "to a published container's address");
    });
}

#[test]
fn a_host_that_was_no_router_does_not_become_one() {
    on_scratch_host(async |world| {
        let third = third_network(&world).await;
        let networks = world.open().await;
        assert_eq!(forwarding(), "1");
        assert_silent(&world.outside, THIRD, 80, "through the host");
        let one = container(&networks, "one").await;
        assert!(call(&one.namespace, THIRD, 80).is_ok(), "containers are forwarded");
        drop((networks, third));
    });
}

#[test]
fn a_host_that_was_a_router_stays_one() {
    on_scratch_host(async |world| {
        let third = third_network(&world).await;
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        assert!(call(&world.outside, THIRD, 80).is_ok());
        let networks = world.open().await;
        assert!(call(&world.outside, THIRD, 80).is_ok());
        networks.close().await.unwrap();
        assert!(call(&world.outside, THIRD, 80).is_ok());
        assert_eq!(forwarding(), "1");
        drop(third);
    });
}

#[test]
fn the_last_of_two_stores_puts_redirects_back() {
    on_scratch_host(async |world| {
        let path = "/proc/sys/net/ipv4/conf/all/accept_redirects";
        for value in ["0", "1"] {
            std::fs::write(path, value).unwrap();
            let (networks, state) = (world.open().await, tempfile::tempdir().unwrap());
            let others =
                Networks::open(super::world::config(0), "12345678", state.path(), Vec::new()).await.unwrap();
            networks.close().await.unwrap();
            assert_eq!(forwarding(), "1");
            others.close().await.unwrap();
            assert_eq!(forwarding(), "0");
            assert_eq!(std::fs::read_to_string(path).unwrap().trim(), value);
        }
    });
}

#[test]
fn a_store_that_closes_takes_no_forwarding_from_one_that_opens() {
    on_scratch_host(async |world| {
        let state = tempfile::tempdir().unwrap();
        for _ in 0..10 {
            let networks = world.open().await;
            let open = Networks::open(super::world::config(0), "12345678", state.path(), Vec::new());
            let (closed, opened) = tokio::join!(networks.close(), open);
            closed.unwrap();
            assert_eq!(forwarding(), "1");
            opened.unwrap().close().await.unwrap();
            assert_eq!(forwarding(), "0");
        }
    });
}

const THIRD: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

/// A network on the host's other side, with a server that knows the way back.
async fn third_network(world: &World) -> OwnedFd {
    use std::os::fd::AsRawFd;
    let third = isolated().await.unwrap();
    let fd = format!("/proc/{}/fd/{}", std::process::id(), third.as_raw_fd());
    ip(&format!("link add up1 type veth peer name eth9 netns {fd}"));
    ip("link set up1 up");
    ip("addr add 192.0.2.1/24 dev up1");
    within(&third, || {
        ip("link set eth9 up");
        ip(&format!("addr add {THIRD}/24 dev eth9"));
        ip("route add default via 192.0.2.1");
    });
    within(&world.outside, || ip(&format!("route add {THIRD} via {HOST}")));
    active(here(), "up1").await;
    active(&third, "eth9").await;
    serve(&third, THIRD, 80, "third");
    third
}

fn forwarding() -> String {
    std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap().trim().to_owned()
}
