//! How a GPU is given to a container: what the host's device descriptions call it, what Docker's NVIDIA driver is asked
//! for, and the variables that NVIDIA's container runtime reads.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use host_core::runtime::{Attachment, DeviceRequest};

use crate::config::Config;

/// The kind that NVIDIA's tool writes.
const KIND: &str = "nvidia.com/gpu";

/// A GPU or a MIG instance, as far as a container's engine goes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Identity<'a> {
    pub(crate) uuid: &'a str,
    /// The number in `/dev/nvidia<minor>`; a MIG instance has its GPU's.
    pub(crate) minor: Option<u32>,
    /// The GPU's and the instance's places.
    pub(crate) instance: Option<(u32, u32)>,
}

/// Knows the host's device descriptions, and reads them again when they change.
#[derive(Debug)]
pub(crate) struct Attacher {
    directories: Vec<PathBuf>,
    capabilities: Vec<String>,
    read: Option<Vec<Stamp>>,
    described: Vec<Described>,
}

/// One description.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Described {
    /// Within its kind.
    name: String,
    /// The GPUs whose nodes it gives.
    minors: BTreeSet<u32>,
}

/// Changes whenever a file is replaced or written.
type Stamp = (PathBuf, u64, i64, i64, u64);

impl Attacher {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            directories: config.cdi.clone(),
            capabilities: config.driver_capabilities.clone(),
            read: None,
            described: Vec::new(),
        }
    }

    /// Reads the descriptions if they are new.
    pub(crate) fn refresh(&mut self) {
        let stamps = self.directories.iter().flat_map(|directory| stamps(directory)).collect();
        if self.read.as_ref() == Some(&stamps) {
            return;
        }
        let registry = cdi::Registry::read(&self.directories);
        for file in registry.unreadable() {
            tracing::warn!(path = %file.path.display(), reason = file.reason, "a CDI specification is of no use");
        }
        self.described = described(&registry);
        self.read = Some(stamps);
    }

    pub(crate) fn attachment(&self, of: Identity<'_>) -> Attachment {
        let uuid = of.uuid.to_owned();
        let env = [
            ("NVIDIA_VISIBLE_DEVICES", uuid.clone()),
            ("NVIDIA_DRIVER_CAPABILITIES", self.capabilities.join(",")),
        ];
        // Docker matches these against what its driver lists: what that does not list only the variable says.
        let named = self.capabilities.iter().filter(|one| !["all", "ngx"].contains(&one.as_str()));
        let capabilities = [&"gpu".to_owned()].into_iter().chain(named).cloned().collect();
        Attachment {
            cdi: self.name(of).map(|name| format!("{KIND}={name}")).into_iter().collect(),
            requests: vec![DeviceRequest {
                driver: "nvidia".to_owned(),
                ids: vec![uuid],
                capabilities: vec![capabilities],
            }],
            devices: Vec::new(),
            env: env.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        }
    }

    /// Names are the tool's choice: UUIDs, or places that may be of another enumeration than NVML's. So a name that is
    /// no UUID counts only with the node of this GPU and of no other behind it. One that is this UUID does not count with
    /// the node of another: nodes are numbered anew when the machine starts, and the description may be older.
    fn name(&self, of: Identity<'_>) -> Option<&str> {
        let all = || self.described.iter();
        if let Some(named) = all().find(|described| described.name == of.uuid) {
            let is_others = |minor: &u32| of.minor.is_some_and(|own| own != *minor);
            return (!named.minors.iter().any(is_others)).then_some(&named.name);
        }
        let only = BTreeSet::from([of.minor?]);
        let fits = |Described { name, minors }: &&Described| {
            *minors == only
                && match of.instance {
                    Some((gpu, instance)) => {
                        [format!("{gpu}:{instance}"), format!("mig{gpu}:{instance}")].contains(name)
                    }
                    // With one GPU, all is that GPU until there is a second.
                    None => name != "all" && !name.contains(':') && !is_uuid(name),
                }
        };
        all().find(fits).map(|described| described.name.as_str())
    }
}

fn described(registry: &cdi::Registry) -> Vec<Described> {
    let names = registry.names();
    let of_kind = names.iter().filter_map(|full| Some((full, full.strip_prefix(KIND)?.strip_prefix('=')?)));
    let described = of_kind.filter_map(|(full, name)| {
        let edits = registry.resolve(std::slice::from_ref(full)).ok()?;
        let nodes = edits.iter().flat_map(|edits| &edits.device_nodes);
        Some(Described {
            name: name.to_owned(),
            minors: nodes.filter_map(|node| minor(node.on_host()).or_else(|| minor(&node.path))).collect(),
        })
    });
    described.collect()
}

/// Somebody's, who is named.
fn is_uuid(name: &str) -> bool {
    name.starts_with("GPU-") || name.starts_with("MIG-")
}

/// Of `/dev/nvidia<minor>`, wherever the driver has its `/dev`, and not of `/dev/nvidiactl` and the like.
fn minor(node: &Path) -> Option<u32> {
    node.file_name()?.to_str()?.strip_prefix("nvidia")?.parse().ok()
}

