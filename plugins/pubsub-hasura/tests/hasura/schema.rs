//! The schema that operations are checked against is the one that Hasura makes of the migrated tables.

use std::fs;

use anyhow::Result;

use crate::stage::Stage;

#[tokio::test]
async fn the_checked_in_schema_is_that_of_the_migrated_tables() -> Result<()> {
    let stage = Stage::new().await?;
    let ours = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/schema.graphql"))?;
    let missing = stage.hasura.missing(&ours)?;
    assert!(missing.is_empty(), "schema.graphql has what the tables do not give: {missing:#?}");
    Ok(())
}
