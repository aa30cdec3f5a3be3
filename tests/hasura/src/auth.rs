//! Who asks: the administrator's secret, or a token.

use std::sync::atomic::Ordering;

use serde_json::{Map, Value};
use tokio::time::Instant;

use crate::{HOST, Shared, failure::Fault, schema::Caller};

/// Names in lower case.
pub(crate) type Headers = Map<String, Value>;

/// A caller, and until when it is believed.
pub(crate) type Believed = (Caller, Option<Instant>);

impl Shared {
    pub(crate) fn authenticate(&self, headers: &Headers) -> Result<Believed, Fault> {
        let believed = self.believe(headers);
        if believed.is_err() {
            self.refusals.fetch_add(1, Ordering::Relaxed);
        }
        believed
    }

    fn believe(&self, headers: &Headers) -> Result<Believed, Fault> {
        let state = self.lock();
        let header = |name: &str| headers.get(name).and_then(Value::as_str);
        let given = header("x-hasura-admin-secret");
        let Some(secret) = &state.admin_secret else { return Ok((administrator(headers), None)) };
        if given.is_some() {
            return match given == Some(secret) {
                true => Ok((administrator(headers), None)),
                false => Err(Fault::access()),
            };
        }
        let Some(authorization) = header("authorization") else {
            let message = "x-hasura-admin-secret/x-hasura-access-key required, but not found";
            return Err(Fault::new("access-denied", message));
        };
        let unverified = |why: &str| Fault::new("invalid-jwt", format!("Could not verify JWT: {why}"));
        let token = authorization.strip_prefix("Bearer ").and_then(|token| state.tokens.get(token));
        let token = token.ok_or_else(|| unverified("JWSError JWSInvalidSignature"))?;
        if token.expires.is_some_and(|expires| expires <= Instant::now()) {
            return Err(unverified("JWTExpired"));
        }
        if header("x-hasura-role").is_some_and(|role| role != HOST) {
            return Err(Fault::new("access-denied", "Your requested role is not in allowed roles"));
        }
        let session = Map::from_iter([("x-hasura-instance-name".to_owned(), token.instance.clone().into())]);
        Ok((Caller { role: HOST.to_owned(), session }, token.expires))
    }
}

/// May take on any role, with any session variables.
fn administrator(headers: &Headers) -> Caller {
    let role = headers.get("x-hasura-role").and_then(Value::as_str).unwrap_or("admin");
    let session = headers.iter().filter(|(name, _)| name.starts_with("x-hasura-"));
    Caller { role: role.to_owned(), session: session.map(|(n, v)| (n.clone(), v.clone())).collect() }
}