fn stamps(directory: &Path) -> Vec<Stamp> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut stamps: Vec<_> = entries
        .filter_map(|entry| {
            let file = fs::metadata(entry.path()).ok()?;
            Some((entry.path(), file.ino(), file.mtime(), file.mtime_nsec(), file.size()))
        })
        .collect();
    stamps.sort();
    stamps
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Devices by name, each with nodes of these minors.
    fn attacher(devices: &[(&str, &[u32])]) -> (tempfile::TempDir, Attacher) {
        let directory = tempfile::tempdir().unwrap();
        let node = |minor: &u32| json!({ "path": format!("/dev/nvidia{minor}"), "hostPath": "/dev/null" });
        let device = |(name, minors): &(&str, &[u32])| {
            let nodes: Vec<_> = minors.iter().map(node).collect();
            json!({ "name": name, "containerEdits": { "deviceNodes": nodes } })
        };
        let all = json!({ "deviceNodes": [{ "path": "/dev/nvidiactl", "hostPath": "/dev/null" }] });
        let devices: Vec<_> = devices.iter().map(device).collect();
        let text = json!({ "cdiVersion": "0.6.0", "kind": KIND, "devices": devices, "containerEdits": all });
        fs::write(directory.path().join("nvidia.json"), text.to_string()).unwrap();
        let mut attacher =
            Attacher::new(&Config { cdi: vec![directory.path().to_owned()], ..Config::default() });
        attacher.refresh();
        (directory, attacher)
    }

    fn gpu(uuid: &str, minor: u32) -> Identity<'_> {
        Identity { uuid, minor: Some(minor), instance: None }
    }

    #[test]
    fn a_gpu_is_named_by_its_uuid_where_it_is() {
        let (_directory, attacher) = attacher(&[("0", &[1]), ("GPU-b", &[1]), ("all", &[0, 1])]);
        assert_eq!(attacher.attachment(gpu("GPU-b", 1)).cdi, ["nvidia.com/gpu=GPU-b"]);
    }

    #[test]
    fn otherwise_by_what_gives_its_node_and_no_other() {
        let (_directory, attacher) = attacher(&[("0", &[1]), ("1", &[0]), ("0:0", &[0]), ("all", &[0, 1])]);
        assert_eq!(
            attacher.name(gpu("GPU-a", 0)),
            Some("1"),
            "the name that NVML's order suggests is another's"
        );
        assert_eq!(attacher.name(gpu("GPU-b", 1)), Some("0"));
        assert_eq!(attacher.name(gpu("GPU-c", 2)), None, "all is no name of one");
    }

    #[test]
    fn it_is_never_given_by_the_name_of_all_or_of_another() {
        let (_directory, one) = attacher(&[("all", &[0])]);
        assert_eq!(one.name(gpu("GPU-a", 0)), None, "all are more than one as soon as there is a second");
        let (_directory, stale) = attacher(&[("GPU-a", &[1]), ("GPU-b", &[0])]);
        assert_eq!(
            stale.name(gpu("GPU-a", 0)),
            None,
            "its name gives another's node, its node has another's name"
        );
        let (_directory, without) = attacher(&[("GPU-a", &[])]);
        assert_eq!(without.name(gpu("GPU-a", 0)), Some("GPU-a"), "a description may give no node at all");
    }

    #[test]
    fn what_a_node_is_on_the_host_counts() {
        assert_eq!(minor(Path::new("/run/nvidia/driver/dev/nvidia3")), Some(3));
        let directory = tempfile::tempdir().unwrap();
        let text = json!({ "cdiVersion": "0.6.0", "kind": KIND, "devices": [{ "name": "0", "containerEdits": {
            "deviceNodes": [{ "path": "/dev/nvidia0", "hostPath": "/dev/nvidia3" }],
        } }] });
        fs::write(directory.path().join("nvidia.json"), text.to_string()).unwrap();
        let mut attacher =
            Attacher::new(&Config { cdi: vec![directory.path().to_owned()], ..Config::default() });
        attacher.refresh();
        assert_eq!((attacher.name(gpu("GPU-a", 0)), attacher.name(gpu("GPU-d", 3))), (None, Some("0")));
    }

    #[test]
    fn an_instance_is_never_given_its_whole_gpu() {
        let (_directory, attacher) = attacher(&[("0", &[0]), ("0:1", &[0])]);
        let instance = |place| Identity { instance: Some((0, place)), ..gpu("MIG-x", 0) };
        assert_eq!(attacher.name(instance(1)), Some("0:1"));
        assert_eq!(attacher.name(instance(2)), None);
        let (_directory, typed) = super::tests::attacher(&[("gpu0", &[0]), ("mig0:1", &[0])]);
        assert_eq!(typed.name(instance(1)), Some("mig0:1"));
    }

    #[test]
    fn descriptions_that_change_are_read_again() {
        let (directory, mut attacher) = attacher(&[("0", &[0])]);
        fs::remove_file(directory.path().join("nvidia.json")).unwrap();
        attacher.refresh();
        assert_eq!(attacher.name(gpu("GPU-a", 0)), None);
    }

    #[test]
    fn the_variables_name_the_gpu_and_never_all_of_them() {
        let config = Config {
            driver_capabilities: vec!["video".into(), "ngx".into(), "graphics".into()],
            ..Config::default()
        };
        let attachment = Attacher::new(&config).attachment(gpu("GPU-a", 0));
        assert_eq!(attachment.env["NVIDIA_VISIBLE_DEVICES"], "GPU-a");
        assert_eq!(attachment.env["NVIDIA_DRIVER_CAPABILITIES"], "video,ngx,graphics");
        assert_eq!(attachment.requests[0].capabilities, [["gpu", "video", "graphics"]]);
        let all = Attacher::new(&Config::default()).attachment(gpu("GPU-a", 0));
        assert_eq!(all.env["NVIDIA_DRIVER_CAPABILITIES"], "all");
        assert_eq!(all.requests[0].capabilities, [["gpu"]]);
    }
}
