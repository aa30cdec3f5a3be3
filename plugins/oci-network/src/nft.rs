//! The `nft` program: makes, replaces and removes the table.

use std::{io, path::PathBuf, process::Stdio, time::Duration};

use host_core::{ErrorKind, PluginError};
use tokio::{io::AsyncWriteExt, process::Command, time::timeout};

/// A transaction takes milliseconds; this bounds one that waits behind others' or hangs.
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);

/// Longest part of what `nft` complains that goes into an error, in bytes.
const COMPLAINT_BYTES: usize = 400;

#[derive(Debug, Clone)]
pub(crate) struct Nft {
    pub(crate) program: PathBuf,
    pub(crate) deadline: Duration,
}

impl Default for Nft {
    fn default() -> Self {
        Self { program: "nft".into(), deadline: DEADLINE }
    }
}

impl Nft {
    /// Applies `text` whole or not at all. After a `Timeout` it is unknown which.
    pub(crate) async fn apply(&self, text: &str) -> Result<(), PluginError> {
        self.run(&["-f", "-"], text).await.map(drop)
    }

    /// What `nft -j list …` answers.
    pub(crate) async fn list(&self, what: &[&str]) -> Result<serde_json::Value, PluginError> {
        let answer = self.run(&[&["-j", "list"], what].concat(), "").await?;
        serde_json::from_slice(&answer).map_err(|error| {
            let message = "the nft program answers no JSON; install an nftables built with JSON support";
            PluginError::new(ErrorKind::Unsupported, message).with_source(error)
        })
    }

    async fn run(&self, arguments: &[&str], input: &str) -> Result<Vec<u8>, PluginError> {
        let mut child = Command::new(&self.program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| self.cannot_run(error))?;
        let stdin = child.stdin.take();
        let feed = async {
            if let Some(mut stdin) = stdin {
                // It may have ended already; its exit status says why.
                let _ = stdin.write_all(input.as_bytes()).await;
            }
        };
        let run = async { tokio::join!(feed, child.wait_with_output()).1 };
        match timeout(self.deadline, run).await {
            Ok(Ok(output)) if output.status.success() => Ok(output.stdout),
            Ok(Ok(output)) => Err(complaint(&String::from_utf8_lossy(&output.stderr))),
            Ok(Err(error)) => Err(self.cannot_run(error)),
            Err(_) => {
                let message = format!("nft did not end within {:?} and was killed", self.deadline);
                Err(PluginError::new(ErrorKind::Timeout, message))
            }
        }
    }

    fn cannot_run(&self, error: io::Error) -> PluginError {
        let message = match error.kind() {
            io::ErrorKind::NotFound => format!(
                "the program {} is missing; install nftables (apt-get install nftables, dnf install nftables)",
                self.program.display()
            ),
            _ => format!("the program {} cannot be run", self.program.display()),
        };
        PluginError::new(ErrorKind::Unavailable, message).with_source(error)
    }
}

fn complaint(text: &str) -> PluginError {
    let said: String = text.trim().chars().take(COMPLAINT_BYTES).collect();
    let (kind, message) = if text.contains("Operation not permitted") {
        (ErrorKind::Denied, "nft needs root (CAP_NET_ADMIN); run the host service as root".to_owned())
    } else if text.contains("Operation not supported") || text.contains("Protocol not supported") {
        let message = "this kernel lacks a part of nf_tables; load the modules nf_tables, nft_nat, nft_masq and \
                       nft_fib_inet";
        (ErrorKind::Unsupported, format!("{message}: {said}"))
    } else {
        (ErrorKind::Internal, format!("nft refused a transaction: {said}"))
    };
    PluginError::new(kind, message)
}
