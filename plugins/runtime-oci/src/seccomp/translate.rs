//! From a profile to the filter of one container: conditions decided, architectures looked up.

use std::collections::BTreeSet;

use host_core::{ErrorKind, PluginError, runtime::Capability};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder, LinuxSeccompBuilder,
    LinuxSeccompOperator, LinuxSyscall, LinuxSyscallBuilder,
};

use super::{
    Machine, invalid,
    profile::{Argument, Condition, Profile, Rule},
};

/// The kernel's `MAX_ERRNO`.
const LARGEST_ERRNO: u32 = 4095;
/// A system call has six arguments.
const ARGUMENTS: usize = 6;

pub(super) fn translate(
    profile: &Profile,
    capabilities: &BTreeSet<Capability>,
    machine: &Machine,
) -> Result<LinuxSeccomp, PluginError> {
    check_action("defaultAction", profile.default_action, profile.default_errno_ret)?;
    let mut syscalls = Vec::new();
    for (index, rule) in profile.syscalls.iter().enumerate() {
        // Wrong rules are wrong on every machine.
        let rule = checked(index, rule)?;
        if applies(&profile.syscalls[index], capabilities, machine) {
            syscalls.extend(rule);
        }
    }
    let mut filter = LinuxSeccompBuilder::default()
        .default_action(profile.default_action)
        .syscalls(syscalls)
        .build()
        .map_err(incomplete)?;
    filter
        .set_default_errno_ret(profile.default_errno_ret)
        .set_architectures(architectures(profile, machine)?)
        .set_flags((!profile.flags.is_empty()).then(|| profile.flags.clone()));
    Ok(filter)
}

/// With none, a filter is for the machine's own.
fn architectures(profile: &Profile, machine: &Machine) -> Result<Option<Vec<Arch>>, PluginError> {
    let names: Vec<&String> = match (profile.architectures.as_slice(), profile.arch_map.as_slice()) {
        ([], map) => {
            let own = map.iter().find(|entry| entry.architecture == machine.filter_architecture);
            own.into_iter()
                .flat_map(|own| [&own.architecture].into_iter().chain(&own.sub_architectures))
                .collect()
        }
        (names, []) => names.iter().collect(),
        _ => return Err(invalid("architectures and archMap exclude each other")),
    };
    let known: Result<Vec<Arch>, _> = names.iter().map(|name| architecture(name)).collect();
    known.map(|known| (!known.is_empty()).then_some(known))
}

fn architecture(name: &str) -> Result<Arch, PluginError> {
    let name_in_json = serde_json::Value::from(name);
    serde_json::from_value(name_in_json).map_err(|_| invalid(format!("{name:?} is no architecture")))
}

/// `None` for a rule that names no call.
fn checked(index: usize, rule: &Rule) -> Result<Option<LinuxSyscall>, PluginError> {
    let place = format!("syscalls[{index}]");
    check_action(&place, rule.action, rule.errno_ret)?;
    let names = match (&rule.name, rule.names.as_slice()) {
        (Some(name), []) if !name.is_empty() => vec![name.clone()],
        (None, names) => names.to_vec(),
        (Some(name), names) if name.is_empty() => names.to_vec(),
        _ => return Err(invalid(format!("{place}: name and names exclude each other"))),
    };
    if let Some(bad) = names.iter().find(|name| name.is_empty() || name.contains('\0')) {
        return Err(invalid(format!("{place}: {bad:?} is no system call")));
    }
    let args: Result<Vec<_>, _> = rule.args.iter().map(|argument| self::argument(&place, argument)).collect();
    let args = args?;
    if names.is_empty() {
        return Ok(None);
    }
    let mut syscall =
        LinuxSyscallBuilder::default().names(names).action(rule.action).build().map_err(incomplete)?;
    syscall.set_errno_ret(rule.errno_ret).set_args((!args.is_empty()).then_some(args));
    Ok(Some(syscall))
}

fn argument(place: &str, argument: &Argument) -> Result<LinuxSeccompArg, PluginError> {
    if argument.index >= ARGUMENTS {
        return Err(invalid(format!("{place}: there is no argument {}", argument.index)));
    }
    let built = LinuxSeccompArgBuilder::default().index(argument.index).value(argument.value).op(argument.op);
    // Other comparisons ignore the second value, and some runtimes complain about it.
    let built = match argument.op {
        LinuxSeccompOperator::ScmpCmpMaskedEq => built.value_two(argument.value_two),
        _ => built,
    };
    built.build().map_err(incomplete)
}

fn check_action(place: &str, action: LinuxSeccompAction, errno: Option<u32>) -> Result<(), PluginError> {
    if action == LinuxSeccompAction::ScmpActNotify {
        let text =
            format!("{place}: SCMP_ACT_NOTIFY needs an agent to ask, which this runtime does not have");
        return Err(PluginError::new(ErrorKind::Unsupported, text));
    }
    match errno {
        Some(errno) if errno > LARGEST_ERRNO => Err(invalid(format!("{place}: {errno} is no errno"))),
        _ => Ok(()),
    }
}

/// As Docker decides: all capabilities that are included, none that is excluded.
fn applies(rule: &Rule, capabilities: &BTreeSet<Capability>, machine: &Machine) -> bool {
    let Rule { includes, excludes, .. } = rule;
    let has = |name: &String| {
        let name = name.strip_prefix("CAP_").unwrap_or(name);
        capabilities.iter().any(|capability| capability.as_str() == name)
    };
    let is_ours = |condition: &Condition| condition.arches.contains(&machine.architecture);
    let is_old = |condition: &Condition| condition.min_kernel.is_some_and(|least| machine.kernel < least);
    let is_new = |condition: &Condition| condition.min_kernel.is_some_and(|least| machine.kernel >= least);
    let included = includes.caps.iter().all(has)
        && (includes.arches.is_empty() || is_ours(includes))
        && !is_old(includes);
    let excluded = excludes.caps.iter().any(has) || is_ours(excludes) || is_new(excludes);
    included && !excluded
}

fn incomplete(error: oci_spec::OciSpecError) -> PluginError {
    PluginError::new(ErrorKind::Internal, "the system call filter cannot be built").with_source(error)
}
