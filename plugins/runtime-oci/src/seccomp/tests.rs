use std::collections::BTreeMap;

use oci_spec::runtime::{Arch, LinuxSeccompAction, LinuxSyscall};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn capabilities(names: &[&str]) -> BTreeSet<Capability> {
    names.iter().map(|name| name.parse().unwrap()).collect()
}

fn machine(architecture: &str) -> Machine {
    Machine::new(architecture, (6, 1))
}

fn default(names: &[&str]) -> LinuxSeccomp {
    translate(&Profile::parse(DEFAULT).unwrap(), &capabilities(names), &machine("x86_64")).unwrap()
}

fn rules<'a>(filter: &'a LinuxSeccomp, name: &str) -> Vec<&'a LinuxSyscall> {
    let all = filter.syscalls().iter().flatten();
    all.filter(|rule| rule.names().iter().any(|known| known == name)).collect()
}

/// What happens to a call whatever its arguments are: the action and the errno.
fn always(filter: &LinuxSeccomp, name: &str) -> (LinuxSeccompAction, Option<u32>) {
    match rules(filter, name).as_slice() {
        [] => (filter.default_action(), filter.default_errno_ret()),
        [rule] if rule.args().is_none() => (rule.action(), rule.errno_ret()),
        others => panic!("{name} depends: {others:?}"),
    }
}

const ALLOW: (LinuxSeccompAction, Option<u32>) = (LinuxSeccompAction::ScmpActAllow, None);
const EPERM: (LinuxSeccompAction, Option<u32>) = (LinuxSeccompAction::ScmpActErrno, Some(1));
const ENOSYS: (LinuxSeccompAction, Option<u32>) = (LinuxSeccompAction::ScmpActErrno, Some(38));

#[test]
fn without_capabilities_only_harmless_calls_are_allowed() {
    let filter = default(&[]);
    for name in [
        "read",
        "execve",
        "openat2",
        "ptrace",
        "seccomp",
        "arch_prctl",
        "futex_wait",
        "io_pgetevents",
        "vmsplice",
    ] {
        assert_eq!(always(&filter, name), ALLOW, "{name}");
    }
    for name in [
        "mount",
        "unshare",
        "setns",
        "bpf",
        "keyctl",
        "add_key",
        "reboot",
        "init_module",
        "kexec_load",
        "syslog",
        "open_by_handle_at",
        "io_uring_setup",
        "userfaultfd",
        "pivot_root",
        "perf_event_open",
        "mbind",
        "chroot",
    ] {
        assert_eq!(always(&filter, name), EPERM, "{name}");
    }
    for name in ["clone3", "a_call_of_the_future", "s390_runtime_instr"] {
        assert_eq!(always(&filter, name), ENOSYS, "{name}");
    }
}

#[test]
fn a_capability_opens_the_calls_that_need_it() {
    for (capability, name) in [
        ("SYS_ADMIN", "mount"),
        ("SYS_ADMIN", "clone3"),
        ("SYS_ADMIN", "clone"),
        ("SYS_ADMIN", "bpf"),
        ("BPF", "bpf"),
        ("SYSLOG", "syslog"),
        ("SYS_NICE", "mbind"),
        ("SYS_CHROOT", "chroot"),
        ("PERFMON", "perf_event_open"),
    ] {
        assert_eq!(always(&default(&[capability]), name), ALLOW, "{capability}: {name}");
    }
    assert_eq!(always(&default(&["SYS_ADMIN", "BPF"]), "bpf"), ALLOW);
    assert_eq!(always(&default(&["SYS_CHROOT"]), "mount"), EPERM);
}

