//! What a type cannot say: bounds, and settings that are at odds with each other.

use std::{net::SocketAddr, path::Path, time::Duration};

use crate::{
    error::ConfigError,
    key::Key,
    loaded::Loaded,
    settings::{AuthMode, Metadata, Settings},
};

mod mandelbox;

/// Everything broken in `loaded`, but for what `found` has told already.
pub(crate) fn check(loaded: &Loaded, found: &[ConfigError]) -> Vec<ConfigError> {
    let mut rules = Rules {
        loaded,
        settings: &loaded.settings,
        failed: found.iter().filter_map(ConfigError::key).collect(),
        broken: Vec::new(),
    };
    rules.plugins();
    rules.instance();
    rules.auth();
    rules.servers();
    rules.paths();
    rules.intervals();
    rules.pubsub();
    rules.mandelbox();
    rules.broken
}

struct Rules<'a> {
    loaded: &'a Loaded,
    settings: &'a Settings,
    /// Keys that are known to be wrong: what stands in for their values proves nothing.
    failed: Vec<&'a str>,
    broken: Vec<ConfigError>,
}

impl Rules<'_> {
    /// The values of `keys` do not go together. The one set last is told: its author can change it.
    fn refuse(&mut self, keys: &[&str], message: impl Into<String>) {
        if keys.iter().any(|key| self.failed.contains(key)) {
            return;
        }
        let places = keys.iter().rev().filter_map(|key| self.loaded.place(&Key::parse(key)?));
        let Some(place) = places.max_by_key(|place| place.height) else {
            return;
        };
        self.broken.push(ConfigError::Invalid {
            key: place.name,
            origin: Some(place.origin),
            message: message.into(),
        });
    }

    fn refuse_if(&mut self, wrong: bool, keys: &[&str], message: &str) {
        if wrong {
            self.refuse(keys, message);
        }
    }

    /// Nobody chose the values of `keys`.
    fn demand(&mut self, keys: &[&str], message: String) {
        self.broken.push(ConfigError::Incomplete {
            profile: self.loaded.profile.name(),
            keys: keys.iter().map(|&key| key.to_owned()).collect(),
            message,
        });
    }

    /// A mistyped key may be the one that seems to be missing in the same table.
    fn is_doubtful(&self, table: &str) -> bool {
        let in_table =
            |key: &&str| key.strip_prefix(table).is_some_and(|rest| rest.starts_with('.') || rest.is_empty());
        self.failed.iter().any(in_table)
    }

    fn plugins(&mut self) {
        let chosen = [
            ("runtime", &self.settings.runtime.plugin, "docker"),
            ("gpu", &self.settings.gpu.plugin, "none"),
            ("pubsub", &self.settings.pubsub.plugin, "memory"),
        ];
        let missing: Vec<_> = chosen
            .into_iter()
            .filter(|(kind, plugin, _)| plugin.is_empty() && !self.is_doubtful(kind))
            .collect();
        if missing.is_empty() {
            return;
        }
        let kinds: Vec<_> = missing.iter().map(|(kind, ..)| format!("no {kind}")).collect();
        let keys: Vec<_> = missing.iter().map(|(kind, ..)| format!("{kind}.plugin")).collect();
        let examples: Vec<_> =
            missing.iter().map(|(kind, _, name)| format!("--set {kind}.plugin={name}")).collect();
        let message = format!(
            "names {} plugin; set {} (for example {})",
            kinds.join(" and "),
            keys.join(" and "),
            examples.join(" ")
        );
        self.demand(&keys.iter().map(String::as_str).collect::<Vec<_>>(), message);
    }

    fn instance(&mut self) {
        let instance = &self.settings.instance;
        let nameless = instance.name.is_none()
            && instance.metadata == Metadata::Static
            && !self.loaded.profile.is_local();
        if nameless && !self.is_doubtful("instance") {
            let message = "needs the name that this host has in the database; set instance.name";
            self.demand(&["instance.name"], message.to_owned());
        }
    }

    fn auth(&mut self) {
        let auth = &self.settings.auth;
        if auth.mode == AuthMode::Off {
            let message = "tokens may go unchecked in the local profiles only; write \"jwt\", or choose --profile localdev";
            self.refuse_if(!self.loaded.profile.is_local(), &["auth.mode"], message);
            return;
        }
        let missing: Vec<_> =
            [("auth.issuer", auth.issuer.is_none()), ("auth.audience", auth.audience.is_none())]
                .into_iter()
                .filter_map(|(key, missing)| missing.then_some(key))
                .collect();
        if !missing.is_empty() && !self.is_doubtful("auth") {
            let message = format!("checks clients' tokens; set {}", missing.join(" and "));
            self.demand(&missing, message);
        }
        self.refuse_if(
            auth.jwks_file.is_some() && auth.jwks_url.is_some(),
            &["auth.jwks_file", "auth.jwks_url"],
            "the keys come from a file or from a URL; set auth.jwks_file or auth.jwks_url, not both",
        );
        let url = auth.keys_url();
        let (key, message) = match auth.jwks_url {
            Some(_) => ("auth.jwks_url", ""),
            None => (
                "auth.issuer",
                "has no keys that could be fetched safely; set auth.jwks_url or auth.jwks_file, or ",
            ),
        };
        let message = format!(
            "{message}write a URL with https:// and without credentials (http:// only on this machine)"
        );
        self.refuse_if(url.is_some_and(|url| !is_safe(&url)), &[key], &message);
        for (key, time) in [
            ("auth.jwks_refresh", auth.jwks_refresh),
            ("auth.jwks_pause", auth.jwks_pause),
            ("auth.jwks_timeout", auth.jwks_timeout),
        ] {
            self.refuse_if(time.is_zero(), &[key], "must be longer than 0s");
        }
    }

    fn servers(&mut self) {
        let http = &self.settings.http;
        let (certificate, key) = (http.certificate.is_some(), http.key.is_some());
        self.refuse_if(
            certificate != key,
            &["http.certificate", "http.key"],
            "a certificate and its key come together; set both http.certificate and http.key, or neither",
        );
        self.refuse_if(http.max_connections == 0, &["http.max_connections"], "must be at least 1");
        self.refuse_if(http.max_waiting == 0, &["http.max_waiting"], "must be at least 1");
        self.refuse_if(http.body_limit_bytes == 0, &["http.body_limit_bytes"], "must be at least 1");
        self.refuse_if(
            collide(http.listen, self.settings.metrics.listen),
            &["http.listen", "metrics.listen"],
            "http.listen and metrics.listen are the same port of the same address; change one",
        );
        let filter_missing = self.settings.telemetry.filter.trim().is_empty();
        self.refuse_if(
            filter_missing,
            &["telemetry.filter"],
            "must not be empty; write for example \"info\"",
        );
        for (place, plugin) in self.settings.telemetry.plugins.iter().enumerate() {
            let again = self.settings.telemetry.plugins[..place].contains(plugin);
            self.refuse_if(again, &["telemetry.plugins"], &format!("{plugin} is named twice"));
            self.refuse_if(plugin.is_empty(), &["telemetry.plugins"], "a plugin's name is missing");
        }
    }

    fn paths(&mut self) {
        let paths = &self.settings.paths;
        let named = [
            ("paths.root", &paths.root),
            ("paths.state", &paths.state),
            ("paths.logs", &paths.logs),
            ("paths.plugins", &paths.plugins),
        ];
        for (key, path) in named {
            let wrong = !is_directory(path);
            self.refuse_if(wrong, &[key], "must be absolute, without .. and not / itself");
        }
        for (place, (key, path)) in named.iter().enumerate() {
            for (other_key, other) in &named[..place] {
                let nested = path.starts_with(other) || other.starts_with(path);
                self.refuse_if(
                    nested && is_directory(path) && is_directory(other),
                    &[key, other_key],
                    &format!("{key} and {other_key} must not be the same, nor one inside the other"),
                );
            }
        }
        let socket = &self.settings.admin.socket;
        self.refuse_if(
            !is_plain(socket) || socket.as_os_str().len() > LONGEST_SOCKET_BYTES,
            &["admin.socket"],
            "must be absolute, without .., and of at most 107 bytes",
        );
    }

    /// None of these can be zero: a deadline of nothing lets nothing succeed, an interval of nothing never rests.
    fn intervals(&mut self) {
        let Settings { gpu, pubsub, http, .. } = self.settings;
        let times = &self.settings.mandelbox.timeouts;
        for (key, time) in [
            ("gpu.poll", gpu.poll),
            ("gpu.timeout", gpu.timeout),
            ("pubsub.heartbeat", pubsub.heartbeat),
            ("pubsub.stale_check", pubsub.stale_check),
            ("pubsub.stale_allocated", pubsub.stale_allocated),
            ("pubsub.timeout", pubsub.timeout),
            ("instance.metadata_timeout", self.settings.instance.metadata_timeout),
            ("http.header_timeout", http.header_timeout),
            ("http.body_timeout", http.body_timeout),
            ("http.handshake_timeout", http.handshake_timeout),
            ("http.idle_timeout", http.idle_timeout),
            ("mandelbox.timeouts.claim", times.claim),
            ("mandelbox.timeouts.image", times.image),
            ("mandelbox.timeouts.prepare", times.prepare),
            ("mandelbox.timeouts.create", times.create),
            ("mandelbox.timeouts.start", times.start),
            ("mandelbox.timeouts.client", times.client),
            ("mandelbox.timeouts.application", times.application),
            ("mandelbox.timeouts.remove", times.remove),
        ] {
            self.refuse_if(time.is_zero(), &[key], "must be longer than 0s");
        }
        let power_off = &self.settings.drain.power_off;
        let nameless = power_off.first().is_some_and(String::is_empty);
        self.refuse_if(nameless, &["drain.power_off"], "the program's name is missing");
        let slots = self.settings.gpu.slots_per_gpu;
        self.refuse_if(!(1..=64).contains(&slots), &["gpu.slots_per_gpu"], "must be from 1 to 64");
    }

    fn pubsub(&mut self) {
        let pubsub = &self.settings.pubsub;
        self.refuse_if(
            pubsub.heartbeat >= LINGERING,
            &["pubsub.heartbeat"],
            "must be shorter than 2m: the database takes a host that is silent so long for dead",
        );
        let times = &self.settings.mandelbox.timeouts;
        self.refuse_if(
            pubsub.stale_connecting <= times.client + times.application,
            &["pubsub.stale_connecting", "mandelbox.timeouts.client", "mandelbox.timeouts.application"],
            "pubsub.stale_connecting must be longer than mandelbox.timeouts.client and \
             mandelbox.timeouts.application together: a mandelbox that may still succeed is not stale",
        );
    }
}

