//! Opening, crashing, opening again, closing.

use std::{
    net::{Ipv4Addr, SocketAddrV4, TcpStream, UdpSocket},
    os::fd::AsFd,
    process::Command,
};

use host_core::ErrorKind;

use super::world::{
    HOST, KEY, OUTSIDE, ask_stream, call, config, container, eventually, has_file, inventory, ip,
    on_scratch_host, run, tcp, udp, within,
};
use crate::{Adopted, Config, leftovers, nft::Nft};

#[test]
fn a_connection_survives_a_crash_and_the_next_service() {
    on_scratch_host(async |world| {
        let before = inventory();
        let first = world.open_with(Nft::default(), config(2), Vec::new()).await.unwrap();
        let one = container(&first, "one").await;
        let stranger = first.take().await.unwrap();
        let ports = vec![tcp(8080, 80), udp(8080, 80)];
        first.publish(one.address, &ports).await.unwrap();
        let to = SocketAddrV4::new(HOST, 8080);
        let mut stream = within(&world.outside, || TcpStream::connect(to).unwrap());
        assert!(ask_stream(&mut stream).is_ok());
        let block = first.block();
        drop(first);
        assert!(ask_stream(&mut stream).is_ok(), "nobody needs the service for what is published");

        let left = leftovers(KEY, world.state.path()).await.unwrap();
        assert_eq!((left.table.as_deref(), left.block), (Some("host-service-0badcafe"), Some(block)));
        assert!(left.forwarding && left.interfaces.len() >= 2, "{left:?}");

        let adopted = vec![Adopted { address: one.address, ports: ports.clone() }];
        let second = world.open_with(Nft::default(), config(0), adopted).await.unwrap();
        assert_eq!(second.block(), block);
        assert!(ask_stream(&mut stream).is_ok(), "the connection was cut");
        assert!(call(&world.outside, HOST, 8080).unwrap().starts_with("one"));
        assert!(
            !ip("-br link").contains(&second.interface(stranger.address)),
            "a stranger's interface stays"
        );
        let two = container(&second, "two").await;
        assert_ne!(two.address, one.address);
        assert_eq!(second.publish(two.address, &ports).await.unwrap_err().kind(), ErrorKind::AddressInUse);
        second.release(one.address).await;
        assert!(ask_stream(&mut stream).is_err(), "a released container is still reached");
        second.publish(two.address, &ports).await.unwrap();
        second.release(two.address).await;
        second.close().await.unwrap();
        assert!(leftovers(KEY, world.state.path()).await.unwrap().is_empty());
        drop((one, two, stranger));
        eventually("everything is as before", || inventory() == before).await;
    });
}

#[test]
fn closing_leaves_running_containers_their_ports() {
    on_scratch_host(async |world| {
        let networks = world.open_with(Nft::default(), config(3), Vec::new()).await.unwrap();
        let one = container(&networks, "one").await;
        networks.publish(one.address, &[tcp(8080, 80)]).await.unwrap();
        networks.close().await.unwrap();
        networks.close().await.unwrap();
        assert!(call(&world.outside, HOST, 8080).unwrap().starts_with("one"));
        let left = leftovers(KEY, world.state.path()).await.unwrap();
        assert_eq!(left.interfaces, [networks.interface(one.address)]);
        assert_eq!(networks.take().await.unwrap_err().kind(), ErrorKind::Unavailable);
        let published = networks.publish(one.address, &[tcp(8081, 80)]).await;
        assert_eq!(published.unwrap_err().kind(), ErrorKind::Unavailable);
    });
}

#[test]
fn leftovers_without_containers_are_taken_over_and_removed() {
    on_scratch_host(async |world| {
        let before = inventory();
        let networks = world.open().await;
        let block = networks.block();
        drop(networks);
        assert_ne!(inventory(), before);
        let again = world.open().await;
        assert_eq!(again.block(), block);
        again.close().await.unwrap();
        assert_eq!(inventory(), before);
        assert!(!has_file(world.state.path()));
    });
}

#[test]
fn the_block_avoids_what_the_host_uses() {
    on_scratch_host(async |world| {
        let chosen = world.open().await;
        let usual = chosen.block();
        chosen.close().await.unwrap();
        ip(&format!("route add {}/28 via {OUTSIDE}", usual.first()));
        let other = world.open().await;
        assert!(!other.block().overlaps(usual));
        other.close().await.unwrap();
        ip(&format!("route add 10.0.0.0/8 via {OUTSIDE}"));
        let error = world.open_with(Nft::default(), config(0), Vec::new()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Exhausted);
        // A wider route is no obstacle to who asks for a block by name; one within it is.
        let named = |text: &str| Config { subnet: Some(text.parse().unwrap()), ..config(0) };
        let error = world.open_with(Nft::default(), named(&usual.to_string()), Vec::new()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict);
        let networks = world.open_with(Nft::default(), named("10.9.8.0/24"), Vec::new()).await.unwrap();
        let one = container(&networks, "one").await;
        assert_eq!((one.gateway, one.address), (Ipv4Addr::new(10, 9, 8, 1), Ipv4Addr::new(10, 9, 8, 2)));
        networks.publish(one.address, &[tcp(8080, 80)]).await.unwrap();
        assert!(call(&world.outside, HOST, 8080).is_ok());
        let unused = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        assert!(unused.send_to(b"?", (Ipv4Addr::new(10, 9, 8, 99), 9)).is_err(), "an unused address leaks");
    });
}

