//! Pax headers: `length key=value` lines before the entry that they describe.

use rustix::fs::Timespec;

use crate::error::{Result, invalid};

/// What is read of them.
#[derive(Debug, Default)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<Timespec>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// GNU's sparse format 1.0 has its map at the beginning of the data.
    pub(super) sparse_major: Option<u64>,
    pub(super) sparse_size: Option<u64>,
    /// The older formats, with the map in here.
    pub(super) has_old_sparse: bool,
}

impl Pax {
    /// # Errors
    /// `Invalid` when it is not made of records.
    pub(super) fn read(&mut self, mut content: &[u8]) -> Result<()> {
        let mut sparse_path = None;
        while !content.is_empty() {
            let (key, value, rest) = record(content).ok_or_else(|| invalid("a pax header is damaged"))?;
            content = rest;
            match key {
                b"GNU.sparse.name" => sparse_path = Some(value.to_vec()),
                _ => self.set(key, value)?,
            }
        }
        // The plain path of a sparse file is one for readers that do not know the format.
        self.path = sparse_path.or(self.path.take());
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(number(value)?),
            b"uid" => self.uid = Some(number(value)?),
            b"gid" => self.gid = Some(number(value)?),
            b"mtime" => self.mtime = time(value),
            b"GNU.sparse.major" => self.sparse_major = Some(number(value)?),
            b"GNU.sparse.realsize" => self.sparse_size = Some(number(value)?),
            b"GNU.sparse.map" | b"GNU.sparse.numblocks" => self.has_old_sparse = true,
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        Ok(())
    }
}

/// Key and value of the first record, and what follows it. A value may hold any byte.
fn record(content: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = content.iter().take(20).position(|byte| *byte == b' ')?;
    let length = usize::try_from(number(&content[..space]).ok()?).ok()?;
    let (record, rest) = content.split_at_checked(length)?;
    let record = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some((&record[..equals], &record[equals + 1..], rest))
}

/// Only digits: what other readers might take for another number must not be one here.
pub(super) fn number(text: &[u8]) -> Result<u64> {
    let digits = std::str::from_utf8(text).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    let number = digits.and_then(|digits| digits.parse().ok());
    number.ok_or_else(|| invalid("a pax header holds a number that is none"))
}

/// Seconds with a fraction, perhaps negative; `None` for what cannot be read, as for the plain header's time.
fn time(text: &[u8]) -> Option<Timespec> {
    let text = std::str::from_utf8(text).ok()?;
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let tv_sec: i64 = seconds.parse().ok()?;
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanoseconds: i64 = digits.parse().ok().filter(|number| *number >= 0)?;
    if seconds.starts_with('-') && nanoseconds > 0 {
        return Some(Timespec { tv_sec: tv_sec.checked_sub(1)?, tv_nsec: 1_000_000_000 - nanoseconds });
    }
    Some(Timespec { tv_sec, tv_nsec: nanoseconds })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_may_hold_any_byte() {
        let mut pax = Pax::default();
        pax.read(b"28 SCHILY.xattr.user.a=\n=\0\n\n12 path=a\nb\n").unwrap();
        assert_eq!(pax.xattrs, [(b"user.a".to_vec(), b"\n=\0\n".to_vec())]);
        assert_eq!(pax.path.unwrap(), b"a\nb");
    }

    #[test]
    fn what_is_no_record_is_refused() {
        for bad in [
            &b"x"[..],
            b"5 a=b\n",
            b"7 a=b\n",
            b"99 a=b\n",
            b"+6 a=b\n",
            b"6 a b\n",
            b"0 a=b\n",
            b"11 uid=-1x\n",
        ] {
            assert!(Pax::default().read(bad).is_err(), "{} was accepted", super::super::shown(bad));
        }
    }

    #[test]
    fn times_are_read_with_fraction_and_sign() {
        let read = |text: &str| time(text.as_bytes()).map(|time| (time.tv_sec, time.tv_nsec));
        assert_eq!(read("12"), Some((12, 0)));
        assert_eq!(read("12.5"), Some((12, 500_000_000)));
        assert_eq!(read("-1.25"), Some((-2, 750_000_000)));
        assert_eq!(read("0.0000000019"), Some((0, 1)));
        for bad in ["", "a", "1.a", "1.-5"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
