//! The development database, as `make runlocaldevwithdb` starts it.

use std::{
    path::Path,
    process::{Child, ExitStatus, Stdio},
};

use anyhow::Result;

use super::{DEADLINE, Database};
use crate::{wait::until, world::Entrance};

/// A PostgreSQL on 127.0.0.1:5432 by `scripts/database.sh`, in a world, with which it ends at the latest.
#[derive(Debug)]
pub struct Development {
    script: Child,
    database: Database,
}

impl Development {
    /// One that keeps its data in `directory`.
    ///
    /// # Errors
    /// It does not come up.
    pub async fn start(world: &Entrance, directory: &Path) -> Result<Self> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("scripts").join("database.sh");
        let mut command = world.command(script);
        command.arg(directory).stdin(Stdio::piped()).stdout(Stdio::null());
        let script = world.spawn(&mut command)?;
        let database = Database { name: "postgres".to_owned(), port: 5432 };
        let development = Self { script, database };
        let answers = async || development.sql("SELECT 1").ok().map(drop);
        until("answer from the development database", DEADLINE, answers).await?;
        Ok(development)
    }

    /// Runs SQL with psql as its user, as [`Database::sql`] does.
    ///
    /// # Errors
    /// What psql says.
    pub fn sql(&self, sql: &str) -> Result<String> {
        self.database.sql_as("postgres:postgrespassword", sql)
    }

    /// Ends it as the end of `scripts/run.sh` does.
    ///
    /// # Errors
    /// It goes on.
    pub async fn end(mut self) -> Result<ExitStatus> {
        drop(self.script.stdin.take());
        let ended = async || self.script.try_wait().ok().flatten();
        until("end of the development database", DEADLINE, ended).await
    }
}

impl Drop for Development {
    fn drop(&mut self) {
        // The world ends what it has started; both fail only for a process that has ended and was waited for.
        let _ = self.script.kill();
        let _ = self.script.wait();
    }
}
