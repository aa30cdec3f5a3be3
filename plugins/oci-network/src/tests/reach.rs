//! What reaches a container, and what a container reaches.

use std::net::Ipv4Addr;

use super::world::{HOST, OUTSIDE, call, container, here, inventory, on_scratch_host, send, serve, tcp, udp};

#[test]
fn published_ports_are_reached_from_everywhere() {
    on_scratch_host(async |world| {
        let networks = world.open().await;
        let one = container(&networks, "one").await;
        networks.publish(one.address, &[tcp(8080, 80), udp(8081, 80)]).await.unwrap();
        assert_eq!(call(&world.outside, HOST, 8080).unwrap(), format!("one {OUTSIDE}"));
        assert_eq!(send(&world.outside, HOST, 8081).unwrap(), format!("one {OUTSIDE}"));
        for address in [Ipv4Addr::LOCALHOST, HOST, one.gateway] {
            let seen = if address.is_loopback() { one.gateway } else { address };
            assert_eq!(call(here(), address, 8080).unwrap(), format!("one {seen}"), "{address}");
            assert_eq!(send(here(), address, 8081).unwrap(), format!("one {seen}"), "{address}");
        }
    });
}

#[test]
fn outgoing_traffic_has_the_hosts_address() {
    on_scratch_host(async |world| {
        let networks = world.open().await;
        let one = container(&networks, "one").await;
        serve(&world.outside, OUTSIDE, 7, "outside");
        assert_eq!(call(&one.namespace, OUTSIDE, 7).unwrap(), format!("outside {HOST}"));
        assert_eq!(send(&one.namespace, OUTSIDE, 7).unwrap(), format!("outside {HOST}"));
    });
}

#[test]
fn closing_leaves_nothing() {
    on_scratch_host(async |world| {
        let before = inventory();
        let networks = world.open().await;
        let one = container(&networks, "one").await;
        networks.publish(one.address, &[tcp(8080, 80), udp(8081, 80)]).await.unwrap();
        networks.release(one.address).await;
        networks.close().await.unwrap();
        assert_eq!(inventory(), before);
        assert!(!super::world::has_file(world.state.path()));
    });
}
