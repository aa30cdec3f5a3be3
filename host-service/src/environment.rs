//! What the kernel shows of this process's environment, in `/proc/<pid>/environ` and to processes it starts.

use std::{
    fs::{self, OpenOptions},
    io::{self, ErrorKind},
    os::unix::fs::FileExt,
};

/// Variables that may hold secrets and that nobody reads once the configuration is loaded.
fn is_configuration(name: &[u8]) -> bool {
    name.starts_with(b"HOST_SERVICE__") || name == b"LOGZIO_SHIPPING_TOKEN" || name == b"SENTRY_DSN"
}

/// Empties the variables that the configuration came from: from now on they are there, and have no value.
///
/// The kernel shows the memory in which it laid the environment at the start, whatever the process has unset since; so
/// that memory is what is overwritten, where `/proc/self/stat` says that it lies.
///
/// # Errors
/// There is no `/proc`, or it lets nobody write.
pub(crate) fn forget_configuration() -> io::Result<()> {
    let environ = fs::read("/proc/self/environ")?;
    let start = environ_start(&fs::read_to_string("/proc/self/stat")?)
        .ok_or_else(|| io::Error::new(ErrorKind::InvalidData, "/proc/self/stat has no env_start"))?;
    let memory = OpenOptions::new().write(true).open("/proc/self/mem")?;
    let mut place = start;
    for variable in environ.split_inclusive(|byte| *byte == 0) {
        if let Some(equals) = variable.iter().position(|byte| *byte == b'=')
            && is_configuration(&variable[..equals])
        {
            let value = &variable[equals + 1..];
            memory.write_all_at(&vec![0; value.len()], place + equals as u64 + 1)?;
        }
        place += variable.len() as u64;
    }
    Ok(())
}

/// The fiftieth field of proc(5)'s `stat`; the second is a name in parentheses that may hold anything.
fn environ_start(stat: &str) -> Option<u64> {
    let (_, from_third) = stat.rsplit_once(')')?;
    from_third.split_whitespace().nth(47)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_is_found_behind_a_hostile_name() {
        let fields: Vec<String> = (4..=52).map(|field| field.to_string()).collect();
        let stat = format!("7 (a) b 1 2 (c)) S {}", fields.join(" "));
        assert_eq!(environ_start(&stat), Some(50));
        assert_eq!(environ_start("7 (a) S 1"), None);
    }

    #[test]
    fn only_what_the_configuration_comes_from_is_forgotten() {
        for name in ["HOST_SERVICE__PUBSUB__POSTGRES__URL", "LOGZIO_SHIPPING_TOKEN", "SENTRY_DSN"] {
            assert!(is_configuration(name.as_bytes()), "{name}");
        }
        for name in ["PATH", "NOTIFY_SOCKET", "APP_ENV", "HOST_SERVICE"] {
            assert!(!is_configuration(name.as_bytes()), "{name}");
        }
    }
}