/// `sun_path` of Linux's `struct sockaddr_un` has 108 bytes, the closing zero included.
const LONGEST_SOCKET_BYTES: usize = 107;

/// The view `lingering_instances`: no heartbeat for 2 minutes.
const LINGERING: Duration = Duration::from_secs(120);

/// Whether nobody on the way can put other keys in the place of the issuer's.
fn is_safe(url: &str) -> bool {
    let near = |rest: &str| {
        ["127.0.0.1", "localhost", "[::1]"].into_iter().any(|host| {
            rest.strip_prefix(host).is_some_and(|rest| rest.is_empty() || rest.starts_with([':', '/']))
        })
    };
    let named = |rest: &str| !rest.is_empty() && !rest.starts_with(['/', ':']);
    !url.contains('@')
        && (url.strip_prefix("https://").is_some_and(named) || url.strip_prefix("http://").is_some_and(near))
}

fn collide(one: SocketAddr, other: SocketAddr) -> bool {
    let same_address = one.ip() == other.ip() || one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() == other.port() && one.port() != 0 && same_address
}

fn is_directory(path: &Path) -> bool {
    is_plain(path) && path != Path::new("/")
}

/// Absolute, and the same place whichever way it is read.
fn is_plain(path: &Path) -> bool {
    use std::path::Component;
    path.is_absolute() && path.components().all(|part| !matches!(part, Component::ParentDir))
}
