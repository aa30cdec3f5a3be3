//! The `nft` program missing, failing, hanging; others' rules.

use std::{fs, net::Ipv4Addr, os::unix::fs::PermissionsExt, path::PathBuf, time::Duration};

use host_core::ErrorKind;

use super::world::{
    HOST, KEY, World, assert_silent, call, config, container, eventually, here, inventory, on_scratch_host,
    run, serve, tcp,
};
use crate::{check, nft::Nft};

/// An `nft` that runs `before` first, with what it is fed in `$input`.
fn wrapped(world: &World, before: &str) -> Nft {
    let program = world.state.path().with_extension("nft");
    let script = format!("#!/bin/sh\ninput=$(cat)\n{before}\nprintf '%s\\n' \"$input\" | nft \"$@\"\n");
    // Never written in place: another test's child may hold the open file across its exec.
    let new = program.with_extension("new");
    fs::write(&new, script).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
    run("cp", &format!("{} {}", new.display(), program.display()));
    fs::remove_file(new).unwrap();
    Nft { program, deadline: Duration::from_secs(2) }
}

struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[test]
fn a_missing_program_is_told_with_its_remedy_and_leaves_nothing() {
    on_scratch_host(async |world| {
        let before = inventory();
        let nft = Nft { program: "/nonexistent/nft".into(), ..Nft::default() };
        let error = world.open_with(nft, config(2), Vec::new()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.to_string().contains("install nftables"), "{error}");
        assert_eq!(inventory(), before);
        assert!(!super::world::has_file(world.state.path()));
    });
}

#[test]
fn a_program_that_hangs_is_killed() {
    on_scratch_host(async |world| {
        let pid = world.state.path().with_extension("pid");
        let _removed = (Removed(pid.clone()), Removed(world.state.path().with_extension("nft")));
        let nft = wrapped(&world, &format!("echo $$ > {}; exec sleep 1000", pid.display()));
        let error = world.open_with(nft, config(0), Vec::new()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout);
        let hung = PathBuf::from("/proc").join(fs::read_to_string(pid).unwrap().trim());
        eventually("the hung program is gone", || !hung.exists()).await;
    });
}

#[test]
fn what_a_hung_program_may_have_done_is_made_good() {
    on_scratch_host(async |world| {
        let hang = world.state.path().with_extension("hang");
        let _removed = (Removed(hang.clone()), Removed(world.state.path().with_extension("nft")));
        // The transaction is applied, and the answer never comes.
        let late = format!(
            "if [ -e {} ]; then printf '%s\\n' \"$input\" | nft \"$@\"; exec sleep 1000; fi",
            hang.display()
        );
        let networks = world.open_with(wrapped(&world, &late), config(0), Vec::new()).await.unwrap();
        let (one, two) = (container(&networks, "one").await, container(&networks, "two").await);
        // Without its table the quick way fails, and the program is asked.
        fs::write(&hang, "").unwrap();
        run("nft", "flush ruleset");
        let error = networks.publish(one.address, &[tcp(8080, 80)]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout);
        fs::remove_file(&hang).unwrap();
        networks.publish(two.address, &[tcp(8080, 80)]).await.unwrap();
        assert!(call(&world.outside, HOST, 8080).unwrap().starts_with("two"));
    });
}

#[test]
fn a_change_that_fails_does_not_fail_those_beside_it() {
    on_scratch_host(async |world| {
        let _removed = Removed(world.state.path().with_extension("nft"));
        let nft = wrapped(&world, "case $input in *'tcp . 8081 :'*) echo no such luck >&2; exit 1;; esac");
        let networks = world.open_with(nft, config(0), Vec::new()).await.unwrap();
        let mut all = Vec::new();
        for name in ["one", "two", "three"] {
            all.push(container(&networks, name).await);
        }
        // The quick way fails for all, because of this one.
        let table = format!("inet host-service-{KEY}");
        run("nft", &format!("add element {table} published-everywhere {{ tcp . 8081 : 192.0.2.1 . 1 }}"));
        let ports = [[tcp(8080, 80)], [tcp(8081, 80)], [tcp(8082, 80)]];
        let (one, two, three) = tokio::join!(
            networks.publish(all[0].address, &ports[0]),
            networks.publish(all[1].address, &ports[1]),
            networks.publish(all[2].address, &ports[2]),
        );
        let error = two.unwrap_err();
        assert!(error.to_string().contains("no such luck"), "{error}");
        one.unwrap();
        three.unwrap();
        for (port, name) in [(8080, "one"), (8082, "three")] {
            assert!(call(&world.outside, HOST, port).unwrap().starts_with(name));
        }
        assert!(call(&world.outside, HOST, 8081).is_err());
    });
}

