//! From the database's rows to the host's. A row may hold anything: whoever may write to the table may write nonsense.

use std::collections::BTreeSet;

use host_core::{
    ErrorKind, PluginError,
    pubsub::{DesiredState, InstanceStatus, MandelboxRow, MandelboxStatus, Result},
};
/// A mandelbox's row as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Raw {
    /// `mandelbox_id`.
    pub id: String,
    /// `user_id`.
    pub user: String,
    /// `session_id`.
    pub session: String,
    /// `app`.
    pub app: Option<String>,
    /// `status`.
    pub status: String,
    /// `creation_time_utc_unix_ms`.
    pub created_ms: i64,
}

impl Raw {
    /// # Errors
    /// What is wrong with it.
    pub fn understand(&self) -> std::result::Result<MandelboxRow, String> {
        let said = |error: host_core::InvalidId| error.to_string();
        let app = self.app.as_deref().filter(|app| !app.is_empty());
        Ok(MandelboxRow {
            id: self.id.parse().map_err(said)?,
            user: self.user.parse().map_err(said)?,
            session: self.session.parse().map_err(said)?,
            app: app.map(str::parse).transpose().map_err(said)?,
            status: MandelboxStatus::parse(&self.status)
                .ok_or_else(|| format!("this version knows no status {:?}", short(&self.status)))?,
            created_ms: self.created_ms,
        })
    }
}

/// What one read of a host yields.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Read {
    /// Its status as it stands; `None` when the host has no row.
    pub instance: Option<String>,
    /// All of its mandelboxes.
    pub mandelboxes: Vec<Raw>,
}

impl Read {
    /// The state, and the rows that cannot be understood with what is wrong with each. `last` is the status that
    /// stands in for one that is not known: a host must not take nonsense for the loss of its row.
    ///
    /// # Errors
    /// `Invalid` when the host's status is not known and none was known before.
    fn understand(&self, last: Option<InstanceStatus>) -> Result<(DesiredState, Vec<(&Raw, String)>)> {
        let instance = match &self.instance {
            Some(text) => Some(InstanceStatus::parse(text).or(last).ok_or_else(|| unknown_status(text))?),
            None => None,
        };
        let (mut mandelboxes, mut nonsense) = (Vec::new(), Vec::new());
        for raw in &self.mandelboxes {
            match raw.understand() {
                Ok(row) => mandelboxes.push(row),
                Err(why) => nonsense.push((raw, why)),
            }
        }
        Ok((DesiredState { instance, mandelboxes }, nonsense))
    }
}

/// What a watch remembers from one read to the next.
#[derive(Debug, Default)]
pub struct Reader {
    last_status: Option<InstanceStatus>,
    /// Rows of nonsense that were told.
    told: BTreeSet<String>,
}

impl Reader {
    /// The state. Rows that cannot be understood are told once each and left out.
    ///
    /// # Errors
    /// `Invalid` when the host's status is not known and none was known before.
    pub fn understand(&mut self, read: &Read) -> Result<DesiredState> {
        let (state, nonsense) = read.understand(self.last_status)?;
        self.last_status = state.instance;
        self.told.retain(|id| nonsense.iter().any(|(raw, _)| raw.id == *id));
        for (raw, why) in nonsense {
            if self.told.insert(raw.id.clone()) {
                tracing::warn!(id = short(&raw.id), why, "a mandelbox's row cannot be understood; ignored");
            }
        }
        Ok(state)
    }
}

pub(crate) fn unknown_status(text: &str) -> PluginError {
    let message =
        format!("the instance's row has the status {:?}, which this version does not know", short(text));
    PluginError::new(ErrorKind::Invalid, message)
}

/// As much of a text as belongs into a message.
pub fn short(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn raw() -> Raw {
        Raw {
            id: "182cas8923jnckku023ind3".into(),
            user: "localdev_user_id".into(),
            session: "4389789vnuf2f32f3f".into(),
            app: None,
            status: "ALLOCATED".into(),
            created_ms: 1_634_241_280,
        }
    }

    #[test]
    fn one_row_of_nonsense_hides_no_other() {
        let broken = [
            Raw { id: "../../etc".into(), ..raw() },
            Raw { user: "\u{7}".into(), ..raw() },
            Raw { session: String::new(), ..raw() },
            Raw { app: Some("../x".into()), ..raw() },
            Raw { status: "WAITING".into(), ..raw() },
        ];
        let count = broken.len();
        let mandelboxes = broken.into_iter().chain([raw()]).collect();
        let read = Read { instance: Some("ACTIVE".into()), mandelboxes };
        let (state, nonsense) = read.understand(None).unwrap();
        assert_eq!((state.mandelboxes.len(), nonsense.len()), (1, count));
        assert_eq!(state.mandelboxes[0].status, MandelboxStatus::Allocated);
    }

    #[test]
    fn an_unknown_status_of_the_host_is_neither_a_missing_row_nor_another_status() {
        let read = Read { instance: Some("RETIRED".into()), ..Read::default() };
        assert_eq!(read.understand(None).unwrap_err().kind(), ErrorKind::Invalid);
        let (state, _) = read.understand(Some(InstanceStatus::Active)).unwrap();
        assert_eq!(state.instance, Some(InstanceStatus::Active));
        assert_eq!(
            Read::default().understand(Some(InstanceStatus::Active)).unwrap().0,
            DesiredState::default()
        );
    }

    proptest! {
        #[test]
        fn any_text_is_understood_as_written_or_refused(
            id in any::<String>(), user in any::<String>(), session in any::<String>(),
            app in proptest::option::of(any::<String>()), status in any::<String>(), created_ms in any::<i64>(),
        ) {
            let raw = Raw { id, user, session, app, status, created_ms };
            match raw.understand() {
                Ok(row) => {
                    prop_assert_eq!(row.id.as_str(), &raw.id);
                    prop_assert_eq!(row.user.as_str(), &raw.user);
                    prop_assert_eq!(row.status.as_str(), &raw.status);
                }
                Err(why) => prop_assert!(why.len() < 1000, "{}", why),
            }
        }
    }
}
