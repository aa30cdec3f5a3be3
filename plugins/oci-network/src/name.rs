//! What this crate's things on a host are called.

use std::{fmt, net::Ipv4Addr};

use host_core::{ErrorKind, PluginError};

use crate::subnet::Subnet;

/// Interface group of every container's interface, of all stores on a host; rules match it. "hs" in ASCII.
pub(crate) const GROUP: u32 = 0x6873;

/// Group of interfaces that are about to be deleted together.
pub(crate) const DOOMED: u32 = GROUP + 1;

/// The first bytes of the hardware addresses of host ends; the container's IPv4 address follows, so that an interface
/// tells whose it is. Names do not: they have 20 of the 32 bits of a store's key.
pub(crate) const HOST_MAC: [u8; 2] = [0x02, 0x68];

/// Who made a route, as `ip route` shows it; free in iproute2's list of protocols. "h" in ASCII.
pub(crate) const ROUTE_PROTOCOL: u8 = 0x68;

/// What every store's table name starts with.
pub(crate) const TABLE_PREFIX: &str = "host-service-";

/// The store's key: 8 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Key(String);

impl Key {
    pub(crate) fn new(text: &str) -> Result<Self, PluginError> {
        let hex = text.len() == 8 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        hex.then(|| Self(text.to_owned())).ok_or_else(|| {
            let message = format!("{text:?} is no key; 8 lower-case hexadecimal digits are needed");
            PluginError::new(ErrorKind::Invalid, message)
        })
    }

    /// The name of the nftables table, family `inet`.
    pub(crate) fn table(&self) -> String {
        format!("{TABLE_PREFIX}{self}")
    }

    /// What the names of the store's host interfaces start with.
    pub(crate) fn interface_prefix(&self) -> String {
        format!("hs{}-", &self.0[..5])
    }

    /// The host's interface of the container with this address.
    pub(crate) fn interface(&self, block: Subnet, address: Ipv4Addr) -> String {
        format!("{}{:x}", self.interface_prefix(), block.offset(address))
    }

    /// The address of the container whose host interface this is.
    pub(crate) fn address(&self, block: Subnet, interface: &str) -> Option<Ipv4Addr> {
        let offset = u32::from_str_radix(interface.strip_prefix(&self.interface_prefix())?, 16).ok()?;
        Some(Ipv4Addr::from_bits(block.first().to_bits().checked_add(offset)?))
    }

    /// A number that differs between stores.
    pub(crate) fn seed(&self) -> u32 {
        u32::from_str_radix(&self.0, 16).unwrap_or_default()
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_name_fits_the_kernel() {
        let key = Key::new("0123abcd").unwrap();
        let block: Subnet = "10.0.0.0/8".parse().unwrap();
        let name = key.interface(block, Ipv4Addr::new(10, 255, 255, 254));
        assert_eq!(name, "hs0123a-fffffe");
        assert!(name.len() < 16);
        assert_eq!(key.address(block, &name), Some(Ipv4Addr::new(10, 255, 255, 254)));
        assert_eq!(key.address(block, "eth0"), None);
    }

    #[test]
    fn a_key_is_eight_hexadecimal_digits() {
        for bad in ["", "0123abc", "0123abcde", "0123ABCD", "0123abc;", "héllo12"] {
            assert!(Key::new(bad).is_err(), "{bad:?} was accepted");
        }
    }
}