/// Emulates the kernel's choice among rules with arguments: the first that matches, for ours never contradict.
fn decide(filter: &LinuxSeccomp, name: &str, arguments: [u64; 3]) -> Option<u32> {
    use oci_spec::runtime::LinuxSeccompOperator::{ScmpCmpEq, ScmpCmpMaskedEq, ScmpCmpNe};
    let matches = |rule: &&LinuxSyscall| {
        rule.args().iter().flatten().all(|arg| {
            let value = arguments[arg.index()];
            match arg.op() {
                ScmpCmpEq => value == arg.value(),
                ScmpCmpNe => value != arg.value(),
                ScmpCmpMaskedEq => value & arg.value() == arg.value_two().unwrap(),
                other => panic!("{other} is not used"),
            }
        })
    };
    let actions: BTreeMap<_, _> = rules(filter, name)
        .into_iter()
        .filter(matches)
        .map(|rule| (rule.action().to_string(), rule.errno_ret()))
        .collect();
    assert!(actions.len() < 2, "{name}{arguments:?} has contradicting rules {actions:?}");
    actions.into_values().next().unwrap_or(filter.default_errno_ret())
}

#[test]
fn arguments_decide_about_namespaces_sockets_and_personalities() {
    let filter = default(&[]);
    // What fork and pthread_create ask for.
    for flags in [0x0120_0011, 0x003d_0f00] {
        assert_eq!(decide(&filter, "clone", [flags, 0, 0]), None);
    }
    for namespace in [0x2_0000, 0x0200_0000, 0x0400_0000, 0x0800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000]
    {
        assert_eq!(decide(&filter, "clone", [namespace | 0x11, 0, 0]), Some(1), "{namespace:x}");
    }
    for family in 0..46 {
        let expected = matches!(family, 38 | 40).then_some(1);
        // The kernel looks at 32 bits of it.
        for above in [0, 1 << 32, 0xffff_ffff << 32] {
            assert_eq!(decide(&filter, "socket", [family | above, 1, 0]), expected, "{family} {above:x}");
        }
    }
    assert_eq!(decide(&filter, "socket", [46, 1, 0]), Some(38));
    for (personality, outcome) in [(0, None), (8, None), (0xffff_ffff, None), (0x4_0000, Some(38))] {
        assert_eq!(decide(&filter, "personality", [personality, 0, 0]), outcome, "{personality:x}");
    }
}

#[test]
fn the_flags_of_clone_are_elsewhere_on_s390() {
    let profile = Profile::parse(DEFAULT).unwrap();
    let filter = translate(&profile, &BTreeSet::new(), &machine("s390x")).unwrap();
    assert!(rules(&filter, "clone").iter().all(|rule| rule.args().as_ref().unwrap()[0].index() == 1));
    assert_eq!(always(&filter, "s390_runtime_instr"), ALLOW);
    assert_eq!(always(&filter, "arch_prctl"), ENOSYS);
}

#[test]
fn programs_of_related_architectures_are_filtered_too() {
    use Arch::{ScmpArchAarch64, ScmpArchArm, ScmpArchX86, ScmpArchX86_64};
    // Not x32: nobody uses it, and a third of the time to install a filter would be its.
    assert_eq!(default(&[]).architectures(), &Some(vec![ScmpArchX86_64, ScmpArchX86]));
    let profile = Profile::parse(DEFAULT).unwrap();
    let arm = translate(&profile, &BTreeSet::new(), &machine("aarch64")).unwrap();
    assert_eq!(arm.architectures(), &Some(vec![ScmpArchAarch64, ScmpArchArm]));
    // None means the machine's own.
    let other = translate(&profile, &BTreeSet::new(), &machine("loongarch64")).unwrap();
    assert_eq!(other.architectures(), &None);
}

#[test]
fn no_call_is_named_by_two_rules_that_both_hold() {
    for names in [&[][..], &["SYS_ADMIN"], &["SYS_ADMIN", "BPF", "PERFMON", "SYSLOG", "SYS_PTRACE"]] {
        let filter = default(names);
        let mut seen = BTreeSet::new();
        for rule in filter.syscalls().iter().flatten().filter(|rule| rule.args().is_none()) {
            for name in rule.names() {
                assert!(seen.insert(name), "{name} is named twice with {names:?}");
            }
        }
    }
}

