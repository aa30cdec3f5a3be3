//! Who the first process runs as: an image says it by names, and only its root file system knows their numbers.
//!
//! The rules are those of Docker's and runc's `user` package: `user`, `user:group`, `uid`, `uid:gid`, or a mixture;
//! a number needs no entry, a name does; without a group come the user's own and all that list the user.

use std::path::PathBuf;

use host_core::PluginError;
use oci_spec::runtime::Spec;

use super::{invalid, process};

/// Numbers beyond are negative to some programs.
const LARGEST_ID: u32 = i32::MAX as u32;

/// A user as the kernel knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ResolvedUser {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Without `gid`, in the order of the group file.
    pub(crate) additional_gids: Vec<u32>,
    pub(crate) home: PathBuf,
}

/// A line of `passwd`.
struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

/// A line of `group`.
struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

/// Looks up an image's `USER` in the texts of its `/etc/passwd` and `/etc/group`; empty where it has no such file.
///
/// # Errors
/// `Invalid` when it names somebody who is not there.
pub(crate) fn resolve_user(user: &str, passwd: &str, group: &str) -> Result<ResolvedUser, PluginError> {
    let (who, of) = user.split_once(':').unwrap_or((user, ""));
    let who = if who.is_empty() { "0" } else { who };
    let account = passwd.lines().filter_map(account).find(|account| is(account.name, account.uid, who));
    let uid = match &account {
        Some(account) => account.uid,
        None => id(who).ok_or_else(|| missing("user", who, "/etc/passwd"))?,
    };
    let (gid, additional_gids) = if of.is_empty() {
        let gid = account.as_ref().map_or(0, |account| account.gid);
        (gid, account.as_ref().map_or_else(Vec::new, |account| memberships(account.name, gid, group)))
    } else {
        let found = group.lines().filter_map(self::group).find(|group| is(group.name, group.gid, of));
        let gid = found.map(|group| group.gid).or_else(|| id(of));
        (gid.ok_or_else(|| missing("group", of, "/etc/group"))?, Vec::new())
    };
    let home =
        account.map(|account| account.home).filter(|home| home.starts_with('/') && !home.contains('\0'));
    Ok(ResolvedUser { uid, gid, additional_gids, home: home.unwrap_or("/").into() })
}

/// Has the first process run as `user`. What CDI added to its groups stays.
///
/// # Errors
/// None that a specification of [`super::spec`] can cause.
pub(crate) fn apply_user(spec: &mut Spec, user: &ResolvedUser) -> Result<(), PluginError> {
    let Some(process) = spec.process_mut() else {
        return Ok(());
    };
    let identity = process.user_mut();
    let added = identity.additional_gids().iter().flatten().copied().filter(|gid| *gid != 0);
    // Its own group is said again: without any, libcontainer would leave the supervisor's in force.
    let mut gids = vec![user.gid];
    for gid in user.additional_gids.iter().copied().chain(added) {
        if !gids.contains(&gid) {
            gids.push(gid);
        }
    }
    identity.set_uid(user.uid).set_gid(user.gid).set_additional_gids(Some(gids));
    if user.uid != 0 {
        drop_capabilities(process);
    }
    let variables = process.env_mut().get_or_insert_default();
    if !variables.iter().any(|variable| variable.starts_with("HOME=")) {
        process::set(variables, "HOME", &user.home.to_string_lossy())?;
    }
    Ok(())
}

/// As in Docker, somebody else than root only gains what is given by a program's own bits.
fn drop_capabilities(process: &mut oci_spec::runtime::Process) {
    let Some(mut capabilities) = process.capabilities().clone() else {
        return;
    };
    capabilities.set_effective(Some([].into())).set_permitted(Some([].into()));
    process.set_capabilities(Some(capabilities));
}

fn missing(what: &str, name: &str, file: &str) -> PluginError {
    invalid(format!("the image wants to run as {what} {name:?}, which is not in its {file}"))
}

/// A name may look like a number; the first line that is either is meant.
fn is(name: &str, number: u32, wanted: &str) -> bool {
    name == wanted || id(wanted) == Some(number)
}

/// Only digits: `+1` is no number here.
fn id(text: &str) -> Option<u32> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|id| is_number && *id <= LARGEST_ID)
}

/// Lines that are broken are nobody's, rather than root's.
fn account(line: &str) -> Option<Account<'_>> {
    let mut fields = line.trim().split(':');
    let (name, _password, uid, gid) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    let (_comment, home) = (fields.next(), fields.next().unwrap_or_default());
    (!name.is_empty()).then_some(())?;
    Some(Account { name, uid: id(uid)?, gid: id(gid)?, home })
}

fn group(line: &str) -> Option<Group<'_>> {
    let mut fields = line.trim().split(':');
    let (name, _password, gid) = (fields.next()?, fields.next()?, fields.next()?);
    (!name.is_empty()).then_some(())?;
    Some(Group { name, gid: id(gid)?, members: fields.next().unwrap_or_default() })
}

fn memberships(user: &str, gid: u32, groups: &str) -> Vec<u32> {
    let mut gids = Vec::new();
    for group in groups.lines().filter_map(group) {
        let is_member = group.members.split(',').any(|member| member.trim() == user);
        if is_member && group.gid != gid && !gids.contains(&group.gid) {
            gids.push(group.gid);
        }
    }
    gids
}

