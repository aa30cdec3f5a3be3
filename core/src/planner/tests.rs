use proptest::prelude::*;

use super::*;
use crate::runtime::Exit;

fn id(n: u8) -> MandelboxId {
    format!("m{n}").parse().unwrap()
}

fn row(n: u8, status: MandelboxStatus) -> MandelboxRow {
    let (user, session) = ("u".parse().unwrap(), "s".parse().unwrap());
    MandelboxRow { id: id(n), user, session, app: None, status, created_ms: 0 }
}

fn active(mandelboxes: Vec<MandelboxRow>) -> DesiredState {
    DesiredState { instance: Some(InstanceStatus::Active), mandelboxes }
}

fn owning(entries: &[(u8, bool)]) -> Observed {
    let owned = entries
        .iter()
        .map(|&(n, ending)| (id(n), Owned { row: row(n, MandelboxStatus::Allocated), ending }))
        .collect();
    Observed { owned, ..Observed::default() }
}

fn container(n: u8, engine_id: &str, state: ContainerState) -> Container {
    let labels = [(LABEL_MANDELBOX.to_owned(), id(n).to_string())].into();
    Container { id: ContainerId(engine_id.into()), name: engine_id.into(), labels, state, pid: None }
}

#[test]
fn every_allocated_row_is_spun_up_at_once() {
    let rows = (0..5).map(|n| row(n, MandelboxStatus::Allocated)).collect();
    assert_eq!(plan(&active(rows), &Observed::default()).len(), 5);
}

#[test]
fn what_is_owned_is_not_planned_again() {
    for status in [MandelboxStatus::Allocated, MandelboxStatus::Connecting, MandelboxStatus::Running] {
        assert_eq!(plan(&active(vec![row(1, status)]), &owning(&[(1, false)])), []);
    }
}

#[test]
fn a_row_that_vanishes_or_dies_ends_its_mandelbox_once() {
    assert_eq!(plan(&active(vec![]), &owning(&[(1, false)])), [Step::End(id(1), EndReason::RowDeleted)]);
    assert_eq!(plan(&active(vec![]), &owning(&[(1, true)])), []);
    let dying = active(vec![row(1, MandelboxStatus::Dying)]);
    assert_eq!(plan(&dying, &owning(&[(1, false)])), [Step::End(id(1), EndReason::RowDying)]);
    assert_eq!(plan(&dying, &owning(&[(1, true)])), []);
}

#[test]
fn an_id_given_away_anew_ends_the_mandelbox_of_before() {
    let anew = MandelboxRow { created_ms: 1, ..row(1, MandelboxStatus::Allocated) };
    let desired = active(vec![anew]);
    assert_eq!(plan(&desired, &owning(&[(1, false)])), [Step::End(id(1), EndReason::RowDeleted)]);
    assert_eq!(plan(&desired, &owning(&[(1, true)])), []);
}

#[test]
fn rows_without_a_mandelbox_are_forgotten() {
    for status in [MandelboxStatus::Connecting, MandelboxStatus::Running, MandelboxStatus::Dying] {
        assert_eq!(plan(&active(vec![row(1, status)]), &Observed::default()), [Step::Forget(row(1, status))]);
    }
}

#[test]
fn a_row_is_spun_up_once_and_a_new_one_of_its_id_again() {
    let old = row(1, MandelboxStatus::Allocated);
    let lived = MandelboxRow { status: MandelboxStatus::Dying, ..old.clone() };
    let observed = Observed { spent: [(id(1), lived)].into(), ..Observed::default() };
    for &status in MandelboxStatus::ALL {
        assert_eq!(plan(&active(vec![MandelboxRow { status, ..old.clone() }]), &observed), []);
    }
    let anew = MandelboxRow { created_ms: old.created_ms + 1, ..old };
    assert_eq!(plan(&active(vec![anew.clone()]), &observed), [Step::SpinUp(anew)]);
}

#[test]
fn a_row_that_moved_on_after_its_claim_was_lost_is_forgotten() {
    let lost = row(1, MandelboxStatus::Allocated);
    let observed = Observed { spent: [(id(1), lost.clone())].into(), ..Observed::default() };
    assert_eq!(plan(&active(vec![lost]), &observed), []);
    let connecting = row(1, MandelboxStatus::Connecting);
    assert_eq!(plan(&active(vec![connecting.clone()]), &observed), [Step::Forget(connecting)]);
}

