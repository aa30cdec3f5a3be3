//! Images made for a trial.

use std::io;

use serde_json::json;
use sha2::{Digest, Sha256};

/// No test runs on one of these.
const ARCHITECTURE: &str = "s390x";
/// Of `linux/elf-em.h`.
const MACHINE: u8 = 22;

/// An archive as `docker save` writes it, with one image: a program for a processor that is not this host's.
pub(super) fn foreign(name: &str) -> io::Result<Vec<u8>> {
    let layer = archive(&[("foreign", &program(), 0o755)])?;
    let config = json!({
        "architecture": ARCHITECTURE,
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": { "Entrypoint": ["/foreign"] },
        "history": [{ "created": "1970-01-01T00:00:00Z", "created_by": "a trial" }],
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", digest(&layer))] },
    });
    let config = config.to_string().into_bytes();
    let config_name = format!("{}.json", digest(&config));
    let layer_name = format!("{}/layer.tar", digest(&layer));
    let manifest = json!([{ "Config": config_name, "RepoTags": [name], "Layers": [layer_name] }]);
    let manifest = manifest.to_string().into_bytes();
    archive(&[
        (&config_name, &config, 0o644),
        (&layer_name, &layer, 0o644),
        ("manifest.json", &manifest, 0o644),
    ])
}

/// As much of an ELF file as the kernel looks at before it refuses the machine: 64 bits, big-endian, executable.
fn program() -> [u8; 64] {
    let mut header = [0; 64];
    header[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 2, 1]);
    header[17] = 2;
    header[19] = MACHINE;
    header[23] = 1;
    header
}

fn archive(files: &[(&str, &[u8], u32)]) -> io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, content, mode) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(*mode);
        archive.append_data(&mut header, name, *content)?;
    }
    archive.into_inner()
}

fn digest(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}
