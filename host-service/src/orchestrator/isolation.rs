//! Whether a container that was given a GPU sees that one and no other: engines have dropped device requests silently, and
//! images ask for all GPUs by themselves.
//!
//! It is looked at from the host, through its first process in `/proc`, so nothing inside can tell a lie. A process that
//! is gone, or that is not the container's because the engine counts processes in a namespace of its own, says nothing;
//! only what is seen and should not be there ends the mandelbox. Of a MIG instance the node of its GPU is seen, not which
//! of its instances may be opened.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use host_core::{
    ErrorKind, MandelboxId, PluginError,
    gpu::GpuDevice,
    runtime::{Attachment, ContainerRef},
};

use super::{Shared, blocking};
use crate::{deadline::within, files::MAPPINGS_INSIDE, mandelbox::Mandelbox};

/// Bytes of a process's environment that are read; the kernel allows an eighth of its stack's limit, usually 1 MiB.
const LARGEST_ENVIRONMENT: u64 = 4 << 20;

/// Looks at a container that was just started.
///
/// # Errors
/// It sees a GPU that is not its own, or the engine does not tell of it.
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
    let (id, own) = (mandelbox.id().clone(), gpu.clone());
    let look = blocking(move || Ok(is_of(&process, &id).then(|| trespass(&process, &own)).flatten()));
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

/// Whether the process has the mandelbox's directory where every mandelbox has its own.
fn is_of(process: &Path, mandelbox: &MandelboxId) -> bool {
    let mounts = fs::read_to_string(process.join("mountinfo")).unwrap_or_default();
    mounts.lines().any(|mount| {
        // Number, parent, device, what of its file system is mounted, where.
        let mut fields = mount.split(' ').skip(3);
        let (root, point) = (fields.next().unwrap_or_default(), fields.next());
        point == Some(MAPPINGS_INSIDE) && root.split('/').any(|part| part == mandelbox.as_str())
    })
}

/// What the process can see that is not the GPU `own`.
fn trespass(process: &Path, own: &GpuDevice) -> Option<String> {
    let visible = environment(process, "NVIDIA_VISIBLE_DEVICES").ok().flatten().unwrap_or_default();
    let is_own = |one: &str| one == own.uuid || ["", "void", "none"].contains(&one);
    if !visible.split(',').all(is_own) {
        return Some(format!("NVIDIA_VISIBLE_DEVICES is {visible:?}"));
    }
    let nodes = gpu_nodes(&process.join("root/dev")).unwrap_or_default();
    let own = own.node.as_deref().and_then(Path::file_name);
    let is_others = |node: &String| own.is_some_and(|own| own != node.as_str());
    (nodes.len() > 1 || nodes.iter().any(is_others)).then(|| format!("/dev has {}", nodes.join(" ")))
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

    fn gpu(minor: Option<u32>) -> GpuDevice {
        GpuDevice {
            index: 0,
            uuid: "GPU-1".to_owned(),
            name: "any".to_owned(),
            memory_bytes: 1,
            node: minor.map(|minor| format!("/dev/nvidia{minor}").into()),
            attachment: Attachment::default(),
        }
    }

    /// A process with these variables that sees these nodes.
    fn found(variables: &str, nodes: &[&str]) -> Option<String> {
        let process = tempfile::tempdir().unwrap();
        fs::write(process.path().join("environ"), variables).unwrap();
        let dev = process.path().join("root/dev");
        fs::create_dir_all(&dev).unwrap();
        nodes.iter().for_each(|node| fs::write(dev.join(node), "").unwrap());
        trespass(process.path(), &gpu(Some(7)))
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
            let told = found(&format!("NVIDIA_VISIBLE_DEVICES={visible}\0"), &["nvidia7"]).unwrap();
            assert!(told.contains(visible), "{told}");
        }
        assert_eq!(found("", &["nvidia7", "nvidia0"]).unwrap(), "/dev has nvidia0 nvidia7");
        assert_eq!(found("", &["nvidia0"]).unwrap(), "/dev has nvidia0", "one, and not its own");
    }

    #[test]
    fn only_the_mandelboxs_own_process_is_believed() {
        let process = tempfile::tempdir().unwrap();
        let own = "m1".parse().unwrap();
        for (root, point, is_own) in [
            ("/fractal/m1/resourceMappings", MAPPINGS_INSIDE, true),
            ("/fractal/m11/resourceMappings", MAPPINGS_INSIDE, false),
            ("/fractal/m1/resourceMappings", "/elsewhere", false),
        ] {
            let mounts = format!(
                "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n2 1 8:1 {root} {point} rw - ext4 /dev/sda1 rw\n"
            );
            fs::write(process.path().join("mountinfo"), mounts).unwrap();
            assert_eq!(is_of(process.path(), &own), is_own, "{root} at {point}");
        }
    }

    #[test]
    fn what_cannot_be_seen_says_nothing() {
        assert!(!is_of(Path::new("/proc/0"), &"m1".parse().unwrap()));
        assert_eq!(trespass(Path::new("/proc/0"), &gpu(None)), None);
    }
}
