//! From the driver's rows to those of the control plane.

use control_plane::{Raw, Read};
use host_core::pubsub::Result;
use tokio_postgres::{Error, Row};

use crate::failure;

/// The columns of a [`Raw`], in the order of [`mandelbox`].
pub(crate) const MANDELBOX: &str = "m.mandelbox_id::text, m.user_id::text, m.session_id::text, m.app::text, m.status::text, \
     m.creation_time_utc_unix_ms";

/// `None` when there is no mandelbox: the outer side of a join. `at` is the first of the columns.
pub(crate) fn mandelbox(row: &Row, at: usize) -> std::result::Result<Option<Raw>, Error> {
    let Some(id) = row.try_get(at)? else { return Ok(None) };
    Ok(Some(Raw {
        id,
        user: row.try_get(at + 1)?,
        session: row.try_get(at + 2)?,
        app: row.try_get(at + 3)?,
        status: row.try_get(at + 4)?,
        created_ms: row.try_get(at + 5)?,
    }))
}

/// What `statements::read` yields.
pub(crate) fn read(doing: &str, rows: &[Row]) -> Result<Read> {
    let mut read = Read::default();
    for row in rows {
        let fields = row.try_get(0).and_then(|instance| Ok((instance, mandelbox(row, 1)?)));
        let (instance, mandelbox) = fields.map_err(|error| failure::of_driver(doing, error))?;
        read.instance = Some(instance);
        read.mandelboxes.extend(mandelbox);
    }
    Ok(read)
}
