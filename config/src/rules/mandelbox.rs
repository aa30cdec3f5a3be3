//! The rules of `[mandelbox]`.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use super::{Rules, is_directory, is_plain};
use crate::key::Key;

/// Below this are the well-known ports and 1024, which some systems still keep for root.
const LOWEST_PORT: u16 = 1025;

/// Linux has the consoles tty1 to tty63.
const LAST_TTY: u16 = 63;

/// Docker refuses less.
const LEAST_MEMORY_BYTES: u64 = 6 << 20;

/// Where the service mounts its own directories.
const OWN_TARGETS: &[&str] = &["/fractal/resourceMappings", "/tmp/sockets"];

impl Rules<'_> {
    pub(super) fn mandelbox(&mut self) {
        self.ports();
        self.capacity();
        self.variables();
        self.mounts();
        self.devices();
        self.limits();
        self.stopping();
        let local = self.loaded.profile.is_local();
        self.refuse_if(
            self.settings.mandelbox.allocate_on_request && !local,
            &["mandelbox.allocate_on_request"],
            "only the control plane allocates outside the local profiles; write false",
        );
        let seconds = self.settings.mandelbox.client_timeout_seconds;
        self.refuse_if(
            seconds != -1 && seconds < 1,
            &["mandelbox.client_timeout_seconds"],
            "must be at least 1, or -1 for ever",
        );
    }

    fn ports(&mut self) {
        let mandelbox = &self.settings.mandelbox;
        let range = mandelbox.port_range;
        self.refuse_if(range.start < LOWEST_PORT, &["mandelbox.port_range"], "must be within 1025-65535");
        let ttys = mandelbox.tty_range;
        self.refuse_if(
            ttys.start < 1 || ttys.end > LAST_TTY,
            &["mandelbox.tty_range"],
            "must be within 1-63",
        );
        let distinct: BTreeSet<_> = mandelbox.ports.iter().collect();
        self.refuse_if(distinct.len() < mandelbox.ports.len(), &["mandelbox.ports"], "a port is named twice");
        self.refuse_if(
            mandelbox.ports.len() > range.count(),
            &["mandelbox.ports", "mandelbox.port_range"],
            "mandelbox.port_range has fewer ports than one mandelbox needs",
        );
    }

    fn capacity(&mut self) {
        let mandelbox = &self.settings.mandelbox;
        let Some(capacity) = mandelbox.capacity.map(|capacity| capacity as usize) else {
            return;
        };
        let ttys = mandelbox.tty_range.count();
        if capacity > ttys {
            self.refuse(
                &["mandelbox.capacity", "mandelbox.tty_range"],
                format!("{capacity} mandelboxes cannot share the {ttys} TTYs of mandelbox.tty_range"),
            );
        }
        let (ports, each) = (mandelbox.port_range.count(), mandelbox.ports.len());
        if capacity.saturating_mul(each) > ports {
            self.refuse(
                &["mandelbox.capacity", "mandelbox.port_range", "mandelbox.ports"],
                format!("{capacity} mandelboxes with {each} ports each need more than the {ports} ports of mandelbox.port_range"),
            );
        }
    }

    fn variables(&mut self) {
        let mandelbox = &self.settings.mandelbox;
        let extra = |name: &str| Key::from(["mandelbox", "environment", name]).to_string();
        let mut taken = BTreeMap::new();
        for (key, name) in mandelbox.env.given() {
            let key = format!("mandelbox.env.{key}");
            self.refuse_if(!is_variable(name), &[&key], VARIABLE);
            if mandelbox.environment.contains_key(name) {
                let message = format!("{key} and mandelbox.environment both set the variable {name}");
                self.refuse(&[&key, &extra(name)], message);
            }
            if let Some(other) = taken.insert(name, key.clone()) {
                let message = format!("{other} and {key} both set the variable {name}");
                self.refuse(&[&key, &other], message);
            }
        }
        for (name, value) in &mandelbox.environment {
            self.refuse_if(!is_variable(name), &[&extra(name)], VARIABLE);
            self.refuse_if(value.expose().contains('\0'), &[&extra(name)], "a variable holds no NUL");
        }
    }

    fn mounts(&mut self) {
        let mandelbox = &self.settings.mandelbox;
        let mut taken = OWN_TARGETS.iter().map(|own| (Path::new(own), None)).collect();
        for (place, mount) in mandelbox.mounts.iter().enumerate() {
            let key = format!("mandelbox.mounts.{place}");
            self.refuse_if(!is_plain(&mount.source), &[&format!("{key}.source")], ABSOLUTE);
            self.target(&mount.target, &key, &mut taken);
        }
        for (place, tmpfs) in mandelbox.tmpfs.iter().enumerate() {
            let key = format!("mandelbox.tmpfs.{place}");
            self.refuse_if(tmpfs.size_bytes == 0, &[&format!("{key}.size_bytes")], "must be at least 1");
            self.target(&tmpfs.target, &key, &mut taken);
        }
    }

    /// `taken`: each target so far with its key, none for the service's own.
    fn target<'t>(&mut self, target: &'t Path, key: &str, taken: &mut BTreeMap<&'t Path, Option<String>>) {
        let key = format!("{key}.target");
        self.refuse_if(!is_directory(target), &[&key], "must be absolute, without .. and not / itself");
        let message = format!("something else is mounted at {} already", target.display());
        match taken.insert(target, Some(key.clone())) {
            None => {}
            Some(None) => self.refuse(&[&key], message),
            Some(Some(other)) => self.refuse(&[&key, &other], message),
        }
    }

    fn devices(&mut self) {
        for (place, device) in self.settings.mandelbox.devices.iter().enumerate() {
            let key = format!("mandelbox.devices.{place}");
            let inside = device.container.as_ref();
            self.refuse_if(!is_plain(&device.host), &[&format!("{key}.host")], ABSOLUTE);
            self.refuse_if(
                inside.is_some_and(|path| !is_plain(path)),
                &[&format!("{key}.container")],
                ABSOLUTE,
            );
            let letters: BTreeSet<char> = device.permissions.chars().collect();
            let valid = !letters.is_empty()
                && letters.len() == device.permissions.len()
                && letters.iter().all(|letter| "rwm".contains(*letter));
            self.refuse_if(
                !valid,
                &[&format!("{key}.permissions")],
                "must be of the letters r, w and m, each at most once",
            );
        }
    }

    fn limits(&mut self) {
        let limits = &self.settings.mandelbox.limits;
        self.refuse_if(
            limits.memory_bytes.is_some_and(|bytes| bytes < LEAST_MEMORY_BYTES),
            &["mandelbox.limits.memory_bytes"],
            "must be at least 6291456 (6 MiB), or 0 for no limit",
        );
        self.refuse_if(
            limits.cpu_shares == Some(1),
            &["mandelbox.limits.cpu_shares"],
            "must be at least 2, the kernel's least, or 0 for the engine's own",
        );
        self.refuse_if(limits.shm_bytes == 0, &["mandelbox.limits.shm_bytes"], "must be at least 1");
    }

    fn stopping(&mut self) {
        let (mandelbox, drain) = (&self.settings.mandelbox, &self.settings.drain);
        for (key, grace) in [("mandelbox.stop_grace", mandelbox.stop_grace), ("drain.grace", drain.grace)] {
            self.refuse_if(
                grace >= mandelbox.timeouts.stop,
                &[key, "mandelbox.timeouts.stop"],
                &format!("mandelbox.timeouts.stop must be longer than {key}: the kill comes after the grace"),
            );
        }
    }
}

const ABSOLUTE: &str = "must be absolute and without ..";

const VARIABLE: &str = "the name of a variable has letters, digits and _ only, such as FRACTAL_TTY";

/// What a shell takes for a variable's name.
fn is_variable(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}
