//! A block of IPv4 addresses.

use std::{fmt, net::Ipv4Addr, str::FromStr};

use serde::{Deserialize, Serialize};

/// A block of IPv4 addresses, written `10.64.0.0/20`. The prefix is 8 to 30 bits long and no bit is set after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subnet {
    first: u32,
    prefix: u8,
}

impl Subnet {
    /// The block of this prefix that `address` is in.
    pub(crate) fn around(address: Ipv4Addr, prefix: u8) -> Self {
        let prefix = prefix.min(32);
        Self { first: address.to_bits() & mask(prefix), prefix }
    }

    /// Its first address.
    pub fn first(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.first)
    }

    /// Length of the prefix in bits.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// Whether `address` is in it.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        address.to_bits() & mask(self.prefix) == self.first
    }

    /// Whether the two have any address in common.
    pub fn overlaps(self, other: Self) -> bool {
        let shared = mask(self.prefix.min(other.prefix));
        self.first & shared == other.first & shared
    }

    /// The address every container's default route points to.
    pub fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.first + 1)
    }

    /// How many containers it has addresses for: all but the first, the gateway and the last.
    pub(crate) fn capacity(self) -> u32 {
        (1_u32 << (32 - u32::from(self.prefix))) - 3
    }

    /// The container's address number `index`, below [`Self::capacity`].
    pub(crate) fn container(self, index: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.first + 2 + index)
    }

    /// How far into the block `address` is; 0, which is no container's, for one before it.
    pub(crate) fn offset(self, address: Ipv4Addr) -> u32 {
        address.to_bits().saturating_sub(self.first)
    }

    /// Whether a container may have this address.
    pub(crate) fn is_container(self, address: Ipv4Addr) -> bool {
        self.contains(address) && (2..self.capacity() + 2).contains(&self.offset(address))
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first(), self.prefix)
    }
}

/// Not a block of addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidSubnet(String);

impl fmt::Display for InvalidSubnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} is no block of IPv4 addresses; write for example 10.64.0.0/20, with 8 to 30 bits and none set \
             after them",
            self.0
        )
    }
}

impl std::error::Error for InvalidSubnet {}

impl FromStr for Subnet {
    type Err = InvalidSubnet;

    fn from_str(text: &str) -> Result<Self, InvalidSubnet> {
        let read = || {
            let (address, prefix) = text.split_once('/')?;
            let address: Ipv4Addr = address.parse().ok()?;
            let prefix = prefix.parse().ok().filter(|prefix| (8..=30).contains(prefix))?;
            let subnet = Self::around(address, prefix);
            (subnet.first() == address).then_some(subnet)
        };
        read().ok_or_else(|| InvalidSubnet(text.to_owned()))
    }
}

impl TryFrom<String> for Subnet {
    type Error = InvalidSubnet;

    fn try_from(text: String) -> Result<Self, InvalidSubnet> {
        text.parse()
    }
}

impl From<Subnet> for String {
    fn from(subnet: Subnet) -> String {
        subnet.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_blocks_are_read() {
        for bad in ["", "10.64.0.0", "10.64.0.1/20", "10.0.0.0/7", "10.64.0.0/31", "::/64", "10.64.0.0/-1"] {
            assert!(bad.parse::<Subnet>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn first_last_and_gateway_are_no_containers() {
        let block: Subnet = "192.0.2.0/29".parse().unwrap();
        let all: Vec<_> = (0..8).filter(|n| block.is_container(Ipv4Addr::new(192, 0, 2, *n))).collect();
        assert_eq!(all, [2, 3, 4, 5, 6]);
        assert_eq!(block.capacity(), 5);
        assert_eq!(block.gateway(), Ipv4Addr::new(192, 0, 2, 1));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(address: u32, prefix in 8_u8..=30) {
            let block = Subnet::around(Ipv4Addr::from_bits(address), prefix);
            prop_assert_eq!(block.to_string().parse(), Ok(block));
            prop_assert!(block.contains(Ipv4Addr::from_bits(address)));
        }

        #[test]
        fn overlapping_is_containing_one_of_the_firsts(a: u32, b: u32, p in 8_u8..=30, q in 8_u8..=30) {
            let a = Subnet::around(Ipv4Addr::from_bits(a), p);
            let b = Subnet::around(Ipv4Addr::from_bits(b), q);
            prop_assert_eq!(a.overlaps(b), a.contains(b.first()) || b.contains(a.first()));
            prop_assert_eq!(a.overlaps(b), b.overlaps(a));
        }
    }
}
