//! A container's `/etc/resolv.conf`.

use std::{
    fmt::Write,
    fs,
    net::{IpAddr, Ipv4Addr},
    path::Path,
};

/// The host's; then what systemd-resolved keeps for those who cannot ask its loopback server.
const FILES: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];

/// The text for containers. `configured` replaces the host's servers, not its search list.
pub(crate) fn text(configured: &[IpAddr]) -> String {
    let read = |path: &str| fs::read_to_string(Path::new(path)).unwrap_or_default();
    let host = read(FILES[0]);
    if !configured.is_empty() {
        return render(configured.iter().map(IpAddr::to_string), &host);
    }
    let texts = [host, read(FILES[1])];
    let usable = texts.iter().find(|text| !servers(text).is_empty()).unwrap_or(&texts[0]);
    render(servers(usable).iter().map(Ipv4Addr::to_string), usable)
}

/// Servers that could answer a container: IPv4, and not on the host's loopback.
pub(crate) fn servers(text: &str) -> Vec<Ipv4Addr> {
    let server = |line: &str| line.strip_prefix("nameserver")?.trim().parse().ok();
    let reachable = |address: &Ipv4Addr| !address.is_loopback() && !address.is_unspecified();
    text.lines().map(str::trim).filter_map(server).filter(reachable).collect()
}

/// Those of the servers that are link-local, as at clouds, each once.
pub(crate) fn link_local(text: &str) -> Vec<Ipv4Addr> {
    let mut servers = servers(text);
    servers.retain(Ipv4Addr::is_link_local);
    servers.sort_unstable();
    servers.dedup();
    servers
}

fn render(servers: impl Iterator<Item = String>, rest: &str) -> String {
    let mut text = String::new();
    for server in servers {
        let _ = writeln!(text, "nameserver {server}");
    }
    let kept =
        |line: &&str| ["search", "domain", "options"].contains(&line.split_whitespace().next().unwrap_or(""));
    for line in rest.lines().map(str::trim).filter(kept) {
        let _ = writeln!(text, "{line}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "# made by hand\nnameserver 127.0.0.53\n nameserver 192.0.2.53\nnameserver ::1\n\
                        nameserver fd00::1\nsearch example.com\noptions edns0\nsortlist 1.2.3.4\n";

    #[test]
    fn only_servers_that_a_container_can_reach_are_kept() {
        assert_eq!(servers(HOST), [Ipv4Addr::new(192, 0, 2, 53)]);
        let clouds = "nameserver 169.254.169.253\nnameserver 192.0.2.53\nnameserver 169.254.169.253\n";
        assert_eq!(link_local(clouds), [Ipv4Addr::new(169, 254, 169, 253)]);
        let text = render(["192.0.2.53".to_owned()].into_iter(), HOST);
        assert_eq!(text, "nameserver 192.0.2.53\nsearch example.com\noptions edns0\n");
    }
}
