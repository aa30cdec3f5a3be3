//! Ports: the service's own and those it gives out.

use std::{
    io,
    net::{SocketAddr, TcpListener},
};

use host_config::{NumberRange, Settings};

use super::{Check, machine::Machine};

pub(super) fn checks(machine: &Machine, settings: &Settings, running: bool) -> Vec<Check> {
    vec![
        listen("http.listen", settings.http.listen, running),
        listen("metrics.listen", settings.metrics.listen, running),
        port_range(machine, settings.mandelbox.port_range),
    ]
}

/// Free, or taken by our own service.
fn listen(setting: &str, address: SocketAddr, running: bool) -> Check {
    match TcpListener::bind(address) {
        Ok(_) => Check::ok(setting, format!("{address} is free")),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && running => {
            Check::ok(setting, format!("{address} is taken, a host-service runs here"))
        }
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Check::fail(
            setting,
            format!("{address} is taken"),
            format!("see who has it (ss -ltnp 'sport = :{}'), or set {setting} to another", address.port()),
        ),
        Err(error) => Check::fail(
            setting,
            format!("{address}: {error}"),
            format!("set {setting} to an address of this host"),
        ),
    }
}

fn port_range(machine: &Machine, ours: NumberRange) -> Check {
    let name = "mandelbox.port_range";
    let text = machine.read("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut bounds = text.split_whitespace().map_while(|bound| bound.parse::<u16>().ok());
    let (Some(low), Some(high)) = (bounds.next(), bounds.next()) else {
        return Check::warn(name, format!("{ours}; the kernel's own range is unknown"), "is /proc mounted?");
    };
    if ours.end < low || high < ours.start {
        return Check::ok(name, format!("{ours}, apart from the kernel's {low}-{high}"));
    }
    Check::warn(
        name,
        format!("{ours} overlaps {low}-{high}, from which the kernel gives ports to clients"),
        format!("set {name} to another range, or move the kernel's: sysctl net.ipv4.ip_local_port_range"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn a_taken_port_is_fine_when_it_is_ours() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        assert_eq!(listen("http.listen", address, true).verdict, Verdict::Ok);
        let check = listen("http.listen", address, false);
        assert_eq!(check.verdict, Verdict::Fail);
        assert!(check.remedy.unwrap().contains("ss -ltnp"));
        drop(taken);
        assert_eq!(listen("http.listen", address, false).verdict, Verdict::Ok);
    }

    #[test]
    fn an_address_of_another_host_cannot_be_had() {
        let check = listen("http.listen", "192.0.2.1:0".parse().unwrap(), false);
        assert_eq!(check.verdict, Verdict::Fail);
    }

    #[test]
    fn leased_ports_are_best_apart_from_the_kernels() {
        let root = tempfile::tempdir().unwrap();
        let machine = Machine { root: root.path().to_owned(), uid: 0, open_files: None };
        let range = NumberRange { start: 10_000, end: 29_999 };
        assert_eq!(port_range(&machine, range).verdict, Verdict::Warn, "nothing to compare with");
        let file = machine.path("/proc/sys/net/ipv4/ip_local_port_range");
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        for (kernel, verdict) in [("32768\t60999\n", Verdict::Ok), ("29999\t60999\n", Verdict::Warn)] {
            std::fs::write(&file, kernel).unwrap();
            assert_eq!(port_range(&machine, range).verdict, verdict, "{kernel:?}");
        }
    }
}
