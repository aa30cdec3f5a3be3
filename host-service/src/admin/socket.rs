//! The admin socket in the file system: who may use it, what becomes of one that is there already.

use std::{
    fs, io,
    os::unix::{
        fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt, chown},
        net::UnixListener as StdListener,
    },
    path::{Path, PathBuf},
};

use rustix::{
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with},
};
use tokio::net::UnixListener;

/// Root and the group may use it, nobody else.
const SOCKET_MODE: u32 = 0o660;
/// Others may look into the directory, but not write.
const PARENT_MODE: u32 = 0o755;
/// `sun_path` of unix(7), without its final zero.
const LONGEST: usize = 107;

/// The socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// A service answers there.
    #[error("another host-service is running: it answers at {}", .0.display())]
    InUse(PathBuf),
    /// Something that is no socket lies there, and may matter to somebody.
    #[error("{} is in the way: it is no socket; remove it or set admin.socket", .0.display())]
    NotASocket(PathBuf),
    /// The kernel takes no longer paths.
    #[error("{} is too long for a socket, which may have {LONGEST} bytes; set admin.socket", .0.display())]
    TooLong(PathBuf),
    /// `[admin] group` names none.
    #[error("admin.group: this host has no group {0:?}")]
    UnknownGroup(String),
    /// The system refused.
    #[error("cannot make the admin socket: {doing} {}", path.display())]
    Io {
        /// Which step.
        doing: &'static str,
        /// Of what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BindError {
    move |source| BindError::Io { doing, path: path.to_owned(), source }
}

/// A bound socket. Dropping it removes it from the file system.
#[derive(Debug)]
pub(crate) struct BoundSocket {
    pub(crate) listener: UnixListener,
    pub(crate) file: SocketFile,
}

/// The socket's place in the file system, given up when dropped.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    device_and_inode: (u64, u64),
}

impl BoundSocket {
    /// Binds at `path`, for root and `group`. At no instant can anybody else connect: the socket is made in a
    /// directory that only this user can enter, gets its group and mode there, and then its place by a link, which
    /// of two services that start at once only one can make. What a dead service left is replaced.
    pub(crate) fn bind(path: &Path, group: Option<&str>) -> Result<Self, BindError> {
        let gid = group.map(|name| group_id(name, Path::new("/etc/group"))).transpose()?;
        if path.as_os_str().len() > LONGEST {
            return Err(BindError::TooLong(path.to_owned()));
        }
        let parent = path.parent().unwrap_or_else(|| Path::new("/"));
        make_parent(parent)?;
        clear(path)?;
        let (listener, device_and_inode) = bind_aside(path, parent, gid)?;
        let file = SocketFile { path: path.to_owned(), device_and_inode };
        listener.set_nonblocking(true).map_err(failed("preparing", path))?;
        let listener = UnixListener::from_std(listener).map_err(failed("preparing", path))?;
        Ok(Self { listener, file })
    }
}

impl Drop for SocketFile {
    /// Only what is still ours: another service may have taken the place of one that was slow to end.
    fn drop(&mut self) {
        let ours =
            fs::symlink_metadata(&self.path).is_ok_and(|found| identity(&found) == self.device_and_inode);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "the admin socket could not be removed");
        }
    }
}

fn identity(metadata: &fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

fn make_parent(parent: &Path) -> Result<(), BindError> {
    if parent.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(parent).map_err(failed("creating", parent))?;
    fs::set_permissions(parent, fs::Permissions::from_mode(PARENT_MODE))
        .map_err(failed("setting the mode of", parent))
}

/// Removes what a dead service left.
fn clear(path: &Path) -> Result<(), BindError> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed("looking at", path)(error)),
        Ok(found) if !found.file_type().is_socket() => Err(BindError::NotASocket(path.to_owned())),
        Ok(_) => match probe(path) {
            // In the second case its queue is full: somebody serves it, slowly.
            Ok(()) | Err(Errno::AGAIN) => Err(BindError::InUse(path.to_owned())),
            Err(Errno::CONNREFUSED) => fs::remove_file(path).map_err(failed("replacing", path)),
            Err(error) => Err(failed("connecting to", path)(error.into())),
        },
    }
}

/// Whether somebody listens, without waiting for a place in the queue.
fn probe(path: &Path) -> Result<(), Errno> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)
}

fn bind_aside(path: &Path, parent: &Path, gid: Option<u32>) -> Result<(StdListener, (u64, u64)), BindError> {
    let aside = parent.join(format!(".{}", std::process::id()));
    // What a killed service with this process id left.
    match fs::remove_dir_all(&aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("removing", &aside)(error));
        }
        _ => {}
    }
    fs::DirBuilder::new().mode(0o700).create(&aside).map_err(failed("creating", &aside))?;
    let bound = bind_in(&aside.join("s"), path, gid);
    let removed = fs::remove_dir_all(&aside).map_err(failed("removing", &aside));
    let bound = bound?;
    removed.map(|()| bound)
}

fn bind_in(aside: &Path, path: &Path, gid: Option<u32>) -> Result<(StdListener, (u64, u64)), BindError> {
    let listener = StdListener::bind(aside).map_err(failed("binding", aside))?;
    if gid.is_some() {
        chown(aside, None, gid).map_err(failed("giving to its group", aside))?;
    }
    fs::set_permissions(aside, fs::Permissions::from_mode(SOCKET_MODE))
        .map_err(failed("setting the mode of", aside))?;
    let identity = identity(&fs::symlink_metadata(aside).map_err(failed("looking at", aside))?);
    match fs::hard_link(aside, path) {
        Ok(()) => Ok((listener, identity)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(BindError::InUse(path.to_owned())),
        Err(error) => Err(failed("putting in place", path)(error)),
    }
}

/// A group's number, by name or number. Groups that exist in a directory service only must be given by number.
fn group_id(name: &str, groups: &Path) -> Result<u32, BindError> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let text = fs::read_to_string(groups).map_err(failed("reading", groups))?;
    let id = |line: &str| {
        let mut fields = line.split(':');
        (fields.next()? == name).then(|| fields.nth(1)?.parse().ok()).flatten()
    };
    text.lines().find_map(id).ok_or_else(|| BindError::UnknownGroup(name.to_owned()))
}

#[cfg(test)]
mod tests;