fn parsed(profile: &Value) -> Result<LinuxSeccomp, PluginError> {
    translate(&Profile::parse(&profile.to_string())?, &capabilities(&["KILL"]), &machine("x86_64"))
}

#[test]
fn every_member_of_the_format_is_translated() {
    let profile = json!({
        "defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 5, "architectures": ["SCMP_ARCH_X86"],
        "flags": ["SECCOMP_FILTER_FLAG_LOG"], "listenerPath": "", "archMap": null,
        "syscalls": [
            { "name": "reboot", "action": "SCMP_ACT_KILL_PROCESS", "args": null, "comment": "x" },
            { "names": ["a", "b"], "action": "SCMP_ACT_ERRNO", "errnoRet": 7,
              "args": [{ "index": 2, "value": 1, "valueTwo": 9, "op": "SCMP_CMP_GE" }] },
            { "names": [], "action": "SCMP_ACT_LOG" },
            { "names": ["c"], "action": "SCMP_ACT_LOG", "includes": { "caps": ["CAP_KILL"], "minKernel": "6.1" } },
            { "names": ["d"], "action": "SCMP_ACT_LOG", "includes": { "caps": ["CAP_KILL", "CAP_CHOWN"] } },
            { "names": ["e"], "action": "SCMP_ACT_LOG", "excludes": { "arches": ["amd64"] } },
            { "names": ["f"], "action": "SCMP_ACT_LOG", "includes": { "minKernel": "6.2" } },
        ],
    });
    let expected = json!({
        "defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 5, "architectures": ["SCMP_ARCH_X86"],
        "flags": ["SECCOMP_FILTER_FLAG_LOG"],
        "syscalls": [
            { "names": ["reboot"], "action": "SCMP_ACT_KILL_PROCESS" },
            { "names": ["a", "b"], "action": "SCMP_ACT_ERRNO", "errnoRet": 7,
              "args": [{ "index": 2, "value": 1, "op": "SCMP_CMP_GE" }] },
            { "names": ["c"], "action": "SCMP_ACT_LOG" },
        ],
    });
    assert_eq!(serde_json::to_value(parsed(&profile).unwrap()).unwrap(), expected);
}

