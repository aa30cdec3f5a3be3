//! Names of devices.

use std::fmt;

/// `vendor/class=device`, checked.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QualifiedName {
    kind: String,
    device: String,
}

impl QualifiedName {
    /// `None` when `text` is not of that form.
    pub fn parse(text: &str) -> Option<Self> {
        let (kind, device) = text.split_once('=')?;
        Self::new(kind, device)
    }

    /// Of a kind, `vendor/class`, and a device's name in it.
    pub(crate) fn new(kind: &str, device: &str) -> Option<Self> {
        (is_kind(kind) && is_device(device))
            .then(|| Self { kind: kind.to_owned(), device: device.to_owned() })
    }

    /// `vendor/class`.
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// The name within its kind.
    pub fn device(&self) -> &str {
        &self.device
    }
}

impl fmt::Display for QualifiedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.kind, self.device)
    }
}

/// Whether `text` is a `vendor/class`.
pub(crate) fn is_kind(text: &str) -> bool {
    text.split_once('/')
        .is_some_and(|(vendor, class)| is_name(vendor, is_letter, "_-.") && is_name(class, is_letter, "_-."))
}

/// Devices may begin with a digit; most are numbers.
fn is_device(text: &str) -> bool {
    is_name(text, |first| first.is_ascii_alphanumeric(), "_-.:")
}

fn is_letter(first: char) -> bool {
    first.is_ascii_alphabetic()
}

/// Letters, digits and `others`, the last one a letter or digit.
fn is_name(text: &str, may_begin: impl Fn(char) -> bool, others: &str) -> bool {
    text.chars().next().is_some_and(may_begin)
        && text.ends_with(|last: char| last.is_ascii_alphanumeric())
        && text.chars().all(|char| char.is_ascii_alphanumeric() || others.contains(char))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_read_as_the_specification_has_them() {
        let name = QualifiedName::parse("nvidia.com/gpu=GPU-1:0").unwrap();
        assert_eq!((name.kind(), name.device()), ("nvidia.com/gpu", "GPU-1:0"));
        assert!(QualifiedName::parse("vendor.com/class_1=0").is_some());
        for bad in [
            "", "gpu=0", "a/b", "a/b=", "/b=0", "a/=0", "1a/b=0", "a./b=0", "a/b=-0", "a/b=0:", "a/b/c=0",
            "a/b=0=1",
        ] {
            assert!(QualifiedName::parse(bad).is_none(), "{bad:?} was accepted");
        }
    }

    proptest! {
        #[test]
        fn what_is_accepted_is_written_back_as_it_was(text in "\\PC{0,24}|[a-c./=:_-]{0,12}") {
            if let Some(name) = QualifiedName::parse(&text) {
                prop_assert_eq!(name.to_string(), text);
            }
        }
    }
}
