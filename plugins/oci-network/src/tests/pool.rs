//! Ready networks and addresses.

use std::{collections::HashSet, net::Ipv4Addr, time::Instant};

use host_core::ErrorKind;

use super::world::{
    HOST, OUTSIDE, PATIENCE, World, assert_silent, call, config, container, eventually, ip, on_scratch_host,
    serve, tcp,
};
use crate::{Config, Networks, nft::Nft};

async fn open(world: &World, config: Config) -> Networks {
    world.open_with(Nft::default(), config, Vec::new()).await.unwrap()
}

fn interfaces() -> usize {
    ip("-br link").lines().filter(|line| line.starts_with("hs")).count()
}

#[test]
fn the_pool_is_refilled_and_ends_with_its_owner() {
    on_scratch_host(async |world| {
        let networks = open(&world, config(3)).await;
        eventually("the pool is full", || networks.ready() == 3).await;
        let one = container(&networks, "one").await;
        networks.publish(one.address, &[tcp(8080, 80)]).await.unwrap();
        assert!(call(&world.outside, HOST, 8080).unwrap().starts_with("one"));
        eventually("the pool is full again", || networks.ready() == 3).await;
        assert_eq!(interfaces(), 4);
        drop(networks);
        eventually("ready networks vanish without close", || interfaces() == 1).await;
        let again = open(&world, config(3)).await;
        eventually("the pool is full", || again.ready() == 3).await;
        again.close().await.unwrap();
        assert_eq!(interfaces(), 0);
    });
}

#[test]
fn closing_waits_for_what_is_being_made() {
    on_scratch_host(async |world| {
        for _ in 0..10 {
            let networks = open(&world, config(3)).await;
            tokio::task::yield_now().await;
            networks.close().await.unwrap();
            assert_eq!(interfaces(), 0);
            assert!(crate::leftovers(super::world::KEY, world.state.path()).await.unwrap().is_empty());
        }
    });
}

#[test]
fn a_burst_is_served_at_once_with_an_address_each() {
    on_scratch_host(async |world| {
        let networks = std::sync::Arc::new(open(&world, config(2)).await);
        let mut takes = tokio::task::JoinSet::new();
        for _ in 0..30 {
            let networks = std::sync::Arc::clone(&networks);
            takes.spawn(async move { networks.take().await.unwrap() });
        }
        let taken = takes.join_all().await;
        let addresses: HashSet<_> = taken.iter().map(|network| network.address).collect();
        assert_eq!(addresses.len(), 30);
        for network in &taken {
            networks.release(network.address).await;
        }
        networks.close().await.unwrap();
        assert_eq!(interfaces(), 0);
    });
}

#[test]
fn addresses_run_out_and_are_used_again_in_turn() {
    on_scratch_host(async |world| {
        let subnet = Some("10.9.8.0/29".parse().unwrap());
        let networks = open(&world, Config { subnet, ..config(0) }).await;
        let mut held = Vec::new();
        for _ in 0..5 {
            held.push(networks.take().await.unwrap());
        }
        assert_eq!(networks.take().await.unwrap_err().kind(), ErrorKind::Exhausted);
        // A container's last process may take its time: the namespaces are still there.
        serve(&world.outside, OUTSIDE, 7, "outside");
        assert!(call(&held[3].namespace, OUTSIDE, 7).is_ok());
        networks.release(held[3].address).await;
        assert_silent(&held[3].namespace, OUTSIDE, 7, "from a released network");
        networks.release(held[1].address).await;
        networks.release(held[1].address).await;
        let (first, second) = (container(&networks, "first").await, container(&networks, "second").await);
        assert_eq!((first.address, second.address), (held[3].address, held[1].address));
        networks.publish(first.address, &[tcp(8080, 80)]).await.unwrap();
        networks.publish(second.address, &[tcp(8081, 80)]).await.unwrap();
        assert!(call(&world.outside, HOST, 8080).unwrap().starts_with("first"));
        assert!(call(&world.outside, HOST, 8081).unwrap().starts_with("second"));
        assert_eq!(networks.take().await.unwrap_err().kind(), ErrorKind::Exhausted);
    });
}

#[test]
fn an_interface_that_lingers_gives_way() {
    on_scratch_host(async |world| {
        let networks = open(&world, config(0)).await;
        let next = networks.interface(Ipv4Addr::from_bits(networks.block().first().to_bits() + 2));
        let block = networks.block().first().octets();
        let mac = format!("02:68:{:02x}:{:02x}:{:02x}:02", block[0], block[1], block[2]);
        ip(&format!("link add {next} address {mac} group 26739 type veth"));
        let one = container(&networks, "one").await;
        assert_eq!(networks.interface(one.address), next);
        networks.publish(one.address, &[tcp(8080, 80)]).await.unwrap();
        assert!(call(&world.outside, HOST, 8080).unwrap().starts_with("one"));
    });
}

#[test]
fn an_interface_of_a_store_with_a_similar_key_is_left_alone() {
    on_scratch_host(async |world| {
        let theirs = tempfile::tempdir().unwrap();
        // The first 5 digits, which interfaces have in their names, are the same.
        let others = Networks::open(config(0), "0badcfff", theirs.path(), Vec::new()).await.unwrap();
        let two = container(&others, "two").await;
        others.publish(two.address, &[tcp(8081, 80)]).await.unwrap();
        let reached = || call(&world.outside, HOST, 8081).unwrap().starts_with("two");
        let networks = open(&world, config(0)).await;
        assert!(reached(), "opening removed it");
        assert_eq!(networks.interface(networks.block().container(0)), others.interface(two.address));
        networks.take().await.unwrap_err();
        assert!(reached(), "taking removed it");
        networks.take().await.unwrap();
        networks.close().await.unwrap();
        assert!(reached(), "closing removed it");
    });
}

#[test]
fn a_take_that_is_given_up_loses_no_address() {
    on_scratch_host(async |world| {
        let subnet = Some("10.9.8.0/30".parse().unwrap());
        let networks = open(&world, Config { subnet, ..config(0) }).await;
        tokio::select! {
            biased;
            _ = networks.take() => unreachable!("a thread is waited for"),
            () = async {} => {}
        }
        // The thread that was begun ends first.
        let deadline = Instant::now() + PATIENCE;
        let mut taken = networks.take().await;
        while taken.is_err() && Instant::now() < deadline {
            tokio::task::yield_now().await;
            taken = networks.take().await;
        }
        taken.unwrap();
    });
}
