//! Whether a container that was given a GPU sees that one and no other: engines have dropped device requests silently, and
//! images ask for all GPUs by themselves.
//!
//! It is looked at from the host, through its first process in `/proc`, so nothing inside can tell a lie. What is not to be
//! seen there (a process that is gone, an engine on other terms with `/proc`) says nothing; only what is seen and should
//! not be there ends the mandelbox.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use host_core::{
    ErrorKind, PluginError,
    runtime::{Attachment, ContainerRef},
};

use super::{Shared, blocking};
use crate::{deadline::within, mandelbox::Mandelbox};

/// Bytes of a process's environment that are read; the kernel allows an eighth of its stack's limit, usually 1 MiB.
const LARGEST_ENVIRONMENT: u64 = 4 << 20;

/// Looks at a container that was just started.
///
/// # Errors
/// It sees a GPU that is not its own.
pub(super) async fn verify(
    shared: &Shared,
    mandelbox: &Mandelbox,
    container: &ContainerRef,
) -> Result<(), PluginError> {
    let Some(gpu) = mandelbox.state().gpu.filter(|gpu| opens_devices(&gpu.attachment)) else {
        return Ok(());
    };
    let limit = shared.settings.mandelbox.timeouts.start;
    let inspected = within(limit, "inspecting the container", shared.runtime.inspect(container)).await?;
    let Some(pid) = inspected.and_then(|container| container.pid) else { return Ok(()) };
    let process = PathBuf::from(format!("/proc/{pid}"));
    let uuid = gpu.uuid.clone();
    let look = blocking(move || Ok(trespass(&process, &uuid)));
    let look = async { look.await.map_err(|error| PluginError::new(ErrorKind::Internal, error.to_string())) };
    match within(limit, "looking for GPUs in the container", look).await? {
        Some(trespass) => Err(PluginError::new(
            ErrorKind::Internal,
            format!("the container was given GPU {} and sees more: {trespass}", gpu.uuid),
        )),
        None => Ok(()),
    }
}

/// A simulated GPU is a variable.
fn opens_devices(attachment: &Attachment) -> bool {
    !(attachment.cdi.is_empty() && attachment.requests.is_empty() && attachment.devices.is_empty())
}

/// What the process can see that is not the GPU `uuid`.
fn trespass(process: &Path, uuid: &str) -> Option<String> {
    let visible = environment(process, "NVIDIA_VISIBLE_DEVICES").ok().flatten().unwrap_or_default();
    let is_own = |one: &str| one == uuid || ["", "void", "none"].contains(&one);
    if !visible.split(',').all(is_own) {
        return Some(format!("NVIDIA_VISIBLE_DEVICES is {visible:?}"));
    }
    let nodes = gpu_nodes(&process.join("root/dev")).unwrap_or_default();
    (nodes.len() > 1).then(|| format!("/dev has {}", nodes.join(" ")))
}

fn environment(process: &Path, name: &str) -> io::Result<Option<String>> {
    let mut all = Vec::new();
    File::open(process.join("environ"))?.take(LARGEST_ENVIRONMENT).read_to_end(&mut all)?;
    let value = all.split(|byte| *byte == 0).find_map(|variable| {
        let value = variable.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
        Some(String::from_utf8_lossy(value).into_owned())
    });
    Ok(value)
}

/// `nvidia0` and the like: one per GPU, where `nvidiactl` and `nvidia-uvm` are everybody's.
fn gpu_nodes(directory: &Path) -> io::Result<Vec<String>> {
    let mut nodes = Vec::new();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let number = name.strip_prefix("nvidia");
        if number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
        {
            nodes.push(name);
        }
    }
    nodes.sort();
    Ok(nodes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A process with these variables that sees these nodes.
    fn found(variables: &str, nodes: &[&str]) -> Option<String> {
        let process = tempfile::tempdir().unwrap();
        fs::write(process.path().join("environ"), variables).unwrap();
        let dev = process.path().join("root/dev");
        fs::create_dir_all(&dev).unwrap();
        nodes.iter().for_each(|node| fs::write(dev.join(node), "").unwrap());
        trespass(process.path(), "GPU-1")
    }

    #[test]
    fn its_own_gpu_is_no_trespass() {
        for visible in ["GPU-1", "void", "none", ""] {
            let variables = format!("A=all\0NVIDIA_VISIBLE_DEVICES={visible}\0B=GPU-2\0");
            assert_eq!(found(&variables, &["null", "nvidia7", "nvidiactl", "nvidia-uvm"]), None);
        }
        assert_eq!(found("", &[]), None);
    }

    #[test]
    fn any_other_is() {
        for visible in ["all", "GPU-2", "GPU-1,GPU-2", "0"] {
            let told = found(&format!("NVIDIA_VISIBLE_DEVICES={visible}\0"), &["nvidia0"]).unwrap();
            assert!(told.contains(visible), "{told}");
        }
        assert_eq!(found("", &["nvidia1", "nvidia0"]).unwrap(), "/dev has nvidia0 nvidia1");
    }

    #[test]
    fn what_cannot_be_seen_says_nothing() {
        assert_eq!(trespass(Path::new("/proc/0"), "GPU-1"), None);
    }
}