#[test]
fn what_is_wrong_is_named_with_its_place() {
    let rule = |rule: Value| json!({ "defaultAction": "SCMP_ACT_ERRNO", "syscalls": [rule] });
    let argument = |index: u32, op: &str| {
        rule(
            json!({ "names": ["a"], "action": "SCMP_ACT_ALLOW", "args": [{ "index": index, "value": 0, "op": op }] }),
        )
    };
    for (profile, place) in [
        (json!({ "defaultAction": "SCMP_ACT_MAYBE" }), "defaultAction"),
        (json!({ "syscalls": [] }), "defaultAction"),
        (rule(json!({ "names": ["a"], "action": "MAYBE" })), "syscalls[0].action"),
        (rule(json!({ "names": ["a"], "name": "b", "action": "SCMP_ACT_ALLOW" })), "syscalls[0]"),
        (rule(json!({ "names": ["a"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5000 })), "syscalls[0]"),
        (rule(json!({ "names": [""], "action": "SCMP_ACT_ERRNO" })), "syscalls[0]"),
        (
            rule(json!({ "names": ["a"], "action": "SCMP_ACT_LOG", "includes": { "minKernel": "new" } })),
            "minKernel",
        ),
        (argument(6, "SCMP_CMP_EQ"), "syscalls[0]"),
        (argument(0, "SCMP_CMP_ISH"), "syscalls[0].args[0].op"),
        (json!({ "defaultAction": "SCMP_ACT_LOG", "architectures": ["VAX"] }), "VAX"),
    ] {
        let error = parsed(&profile).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{profile}");
        assert!(error.to_string().contains(place), "{place} is not in {error}");
    }
    let notify = rule(json!({ "names": ["a"], "action": "SCMP_ACT_NOTIFY" }));
    assert_eq!(parsed(&notify).unwrap_err().kind(), ErrorKind::Unsupported);
    assert_eq!(Profile::parse("{} {}").unwrap_err().kind(), ErrorKind::Invalid);
}

#[test]
fn unconfined_is_no_filter() {
    assert_eq!(filter(&Seccomp::Unconfined, &BTreeSet::new()).unwrap(), None);
    assert!(filter(&Seccomp::Default, &BTreeSet::new()).unwrap().is_some());
    assert!(filter(&Seccomp::Profile("{".to_owned()), &BTreeSet::new()).is_err());
}

/// Newer than that of Debian 12.
const NEWER: [&str; 12] = [
    "cachestat",
    "fchmodat2",
    "futex_requeue",
    "futex_wait",
    "futex_waitv",
    "futex_wake",
    "getxattrat",
    "listxattrat",
    "map_shadow_stack",
    "mseal",
    "removexattrat",
    "setxattrat",
];

/// Allowed by Docker alone.
const DOCKERS: [&str; 3] = ["io_pgetevents", "io_pgetevents_time64", "vmsplice"];

#[test]
fn nothing_is_allowed_that_podmans_profile_denies() {
    let theirs = "/usr/share/containers/seccomp.json";
    let Ok(theirs) = std::fs::read_to_string(theirs) else {
        println!("skipped: {theirs} is missing; install golang-github-containers-common");
        return;
    };
    let theirs = Profile::parse(&theirs).unwrap();
    for architecture in ["x86_64", "aarch64"] {
        let theirs = translate(&theirs, &BTreeSet::new(), &machine(architecture)).unwrap();
        let ours = Profile::parse(DEFAULT).unwrap();
        let ours = translate(&ours, &BTreeSet::new(), &machine(architecture)).unwrap();
        let mut compared = 0;
        for rule in ours.syscalls().iter().flatten() {
            if rule.action() != LinuxSeccompAction::ScmpActAllow || rule.args().is_some() {
                continue;
            }
            let known = |name: &&String| !NEWER.contains(&name.as_str()) && !DOCKERS.contains(&name.as_str());
            for name in rule.names().iter().filter(known) {
                assert_eq!(always(&theirs, name), ALLOW, "{name}");
                compared += 1;
            }
        }
        assert!(compared > 300, "only {compared} calls were compared");
    }
}

proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(text in "\\PC{0,200}") {
        prop_assert!(Profile::parse(&text).is_err() || text.contains("defaultAction"));
    }

    /// Rules that are nearly right, so that the translation is reached.
    #[test]
    fn no_profile_makes_the_translation_panic(
        rules in prop::collection::vec(
            (
                prop::collection::vec("[a-z]{0,4}", 0..3),
                prop::option::of("[a-z]{0,3}"),
                prop::sample::select(vec!["SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_NOTIFY"]),
                prop::option::of(0u32..6000),
                (0usize..8, any::<u64>(), any::<u64>()),
                prop::sample::select(vec!["CAP_KILL", "KILL", "CAP_CHOWN", "nonsense", ""]),
                "[0-9.a]{0,5}",
            ),
            0..5,
        ),
        architectures in prop::collection::vec("SCMP_ARCH_X86(_64)?|[A-Z]{0,4}", 0..3),
    ) {
        let rules: Vec<_> = rules.into_iter().map(|(names, name, action, errno, (index, value, two), cap, kernel)| {
            json!({
                "names": names, "name": name, "action": action, "errnoRet": errno,
                "args": [{ "index": index, "value": value, "valueTwo": two, "op": "SCMP_CMP_MASKED_EQ" }],
                "includes": { "caps": [cap] }, "excludes": { "caps": [cap], "minKernel": kernel },
            })
        }).collect();
        let profile = json!({ "defaultAction": "SCMP_ACT_ERRNO", "architectures": architectures, "syscalls": rules });
        if let Ok(filter) = parsed(&profile) {
            prop_assert!(filter.syscalls().iter().flatten().all(|rule| !rule.names().is_empty()));
        }
    }
}
