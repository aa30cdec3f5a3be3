//! Names of images: what users write, and the one form in which two of them are compared.

use std::fmt;

use host_core::ImageRef;
use oci_spec::distribution::Reference;
use serde::{Deserialize, Serialize};

use crate::{
    digest::Digest,
    error::{Result, invalid},
};

/// A name in full: `docker.io/library/chrome:latest`, `r.io:5000/a/b@sha256:…`; or an image's own id, for one that
/// was loaded without any name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Name(String);

impl Name {
    /// # Errors
    /// `Invalid` when it is no image reference.
    pub(crate) fn of(reference: &ImageRef) -> Result<Self> {
        Self::parse(reference.as_str())
    }

    pub(crate) fn parse(text: &str) -> Result<Self> {
        if let Ok(id) = text.parse::<Digest>() {
            return Ok(Self::id(&id));
        }
        reference(text).map(|reference| Self::from_reference(&reference))
    }

    pub(crate) fn id(id: &Digest) -> Self {
        Self(id.to_string())
    }

    /// A tag beside a digest says nothing: engines leave it out.
    pub(crate) fn from_reference(reference: &Reference) -> Self {
        let repository = format!("{}/{}", reference.registry(), reference.repository());
        match (reference.digest(), reference.tag()) {
            (Some(digest), _) => Self(format!("{repository}@{digest}")),
            (None, tag) => Self(format!("{repository}:{}", tag.unwrap_or("latest"))),
        }
    }

    /// The image of this id, whatever its names.
    pub(crate) fn as_id(&self) -> Option<Digest> {
        self.0.parse().ok()
    }

    pub(crate) fn has_digest(&self) -> bool {
        self.0.contains('@') || self.as_id().is_some()
    }

    /// As users write it and engines show it: without Docker Hub's own name, wherever that means the same.
    pub(crate) fn shown(&self) -> Option<ImageRef> {
        let short = self.0.strip_prefix("docker.io/").unwrap_or(&self.0);
        let shortest = self.0.strip_prefix("docker.io/library/").unwrap_or(short);
        let means_this = |text: &&str| Self::parse(text).is_ok_and(|meant| meant == *self);
        [shortest, short].into_iter().find(means_this).unwrap_or(&self.0).parse().ok()
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a registry is asked for.
pub(crate) fn reference(text: &str) -> Result<Reference> {
    let error = || invalid(format!("{text} is no image reference"));
    Reference::try_from(text).map_err(|source| error().with_source(source))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full(text: &str) -> String {
        Name::parse(text).unwrap().to_string()
    }

    fn shown(text: &str) -> String {
        Name::parse(text).unwrap().shown().unwrap().to_string()
    }

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn names_of_the_same_image_are_equal() {
        for [short, long] in [
            ["chrome", "docker.io/library/chrome:latest"],
            ["foo/bar", "docker.io/foo/bar:latest"],
            ["index.docker.io/foo/bar:latest", "docker.io/foo/bar"],
            ["localhost/a", "localhost/a:latest"],
            ["127.0.0.1:5000/a", "127.0.0.1:5000/a:latest"],
        ] {
            assert_eq!(full(short), full(long));
        }
        assert_eq!(full(&format!("a/b:1@sha256:{HEX}")), format!("docker.io/a/b@sha256:{HEX}"));
    }

    #[test]
    fn names_are_shown_as_engines_show_them() {
        for (text, expected) in [
            ("chrome", "chrome:latest"),
            ("docker.io/library/chrome:1", "chrome:1"),
            ("test/mandelbox:current-build", "test/mandelbox:current-build"),
            ("docker.io/library/a/b:1", "library/a/b:1"),
            ("docker.io/foo.bar/x:1", "docker.io/foo.bar/x:1"),
            ("r.io/library/chrome:1", "r.io/library/chrome:1"),
            ("localhost:5000/a", "localhost:5000/a:latest"),
        ] {
            assert_eq!(shown(text), expected);
            assert_eq!(full(expected), full(text), "{expected} means something else than {text}");
        }
    }

    #[test]
    fn an_id_is_a_name() {
        let name = Name::parse(&format!("sha256:{HEX}")).unwrap();
        assert!(name.as_id().is_some());
        assert!(Name::parse("chrome").unwrap().as_id().is_none());
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        for bad in ["No/Upper:case", "a//b:c", "a/../../info", "a:b:c", "a@sha256:00", "a/", "a/.."] {
            assert!(Name::parse(bad).is_err(), "{bad} was accepted");
        }
    }
}
