//! Tells the crate which commit it is built from: `HOST_SERVICE_COMMIT` where it is set (a build from a tarball),
//! else what git's own files say, else `unknown`. Runs again only when one of these changes.

#![allow(clippy::print_stdout, reason = "a build script speaks to cargo on its standard output")]

use std::{
    env, fs,
    path::{Path, PathBuf},
};

const VARIABLE: &str = "HOST_SERVICE_COMMIT";

fn main() {
    println!("cargo::rerun-if-env-changed={VARIABLE}");
    println!("cargo::rerun-if-changed=build.rs");
    let given = env::var(VARIABLE).ok().filter(|commit| !commit.is_empty());
    let commit = given.or_else(from_git).unwrap_or_else(|| "unknown".to_owned());
    println!("cargo::rustc-env={VARIABLE}={commit}");
}

fn from_git() -> Option<String> {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR")?);
    let git = git_dir(manifest.parent()?)?;
    let head = watched(&git.join("HEAD"))?;
    let Some(name) = head.trim().strip_prefix("ref: ") else {
        return Some(head.trim().to_owned()); // a detached head is the commit itself
    };
    // A linked worktree keeps its branches in the main one's directory.
    let common =
        fs::read_to_string(git.join("commondir")).map_or_else(|_| git.clone(), |path| git.join(path.trim()));
    // The directory, too: a branch that is packed becomes a file again at its next commit.
    println!("cargo::rerun-if-changed={}", common.join("refs/heads").display());
    let loose = watched(&common.join(name)).map(|commit| commit.trim().to_owned());
    loose.or_else(|| packed(&watched(&common.join("packed-refs"))?, name))
}

/// Where a line is `<commit> <name>`.
fn packed(refs: &str, name: &str) -> Option<String> {
    let mut lines = refs.lines().filter_map(|line| line.split_once(' '));
    lines.find(|(_, branch)| *branch == name).map(|(commit, _)| commit.to_owned())
}

/// `.git` of a repository: a directory, or in a linked worktree a file that names it.
fn git_dir(root: &Path) -> Option<PathBuf> {
    let git = root.join(".git");
    if git.is_dir() {
        return Some(git);
    }
    let link = fs::read_to_string(&git).ok()?;
    Some(root.join(link.strip_prefix("gitdir: ")?.trim()))
}

/// The file's text. A file that is missing is not watched: cargo would build anew each time.
fn watched(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    println!("cargo::rerun-if-changed={}", path.display());
    Some(text)
}
