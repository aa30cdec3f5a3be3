//! What Hasura says when something is wrong: `{"extensions":{"path":"$…","code":"…"},"message":"…"}`.

use std::fmt;

use serde_json::{Value, json};

/// Something that is the client's to hear.
#[derive(Debug, Clone)]
pub(crate) struct Fault {
    pub(crate) code: &'static str,
    pub(crate) message: String,
}

impl Fault {
    pub(crate) fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    pub(crate) fn validation(message: &str) -> Self {
        Self::new("validation-failed", message)
    }

    pub(crate) fn missing(variable: &str) -> Self {
        Self::new("not-found", format!("missing session variable: {variable:?}"))
    }

    pub(crate) fn access() -> Self {
        Self::new("access-denied", "invalid \"x-hasura-admin-secret\"/\"x-hasura-access-key\"")
    }

    /// The database behind does not answer.
    pub(crate) fn connection() -> Self {
        Self::new("unexpected", "connection error")
    }

    /// As PostgreSQL says it, so Hasura says it.
    pub(crate) fn of_postgres(error: &tokio_postgres::Error) -> Self {
        let Some(said) = error.as_db_error() else { return Self::connection() };
        match said.code().code() {
            "23505" => Self::new("constraint-violation", format!("Uniqueness violation. {}", said.message())),
            "23503" => {
                Self::new("constraint-violation", format!("Foreign key violation. {}", said.message()))
            }
            "23502" => Self::new("constraint-violation", format!("Not-NULL violation. {}", said.message())),
            code if code.starts_with("22") => Self::new("data-exception", said.message()),
            code if code.starts_with("57") => Self::connection(),
            _ => Self::new("postgres-error", "database query error"),
        }
    }

    /// E.
    pub(crate) fn json(&self, path: &str) -> Value {
        json!({ "extensions": { "path": path, "code": self.code }, "message": self.message })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Fault {}
