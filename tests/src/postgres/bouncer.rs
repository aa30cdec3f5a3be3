//! A transaction-pooling proxy in front of a server.

use std::{
    fs,
    net::TcpStream,
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};

use super::{Cluster, Database, place};
use crate::wait::until;

/// A running pgbouncer. Dropping it kills it.
#[derive(Debug)]
pub struct Bouncer {
    child: Child,
    port: u16,
}

impl Bouncer {
    /// One in front of `cluster`.
    ///
    /// # Errors
    /// This host has none, or it does not come up.
    pub async fn start(cluster: &Cluster) -> Result<Self> {
        let port = place::free_port()?;
        let config = cluster.place.path(&format!("pgbouncer-{port}.ini"));
        fs::write(
            &config,
            format!(
                "[databases]\n* = host=127.0.0.1 port={} user=postgres\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
                 listen_port = {port}\nauth_type = any\npool_mode = transaction\nunix_socket_dir =\n",
                cluster.port()
            ),
        )?;
        let mut command = place::as_postgres("setpriv")?;
        command.args(["--pdeathsig", "KILL", "pgbouncer", "--quiet"]).arg(&config);
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().context("this host lacks pgbouncer: `make setup` installs it")?;
        let bouncer = Self { child, port };
        let listens = async || TcpStream::connect(("127.0.0.1", port)).ok().map(drop);
        until("pgbouncer that listens", Duration::from_secs(10), listens).await?;
        Ok(bouncer)
    }

    /// The same database, through the proxy.
    #[must_use]
    pub fn through(&self, database: &Database) -> Database {
        Database { port: self.port, ..database.clone() }
    }
}

impl Drop for Bouncer {
    fn drop(&mut self) {
        // Both fail only for a process that has ended and was waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