#[cfg(test)]
mod tests {
    use host_core::ErrorKind;
    use oci_spec::runtime::SpecBuilder;
    use proptest::prelude::*;

    use super::*;

    const PASSWD: &str = "\
root:x:0:0:root:/root:/bin/sh
# a comment
broken:x:zero:0::/:
www:x:33:34:www:/var/www:/bin/false
33:x:1000:1001::/home/odd:
relative:x:7:7::home:
";
    const GROUP: &str = "\
root:x:0:
www:x:34:
video:x:44:www,other
render:x:105:other, www
video:x:44:www
";

    fn resolve(user: &str) -> Result<ResolvedUser, PluginError> {
        resolve_user(user, PASSWD, GROUP)
    }

    fn user(uid: u32, gid: u32, additional_gids: &[u32], home: &str) -> ResolvedUser {
        ResolvedUser { uid, gid, additional_gids: additional_gids.to_vec(), home: home.into() }
    }

    #[test]
    fn users_are_found_as_docker_finds_them() {
        for (text, expected) in [
            ("", user(0, 0, &[], "/root")),
            ("root", user(0, 0, &[], "/root")),
            ("www", user(33, 34, &[44, 105], "/var/www")),
            // A given group is the only one.
            ("www:video", user(33, 44, &[], "/var/www")),
            ("www:5", user(33, 5, &[], "/var/www")),
            (":video", user(0, 44, &[], "/root")),
            // The first line that is called or numbered 33.
            ("33", user(33, 34, &[44, 105], "/var/www")),
            ("1234", user(1234, 0, &[], "/")),
            ("1234:99", user(1234, 99, &[], "/")),
            ("relative", user(7, 7, &[], "/")),
        ] {
            assert_eq!(resolve(text).unwrap(), expected, "{text:?}");
        }
        assert_eq!(resolve_user("", "", "").unwrap(), user(0, 0, &[], "/"));
    }

    #[test]
    fn nobody_becomes_root_by_mistake() {
        for text in
            ["broken", "nobody", "www:nogroup", "-1", "+0", "4294967296", "2147483648", "0x0", " 0", "a:b:c"]
        {
            let error = resolve(text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{text:?}");
        }
    }

    #[test]
    fn it_is_applied_with_its_groups_and_without_roots_powers() {
        let mut spec = SpecBuilder::default().build().unwrap();
        spec.process_mut().as_mut().unwrap().user_mut().set_additional_gids(Some(vec![0, 44, 12]));
        apply_user(&mut spec, &user(33, 34, &[44, 105], "/var/www")).unwrap();
        let process = serde_json::to_value(spec.process()).unwrap();
        assert_eq!(process["user"]["uid"], 33);
        assert_eq!(process["user"]["gid"], 34);
        assert_eq!(process["user"]["additionalGids"], serde_json::json!([34, 44, 105, 12]));
        assert_eq!(process["capabilities"]["effective"], serde_json::json!([]));
        assert_eq!(process["capabilities"]["permitted"], serde_json::json!([]));
        assert_eq!(process["capabilities"]["bounding"].as_array().unwrap().len(), 3);
        assert!(process["env"].as_array().unwrap().contains(&"HOME=/var/www".into()));
    }

    #[test]
    fn root_keeps_its_capabilities_and_a_given_home_stays() {
        let mut spec = SpecBuilder::default().build().unwrap();
        *spec.process_mut().as_mut().unwrap().env_mut() = Some(vec!["HOME=/elsewhere".to_owned()]);
        apply_user(&mut spec, &user(0, 0, &[], "/root")).unwrap();
        let process = serde_json::to_value(spec.process()).unwrap();
        assert_eq!(process["capabilities"]["effective"].as_array().unwrap().len(), 3);
        assert_eq!(process["env"], serde_json::json!(["HOME=/elsewhere"]));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic_or_invent_somebody(
            user in "\\PC{0,12}|[a-c0-3:]{0,6}",
            passwd in "\\PC{0,80}|([a-c]{1,2}:x:[0-3]{1,2}:[0-3]{1,2}::/[a-c]?:\n){0,4}",
            group in "\\PC{0,80}|([a-c]{1,2}:x:[0-3]{1,2}:[a-c]{0,2},[a-c]{0,2}\n){0,4}",
        ) {
            let Ok(found) = resolve_user(&user, &passwd, &group) else { return Ok(()) };
            prop_assert!(found.home.is_absolute());
            prop_assert!(!found.additional_gids.contains(&found.gid));
            let (who, of) = user.split_once(':').unwrap_or((&user, ""));
            // Whoever is asked for is there by name or is a number.
            let known = |file: &str, name: &str| file.lines().any(|line| line.trim().split(':').next() == Some(name));
            prop_assert!(who.is_empty() || known(&passwd, who) || id(who) == Some(found.uid));
            prop_assert!(of.is_empty() || known(&group, of) || id(of) == Some(found.gid));
            prop_assert!(of.is_empty() || found.additional_gids.is_empty());
        }
    }
}
