//! Images: which are there, and how more come.

use std::fs;

use host_core::{
    ErrorKind, ImageRef,
    runtime::{Feature, Selector},
};

use super::{
    Fixture, archive,
    lifecycle::ensure_fails,
    needs,
    trial::{LABEL, Trial, lacking},
};
use crate::{
    ensure,
    report::{Unmet, Verdict},
};

const FOREIGN: &str = "conformance/foreign:built-elsewhere";

fn reference(text: &str) -> Result<ImageRef, Unmet> {
    text.parse().map_err(|error| Unmet::Broken(format!("{error}")))
}

pub(super) async fn a_present_image_is_described(fixture: &dyn Fixture) -> Verdict {
    let (runtime, name) = (fixture.runtime(), fixture.image());
    let Some(image) = runtime.image(&name).await? else {
        return Err(Unmet::Broken(format!("{name} is not there")));
    };
    ensure!(image.names.contains(&name), "{name} is not among its names {:?}", image.names);
    let all = runtime.images().await?;
    ensure!(all.contains(&image), "{image:?} is not among all images: {all:?}");
    Ok(())
}

pub(super) async fn an_absent_image_is_none_and_makes_no_container(fixture: &dyn Fixture) -> Verdict {
    let absent = reference("conformance/absent:never-built")?;
    let image = fixture.runtime().image(&absent).await?;
    ensure!(image.is_none(), "the absent image is {image:?}");
    let trial = Trial::of(fixture)?.with(|spec| spec.image = absent);
    let created = trial.runtime.create(&trial.spec).await;
    ensure_fails!(created, ErrorKind::NotFound, "creating without an image");
    let left = trial.runtime.list(&Selector::label(LABEL, trial.spec.name.as_str())).await?;
    ensure!(left.is_empty(), "it left {left:?}");
    Ok(())
}

pub(super) async fn a_bad_reference_is_refused(fixture: &dyn Fixture) -> Verdict {
    for bad in ["No/Upper:case", "a//b:c", "a/../../info", "a:b:c"] {
        let bad = reference(bad)?;
        let trial = Trial::of(fixture)?.with(|spec| spec.image = bad.clone());
        let created = trial.runtime.create(&trial.spec).await;
        ensure_fails!(created, ErrorKind::Invalid | ErrorKind::NotFound, "creating from {bad}");
        match trial.runtime.image(&bad).await {
            Ok(None) => {}
            Ok(Some(image)) => return Err(Unmet::Broken(format!("{bad} is {image:?}"))),
            looked_up => ensure_fails!(looked_up, ErrorKind::Invalid, "looking up {bad}"),
        }
    }
    Ok(())
}

pub(super) async fn an_image_gets_another_name(fixture: &dyn Fixture) -> Verdict {
    let (runtime, image) = (fixture.runtime(), fixture.image());
    let another = reference("conformance/another:name")?;
    runtime.tag_image(&image, &another).await?;
    let id = runtime.image(&image).await?.map(|image| image.id);
    let other = runtime.image(&another).await?.map(|image| image.id);
    ensure!(id.is_some() && id == other, "{image} is {id:?} and {another} is {other:?}");

    let absent = reference("conformance/absent:never-built")?;
    let tagged = runtime.tag_image(&absent, &another).await;
    ensure_fails!(tagged, ErrorKind::NotFound, "naming the absent");
    let trial = Trial::of(fixture)?.with(|spec| spec.image = another);
    trial.create().await.map(drop)
}

pub(super) async fn an_archive_is_loaded(fixture: &dyn Fixture) -> Verdict {
    needs(fixture, &[Feature::LoadImage])?;
    let archive = fixture.archive().ok_or_else(|| lacking("an archive"))?;
    let runtime = fixture.runtime();
    let names = runtime.load_image(&archive).await?;
    ensure!(!names.is_empty(), "it loaded nothing");
    for name in names {
        let image = runtime.image(&name).await?;
        ensure!(image.is_some(), "{name} was loaded and is not there");
    }
    Ok(())
}

/// At the latest when it is started, because only then some engines look.
pub(super) async fn an_image_for_another_processor_is_refused(fixture: &dyn Fixture) -> Verdict {
    needs(fixture, &[Feature::Isolation, Feature::LoadImage])?;
    let directory = tempfile::tempdir().map_err(lacking)?;
    let path = directory.path().join("foreign.tar");
    fs::write(&path, archive::foreign(FOREIGN).map_err(lacking)?).map_err(lacking)?;
    let loaded = fixture.runtime().load_image(&path).await;
    if loaded.is_err() {
        ensure_fails!(loaded, ErrorKind::Invalid, "loading an image for another processor");
        return Ok(());
    }
    let image = reference(FOREIGN)?;
    let trial = Trial::of(fixture)?.with(|spec| spec.image = image);
    let started = match trial.runtime.create(&trial.spec).await {
        Ok(_) => trial.runtime.start(&trial.name()).await,
        Err(error) => Err(error),
    };
    ensure_fails!(started, ErrorKind::Invalid, "starting a program for another processor");
    Ok(())
}

pub(super) async fn what_is_no_archive_is_refused(fixture: &dyn Fixture) -> Verdict {
    needs(fixture, &[Feature::LoadImage])?;
    let directory = tempfile::tempdir().map_err(lacking)?;
    let path = |name: &str| directory.path().join(name);
    fs::write(path("empty"), "").map_err(lacking)?;
    fs::write(path("noise"), "noise".repeat(10_000)).map_err(lacking)?;
    for bad in ["absent", "empty", "noise", "."] {
        let loaded = fixture.runtime().load_image(&path(bad)).await;
        ensure_fails!(loaded, ErrorKind::Invalid, "loading the file {bad:?}");
    }
    Ok(())
}

pub(super) async fn an_image_is_pulled(fixture: &dyn Fixture) -> Verdict {
    needs(fixture, &[Feature::Pull])?;
    let name = fixture.pullable().ok_or_else(|| lacking("a registry"))?;
    let runtime = fixture.runtime();
    let pulled = runtime.pull(&name, &|_| ()).await?;
    let image = runtime.image(&name).await?;
    ensure!(image.as_ref() == Some(&pulled), "pulled {pulled:?}, there is {image:?}");
    // What is here already is confirmed.
    let again = runtime.pull(&name, &|_| ()).await?;
    ensure!(again == pulled, "{pulled:?} became {again:?}");
    Trial::of(fixture)?.with(|spec| spec.image = name).run().await.map(drop)
}

pub(super) async fn a_pull_from_nowhere_fails(fixture: &dyn Fixture) -> Verdict {
    needs(fixture, &[Feature::Pull])?;
    // Nobody listens on port 1.
    let nowhere = reference("127.0.0.1:1/conformance/absent:never-built")?;
    let pulled = fixture.runtime().pull(&nowhere, &|_| ()).await;
    ensure_fails!(pulled, ErrorKind::Unavailable | ErrorKind::NotFound, "pulling from nowhere");
    Ok(())
}