#[test]
fn a_table_that_somebody_flushed_comes_back_whole() {
    on_scratch_host(async |world| {
        let networks = world.open().await;
        let (one, two) = (container(&networks, "one").await, container(&networks, "two").await);
        networks.publish(one.address, &[tcp(8080, 80)]).await.unwrap();
        run("nft", "flush ruleset");
        networks.publish(two.address, &[tcp(8081, 80)]).await.unwrap();
        assert!(call(&world.outside, HOST, 8080).unwrap().starts_with("one"));
        assert!(call(&world.outside, HOST, 8081).unwrap().starts_with("two"));
        run("nft", "flush ruleset");
        networks.release(one.address).await;
        assert!(call(&world.outside, HOST, 8081).unwrap().starts_with("two"));
    });
}

#[test]
fn a_table_that_somebody_flushed_comes_back_without_any_change() {
    on_scratch_host(async |world| {
        let networks = world.open().await;
        let one = container(&networks, "one").await;
        networks.publish(one.address, &[tcp(8080, 80)]).await.unwrap();
        serve(here(), Ipv4Addr::UNSPECIFIED, 9000, "host");
        for how in ["flush ruleset".to_owned(), format!("delete table inet host-service-{KEY}")] {
            run("nft", &how);
            eventually("the table is back", || run("nft", "list tables").contains(KEY)).await;
            assert_silent(&one.namespace, HOST, 9000, "to the host");
            assert!(call(&world.outside, HOST, 8080).unwrap().starts_with("one"));
        }
        run("nft", "flush ruleset");
        networks.release(one.address).await;
        networks.close().await.unwrap();
        assert!(!run("nft", "list tables").contains(KEY));
    });
}

#[test]
fn what_could_not_be_removed_is_removed_by_closing_again() {
    on_scratch_host(async |world| {
        let before = inventory();
        let fail = world.state.path().with_extension("fail");
        let _removed = (Removed(fail.clone()), Removed(world.state.path().with_extension("nft")));
        let nft =
            wrapped(&world, &format!("if [ -e {} ]; then echo not now >&2; exit 1; fi", fail.display()));
        let networks = world.open_with(nft, config(0), Vec::new()).await.unwrap();
        fs::write(&fail, "").unwrap();
        let error = networks.close().await.unwrap_err();
        assert!(error.to_string().contains("not now"), "{error}");
        assert!(run("nft", "list tables").contains(KEY));
        fs::remove_file(&fail).unwrap();
        networks.close().await.unwrap();
        assert_eq!(inventory(), before);
        assert!(!super::world::has_file(world.state.path()));
        networks.close().await.unwrap();
    });
}

#[test]
fn others_rules_are_not_touched() {
    on_scratch_host(async |world| {
        run("nft", "add table inet firewall");
        run(
            "nft",
            "add chain inet firewall forward { type filter hook forward priority 0 ; policy accept ; }",
        );
        run("nft", "add rule inet firewall forward tcp dport 25 counter drop");
        run("iptables-nft", "-A FORWARD -p tcp --dport 23 -j DROP");
        let theirs = || run("nft", "list ruleset").split("\ntable ").map(str::to_owned).collect::<Vec<_>>();
        let before = theirs();
        let networks = world.open().await;
        let one = container(&networks, "one").await;
        networks.publish(one.address, &[tcp(8080, 80)]).await.unwrap();
        let (ours, others): (Vec<_>, Vec<_>) = theirs().into_iter().partition(|table| table.contains(KEY));
        assert_eq!(ours.len(), 1);
        let trimmed = |all: &[String]| all.iter().map(|table| table.trim().to_owned()).collect::<Vec<_>>();
        assert_eq!(trimmed(&others), trimmed(&before));
        networks.release(one.address).await;
        networks.close().await.unwrap();
        assert_eq!(theirs(), before);
    });
}

#[test]
fn the_doctor_finds_a_firewall_that_cuts_containers_off() {
    on_scratch_host(async |world| {
        let about_chains = async || {
            let all = check(&config(0)).await.unwrap();
            all.into_iter().filter(|one| one.what.contains("chain")).collect::<Vec<_>>()
        };
        let networks = world.open().await;
        assert_eq!(about_chains().await, []);
        run("nft", "add table ip filter");
        run("nft", "add chain ip filter FORWARD { type filter hook forward priority 0 ; policy drop ; }");
        let found = about_chains().await;
        assert_eq!(found.len(), 1);
        assert!(found[0].what.contains("FORWARD"), "{found:?}");
        let one = container(&networks, "one").await;
        networks.publish(one.address, &[tcp(8080, 80)]).await.unwrap();
        assert!(call(&world.outside, HOST, 8080).is_err());
        // The remedy, word for word.
        let remedy = found[0].remedy.split(" (").next().unwrap();
        for command in remedy.split("; ") {
            run("nft", command.strip_prefix("nft ").unwrap());
        }
        assert!(call(&world.outside, HOST, 8080).unwrap().starts_with("one"));
        assert_eq!(about_chains().await, []);
    });
}
