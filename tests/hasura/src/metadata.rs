//! Hasura's metadata: which tables it shows, and what each role may do. Read from the very files that a user applies.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::Value;

/// One tracked table.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Table {
    pub(crate) table: Name,
    #[serde(default)]
    select_permissions: Vec<Permission>,
    #[serde(default)]
    insert_permissions: Vec<Permission>,
    #[serde(default)]
    update_permissions: Vec<Permission>,
    #[serde(default)]
    delete_permissions: Vec<Permission>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Name {
    pub(crate) schema: String,
    pub(crate) name: String,
}

#[derive(Debug, Clone, Deserialize)]
struct Permission {
    role: String,
    permission: Rule,
}

/// What a permission allows.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct Rule {
    #[serde(default)]
    columns: Vec<String>,
    /// Which rows. In text values, `X-Hasura-…` stands for what the session says.
    #[serde(default)]
    pub(crate) filter: Value,
    /// What a row must be afterwards.
    #[serde(default)]
    check: Option<Value>,
}

/// What is done to a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Select,
    Insert,
    Update,
    Delete,
}

impl Table {
    /// What `role` may do; everything for `admin`, `None` where it may nothing.
    pub(crate) fn rule(&self, role: &str, action: Action) -> Option<Option<&Rule>> {
        if role == "admin" {
            return Some(None);
        }
        let permissions = match action {
            Action::Select => &self.select_permissions,
            Action::Insert => &self.insert_permissions,
            Action::Update => &self.update_permissions,
            Action::Delete => &self.delete_permissions,
        };
        permissions.iter().find(|given| given.role == role).map(|given| Some(&given.permission))
    }
}

impl Table {
    /// A check that differs from the filter would need a look at the row afterwards, which this server does not do.
    pub(crate) fn is_supported(&self) -> bool {
        let rule = |given: &Permission| {
            let Rule { check, filter, .. } = &given.permission;
            check.as_ref().is_none_or(|check| check.is_null() || check == filter)
        };
        self.update_permissions.iter().all(rule) && self.insert_permissions.is_empty()
    }
}

impl Rule {
    pub(crate) fn allows(&self, column: &str) -> bool {
        self.columns.iter().any(|allowed| allowed == column)
    }
}

/// Every table that the project directory `hasura` (with `metadata/` in it) tracks.
pub(crate) fn read(project: &Path) -> Result<Vec<Table>> {
    let directory = project.join("metadata/databases/default/tables");
    let text = |path: &Path| fs::read_to_string(path).with_context(|| path.display().to_string());
    let list: Vec<String> = serde_saphyr::from_str(&text(&directory.join("tables.yaml"))?)?;
    let file = |line: &String| {
        // "!include file.yaml"
        let name = line.trim_start_matches("!include").trim();
        let table = serde_saphyr::from_str(&text(&directory.join(name))?);
        table.with_context(|| name.to_owned())
    };
    list.iter().map(file).collect()
}
