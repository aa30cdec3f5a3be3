//! The texts of files that are made for each container.

use std::net::IpAddr;

/// Docker's, before a container's own line.
const HOSTS: &str = "\
127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::0\tip6-localnet
ff00::0\tip6-mcastprefix
ff02::1\tip6-allnodes
ff02::2\tip6-allrouters
";

/// `/etc/hosts`: the usual names, and the container's own at its address, if it has one.
pub(crate) fn hosts(hostname: &str, address: Option<IpAddr>) -> String {
    match address {
        Some(address) => format!("{HOSTS}{address}\t{hostname}\n"),
        None => HOSTS.to_owned(),
    }
}

/// `/etc/hostname`.
pub(crate) fn hostname(hostname: &str) -> String {
    format!("{hostname}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_finds_itself_by_name() {
        let text = hosts("box", Some([10, 1, 2, 3].into()));
        assert!(text.starts_with("127.0.0.1\tlocalhost\n"));
        assert!(text.ends_with("\n10.1.2.3\tbox\n"));
        assert!(!hosts("box", None).contains("box"));
        assert_eq!(hostname("box"), "box\n");
    }
}