#[test]
fn a_changed_configuration_waits_for_the_containers_of_the_old_one() {
    on_scratch_host(async |world| {
        let first = world.open().await;
        let (old, one) = (first.block(), container(&first, "one").await);
        drop(first);
        let new = Config { subnet: Some("10.9.8.0/24".parse().unwrap()), ..config(0) };
        let adopted = vec![Adopted { address: one.address, ports: vec![tcp(8080, 80)] }];
        let second = world.open_with(Nft::default(), new.clone(), adopted).await.unwrap();
        assert_eq!(second.block(), old);
        assert!(call(&world.outside, HOST, 8080).is_ok());
        second.release(one.address).await;
        drop(second);
        let third = world.open_with(Nft::default(), new.clone(), Vec::new()).await.unwrap();
        assert_eq!(Some(third.block()), new.subnet);
        assert!(!ip("route").contains(&old.to_string()), "the old block is still claimed");
    });
}

#[test]
fn running_containers_tell_their_block_when_its_note_is_lost() {
    on_scratch_host(async |world| {
        let first = world.open().await;
        let (block, one) = (first.block(), container(&first, "one").await);
        drop(first);
        let at = |address| vec![Adopted { address, ports: vec![tcp(8080, 80)] }];
        for _ in 0..2 {
            std::fs::remove_file(world.state.path().join("network-block")).unwrap();
            let stranger = at(Ipv4Addr::new(10, 1, 2, 3));
            let error = world.open_with(Nft::default(), config(0), stranger).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
            let again = world.open_with(Nft::default(), config(0), at(one.address)).await.unwrap();
            assert_eq!(again.block(), block);
            assert!(call(&world.outside, HOST, 8080).unwrap().starts_with("one"));
            assert_eq!(again.interface(Ipv4Addr::new(10, 1, 2, 3)), "hs0badc-0");
            drop(again);
        }
    });
}

#[test]
fn what_a_namespace_is_made_of() {
    on_scratch_host(async |world| {
        let networks = world.open().await;
        let one = networks.take().await.unwrap();
        let seen = within(&one.namespace, || {
            let read = |key: &str| std::fs::read_to_string(format!("/proc/sys/net/ipv4/{key}")).unwrap();
            assert_eq!(read("ip_unprivileged_port_start").trim(), "0");
            assert_eq!(read("ping_group_range").split_whitespace().collect::<Vec<_>>(), ["0", "2147483647"]);
            ip("addr") + &ip("route")
        });
        assert!(seen.contains("mtu 1400"), "the uplink's: {seen}");
        assert!(seen.contains(&format!("default via {} dev eth0", one.gateway)), "{seen}");
        assert!(seen.contains(&format!("inet {}/32", one.address)) && seen.contains("127.0.0.1/8"), "{seen}");
        let alone = crate::isolated().await.unwrap();
        let links = within(alone.as_fd(), || ip("-br link show up"));
        assert!(links.starts_with("lo ") && links.lines().count() == 1, "{links}");
    });
}

#[test]
fn no_thread_of_the_runtime_is_in_another_namespace() {
    on_scratch_host(async |world| {
        let networks = world.open_with(Nft::default(), config(4), Vec::new()).await.unwrap();
        for _ in 0..8 {
            networks.take().await.unwrap();
        }
        let home = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..64 {
            let look = || std::fs::read_link("/proc/thread-self/ns/net").unwrap();
            if n % 2 == 0 {
                tasks.spawn_blocking(look)
            } else {
                tasks.spawn(async move { look() })
            };
        }
        for seen in tasks.join_all().await {
            assert_eq!(seen, home);
        }
    });
}

#[test]
fn without_privileges_the_error_says_so() {
    let tests = std::env::current_exe().unwrap();
    let output = Command::new("setpriv")
        .args(["--inh-caps=-all", "--bounding-set=-all", "--"])
        .arg(tests)
        .args(["--exact", "tests::life::unprivileged_part", "--ignored"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
#[ignore = "run by without_privileges_the_error_says_so"]
fn unprivileged_part() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let state = tempfile::tempdir().unwrap();
        let opened = crate::Networks::open(config(0), KEY, state.path(), Vec::new()).await;
        for error in [opened.unwrap_err(), crate::isolated().await.unwrap_err()] {
            assert_eq!(error.kind(), ErrorKind::Denied, "{error:?}");
            assert!(error.to_string().contains("root"), "{error}");
        }
        let checked = crate::check(&config(0)).await.unwrap_err();
        assert_eq!(checked.kind(), ErrorKind::Denied, "{checked:?}");
    });
    assert!(!run("nft", "--version").is_empty());
}

#[test]
fn wrong_settings_are_refused() {
    on_scratch_host(async |world| {
        let wrong = [
            Config { dns: vec!["127.0.0.53".parse().unwrap()], ..config(0) },
            Config { dns: vec!["fd00::1".parse().unwrap()], ..config(0) },
            Config { mtu: Some(10), ..config(0) },
        ];
        for config in wrong {
            let error = world.open_with(Nft::default(), config, Vec::new()).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid);
        }
        let named = Config { dns: vec!["192.0.2.53".parse().unwrap()], ..config(0) };
        let networks = world.open_with(Nft::default(), named, Vec::new()).await.unwrap();
        assert!(networks.resolv_conf().await.unwrap().starts_with("nameserver 192.0.2.53\n"));
    });
}