#[test]
fn draining_refuses_new_rows_and_keeps_running_ones() {
    let mandelboxes = vec![row(1, MandelboxStatus::Allocated), row(2, MandelboxStatus::Running)];
    let desired = DesiredState { instance: Some(InstanceStatus::Draining), mandelboxes };
    let steps = plan(&desired, &owning(&[(2, false)]));
    assert_eq!(
        steps,
        [Step::Drain(DrainCause::ControlPlane), Step::Refuse(row(1, MandelboxStatus::Allocated))]
    );
}

#[test]
fn a_host_without_a_row_drains() {
    let desired = DesiredState { instance: None, mandelboxes: vec![] };
    assert_eq!(plan(&desired, &Observed::default()), [Step::Drain(DrainCause::Unregistered)]);
}

#[test]
fn a_list_tells_deaths_and_orphans() {
    let exit = Exit { code: Some(3), oom: false };
    let listed = [
        container(1, "c1", ContainerState::Running),
        container(2, "c2", ContainerState::Exited(exit)),
        container(9, "c9", ContainerState::Running),
    ];
    let expected = (1..=3).map(|n| (id(n), ContainerId(format!("c{n}")))).collect();
    let steps = compare(&listed, &expected, &owning(&[(1, false), (2, false), (3, false)]));
    assert_eq!(
        steps,
        [
            Step::End(id(2), EndReason::Exited(exit)),
            Step::End(id(3), EndReason::ContainerLost),
            Step::RemoveOrphan(ContainerId("c9".into())),
        ]
    );
}

#[test]
fn a_container_started_while_the_list_was_made_is_not_missed() {
    assert_eq!(compare(&[], &BTreeMap::new(), &owning(&[(1, false)])), []);
}

fn desired() -> impl Strategy<Value = DesiredState> {
    let status = prop::sample::select(MandelboxStatus::ALL);
    let rows = prop::collection::btree_map(0u8..8, status, 0..8);
    let instance = prop::option::of(prop::sample::select(InstanceStatus::ALL));
    (instance, rows).prop_map(|(instance, rows)| DesiredState {
        instance,
        mandelboxes: rows.into_iter().map(|(n, status)| row(n, status)).collect(),
    })
}

fn observed() -> impl Strategy<Value = Observed> {
    let owned = prop::collection::btree_map(0u8..8, any::<bool>(), 0..8);
    let spent = prop::collection::btree_map(0u8..8, prop::sample::select(MandelboxStatus::ALL), 0..3);
    (any::<bool>(), owned, spent).prop_map(|(draining, owned, spent)| Observed {
        draining,
        owned: owned
            .into_iter()
            .map(|(n, ending)| (id(n), Owned { row: row(n, MandelboxStatus::Allocated), ending }))
            .collect(),
        spent: spent.into_iter().map(|(n, status)| (id(n), row(n, status))).collect(),
    })
}

/// What the host's state is once the steps have been begun.
fn begun(mut observed: Observed, steps: &[Step]) -> Observed {
    for step in steps {
        match step {
            Step::SpinUp(row) => {
                drop(observed.owned.insert(row.id.clone(), Owned { row: row.clone(), ending: false }))
            }
            Step::Refuse(row) | Step::Forget(row) => drop(observed.spent.insert(row.id.clone(), row.clone())),
            Step::End(id, _) => observed.owned.get_mut(id).unwrap().ending = true,
            Step::Drain(_) => observed.draining = true,
            Step::RemoveOrphan(_) => {}
        }
    }
    observed
}

proptest! {
    /// Planning again after the steps have begun plans nothing: an event is only a wake-up.
    #[test]
    fn planning_is_idempotent(desired in desired(), observed in observed()) {
        let steps = plan(&desired, &observed);
        prop_assert_eq!(plan(&desired, &begun(observed, &steps)), []);
    }

    /// A draining host begins nothing, and no step concerns a mandelbox twice.
    #[test]
    fn steps_are_sound(desired in desired(), observed in observed()) {
        let steps = plan(&desired, &observed);
        let draining = observed.draining || steps.iter().any(|step| matches!(step, Step::Drain(_)));
        let mut concerned = BTreeSet::new();
        for step in &steps {
            if let Step::SpinUp(row) = step {
                prop_assert!(!draining);
                prop_assert!(!observed.owned.contains_key(&row.id));
            }
            let id = match step {
                Step::SpinUp(row) | Step::Refuse(row) | Step::Forget(row) => &row.id,
                Step::End(id, _) => id,
                Step::Drain(_) | Step::RemoveOrphan(_) => continue,
            };
            prop_assert!(concerned.insert(id.clone()), "{} is planned twice", id);
        }
    }
}
