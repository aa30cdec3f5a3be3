//! What the driver says, in the kinds that the host acts on.

use std::{error::Error as StdError, io, time::Duration};

use deadpool_postgres::PoolError;
use host_core::{ErrorKind, PluginError, Retry};
use tokio_postgres::{Error, error::DbError};

const MIGRATE: &str = "run `host-service db migrate`";

/// A driver's error while `doing` something. The server's details and hints stay out: they quote rows.
pub(crate) fn of_driver(doing: &str, error: Error) -> PluginError {
    if let Some(said) = error.as_db_error() {
        return of_server(doing, said);
    }
    let is_gone = error.is_closed() || caused_by::<io::Error>(&error).is_some();
    match caused_by::<rustls::Error>(&error) {
        Some(_) => {
            PluginError::new(ErrorKind::Denied, format!("{doing}: no trusted connection to the database"))
        }
        None if is_gone => {
            PluginError::new(ErrorKind::Unavailable, format!("{doing}: the database is not reached"))
        }
        None => PluginError::new(ErrorKind::Internal, format!("{doing}: the database driver failed")),
    }
    .with_source(error)
}

/// The same while connecting: what the driver itself finds wrong then is what it was given to connect with.
pub(crate) fn of_connecting(doing: &str, error: Error) -> PluginError {
    match of_driver(doing, error) {
        error if error.kind() == ErrorKind::Internal => {
            PluginError::new(ErrorKind::Denied, "the database cannot be connected to as configured")
                .with_source(error)
        }
        error => error,
    }
}

/// The pool's error.
pub(crate) fn of_pool(doing: &str, error: PoolError) -> PluginError {
    match error {
        PoolError::Backend(error) => of_connecting(doing, error),
        other => {
            PluginError::new(ErrorKind::Unavailable, format!("{doing}: no connection")).with_source(other)
        }
    }
}

/// The operation's own deadline has passed.
pub(crate) fn late(doing: &str, limit: Duration) -> PluginError {
    PluginError::new(ErrorKind::Timeout, format!("{doing}: the database did not answer within {limit:?}"))
}

fn of_server(doing: &str, said: &DbError) -> PluginError {
    let (code, text) = (said.code().code(), said.message());
    let kind = kind(code);
    let remedy = match code {
        "42P01" | "42703" | "42883" | "3F000" => format!("; the schema does not fit this version: {MIGRATE}"),
        "42501" => "; the role may not do this: sql/host_role.sql is what a host needs".to_owned(),
        _ => String::new(),
    };
    let error = PluginError::new(kind, format!("{doing}: the database says {text:?} ({code}){remedy}"));
    match code.get(..2) {
        // A deadlock or a lost race of transactions is over when it is told; and who this is says nothing of what is
        // asked for: somebody will put the password right, and then it is told.
        Some("40" | "28") => error.with_retry(Retry::Later),
        _ => error,
    }
}

/// By SQLSTATE: its class, or a member of it that differs.
fn kind(code: &str) -> ErrorKind {
    match code {
        "23505" => ErrorKind::Conflict,
        "23503" => ErrorKind::NotFound,
        "42501" => ErrorKind::Denied,
        "57014" | "55P03" => ErrorKind::Timeout,
        // A standby that is not promoted yet.
        "25006" => ErrorKind::Unavailable,
        _ => match code.get(..2) {
            Some("08" | "57") => ErrorKind::Unavailable,
            Some("28") => ErrorKind::Denied,
            Some("53") => ErrorKind::Exhausted,
            Some("22" | "23" | "3D" | "3F" | "42") => ErrorKind::Invalid,
            _ => ErrorKind::Internal,
        },
    }
}

fn caused_by<'a, T: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(cause) = next {
        if let Some(found) = cause.downcast_ref() {
            return Some(found);
        }
        // An io::Error shows the source of what it wraps, not what it wraps.
        let wrapped = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if let Some(found) = wrapped.and_then(|wrapped| wrapped.downcast_ref()) {
            return Some(found);
        }
        next = cause.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_have_the_kinds_that_the_host_acts_on() {
        for (code, expected) in [
            ("57P01", ErrorKind::Unavailable),
            ("57P03", ErrorKind::Unavailable),
            ("08006", ErrorKind::Unavailable),
            ("57014", ErrorKind::Timeout),
            ("28P01", ErrorKind::Denied),
            ("42703", ErrorKind::Invalid),
            ("53300", ErrorKind::Exhausted),
            ("23505", ErrorKind::Conflict),
            ("XX000", ErrorKind::Internal),
            ("", ErrorKind::Internal),
        ] {
            assert_eq!(kind(code), expected, "{code}");
        }
    }
}
