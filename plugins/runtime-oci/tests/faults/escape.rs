//! What a container must not reach, tried from inside of one with nothing special.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::Command,
};

use host_core::runtime::{ContainerSpec, Network, Runtime};
use runtime_oci::{OciRuntime, Program};
use serde_json::json;

use crate::{
    image::Image,
    told::{follow, log, until},
    world::{
        World, elsewhere, entries, eventually, exit, host_programs, named, seen, spec, start, tools_layer,
    },
};

/// What the shell of a default container says to this.
async fn said(world: &World, words: &str) -> String {
    let runtime = world.with_images().await;
    let said = said_by(&runtime, &world.shell("intruder", words)).await;
    runtime.close().await.unwrap();
    said
}

async fn said_by(runtime: &OciRuntime, spec: &ContainerSpec) -> String {
    start(runtime, spec).await;
    exit(runtime, spec.name.as_str()).await;
    let said = log(runtime, spec.name.as_str()).await;
    runtime.remove(&spec.name.clone().into()).await.unwrap();
    said
}

/// Where the standard streams of a process that has become `sleep` lead, if it has nothing else.
fn descriptors(process: &Path) -> Result<Vec<String>, String> {
    let mut open = entries(&process.join("fd"));
    open.sort();
    let numbers: Vec<_> = open.iter().filter_map(|path| path.file_name()?.to_str()).collect();
    let name = fs::read_to_string(process.join("comm")).unwrap();
    if numbers != ["0", "1", "2"] || name != "sleep\n" {
        return Err(format!("{name:?} has {numbers:?}"));
    }
    Ok(open.iter().map(|path| fs::read_link(path).unwrap().display().to_string()).collect())
}

#[test]
fn no_descriptor_of_the_host_is_inherited() {
    for binary in [None, Some("crun")] {
        for terminal in [false, true] {
            elsewhere(async || {
                let mut world = World::new();
                world.config.binary = binary.map(Into::into);
                let runtime = world.with_images().await;
                let mut spec = world.shell("bare", "exec sleep 1000");
                spec.terminal = terminal;
                spec.network = Network::Bridge;
                start(&runtime, &spec).await;
                let process = PathBuf::from(format!("/proc/{}", seen(&runtime, "bare").await.pid.unwrap()));
                // Its loader opens libraries for a moment; what is inherited stays.
                let open = eventually("it has no other descriptors", || descriptors(&process)).await;
                let harmless = |to: &String| {
                    to.starts_with("pipe:[") || to == "/dev/null" || to.starts_with("/dev/pts/")
                };
                assert!(open.iter().all(harmless), "{binary:?} {terminal}: {open:?}");
                runtime.remove(&named("bare")).await.unwrap();
                runtime.close().await.unwrap();
            });
        }
    }
}

#[tokio::test]
async fn it_has_the_usual_devices_and_can_make_no_others() {
    let world = World::new();
    let words = "ls /dev; find /dev -type b; mknod /tmp/disk b 254 0 && echo made a disk; \
                 mknod /dev/memory c 1 1 && echo made memory; for device in mem kmsg port vda sda fuse; do [ -e /dev/$device ] && echo has $device; done";
    let said = said(&world, words).await;
    let (known, rest): (Vec<_>, Vec<_>) = said.lines().partition(|line| {
        [
            // The first two are links to what is masked.
            "core", "kcore", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr",
            "stdin", "stdout", "tty", "urandom", "zero",
        ]
        .contains(line)
    });
    assert!(known.contains(&"null") && known.contains(&"urandom"), "{said}");
    let denied = |line: &&str| line.starts_with("mknod: ") && line.contains("not permitted");
    assert_eq!(rest.iter().filter(|line| denied(line)).count(), 2, "{said}");
    assert!(rest.iter().all(denied), "{rest:?}");
}

#[tokio::test]
async fn its_control_groups_are_not_its_own_to_change() {
    let world = World::new();
    let words = "find /sys/fs/cgroup -type f | while read file; do (: >>$file) 2>/dev/null && echo opened $file; done; \
                 find /sys/fs/cgroup -type d | while read at; do mkdir $at/inner 2>/dev/null && echo made $at/inner; done; \
                 mount -o remount,rw /sys/fs/cgroup 2>/dev/null && echo remounted; find /sys/fs/cgroup | wc -l";
    let said = said(&world, words).await;
    let count: u32 = said.trim().parse().unwrap_or_else(|_| panic!("{said}"));
    assert!(count > 5, "it sees no control groups: {said}");
}

#[tokio::test]
async fn the_kernels_own_files_cannot_be_written() {
    let world = World::new();
    // Opened for appending, and nothing is appended: a success does no harm.
    let words = "for file in /proc/sysrq-trigger /proc/sys/kernel/core_pattern /proc/sys/kernel/modprobe /proc/sys/vm/drop_caches \
                 /proc/irq/default_smp_affinity /sys/kernel/uevent_helper /sys/power/state /sys/kernel/mm/transparent_hugepage/enabled; do \
                 (: >>$file) 2>/dev/null && echo opened $file; done; \
                 for file in /proc/kcore /proc/keys /proc/timer_list /proc/latency_stats; do [ -s $file ] && head -c 1 $file | wc -c | grep -q 1 && echo read $file; done; \
                 ls /sys/firmware /proc/acpi /proc/scsi 2>/dev/null | grep -v :; echo tried";
    let said = said(&world, words).await;
    let said: Vec<_> = said.lines().filter(|line| !line.is_empty()).collect();
    assert_eq!(said, ["tried"]);
}

/// Numbers differ between architectures.
#[cfg(target_arch = "x86_64")]
#[tokio::test]
async fn system_calls_that_open_the_host_are_denied() {
    let world = World::new();
    let calls = [
        ("mount", "165, \"none\", \"/tmp\", \"tmpfs\", 0, 0"),
        ("pivot_root", "155, \"/tmp\", \"/tmp\""),
        ("unshare a user namespace", "272, 0x10000000"),
        ("unshare a mount namespace", "272, 0x20000"),
        ("setns", "308, 0, 0"),
        ("keyctl", "250, 0, -3, 0"),
        ("add_key", "248, \"user\", \"name\", \"x\", 1, -3"),
        ("bpf", "321, 0, 0, 0"),
        ("perf_event_open", "298, 0, 0, -1, -1, 0"),
        ("userfaultfd", "323, 0"),
        ("open_by_handle_at", "304, -100, 0, 0"),
        ("init_module", "175, 0, 0, \"\""),
        ("kexec_load", "246, 0, 0, 0, 0"),
        ("reboot", "169, 0, 0, 0, 0"),
        ("swapoff", "168, \"/none\""),
        ("settimeofday", "164, 0, 0"),
        ("acct", "163, 0"),
        ("iopl", "172, 3"),
        ("io_uring_setup", "425, 1, 0"),
        ("move_mount", "429, -1, \"\", -1, \"\", 0"),
        ("fsopen", "430, \"tmpfs\", 0"),
        ("clone3", "435, 0, 0"),
    ];
    let tries = calls.map(|(name, arguments)| {
        let zero = "my @a = map { $_ eq '0' ? 0 : $_ }";
        format!("{{ {zero} ({arguments}); my $r = syscall(shift @a, @a); print \"{name}: \", ($r == -1 ? $!+0 : 'done'), \"\\n\"; }}")
    });
    let mut intruder = world.shell("intruder", "");
    intruder.command = vec!["/usr/bin/perl".to_owned(), "-e".to_owned(), tries.concat()];
    let runtime = world.with_images().await;
    let said = said_by(&runtime, &intruder).await;
    runtime.close().await.unwrap();
    assert_eq!(said.lines().count(), calls.len(), "{said}");
    // EPERM, or as if the kernel did not have it.
    let allowed: Vec<_> =
        said.lines().filter(|line| !line.ends_with(": 1") && !line.ends_with(": 38")).collect();
    assert!(allowed.is_empty(), "{allowed:?}");
}

#[tokio::test]
async fn it_sees_no_process_and_no_file_of_its_supervisor() {
    let world = World::new();
    let (root, state) = (world.config.root.clone(), world.state());
    let words = format!(
        "ls -d /proc/[0-9]* | wc -l; for at in {} {}; do [ -e $at ] && echo reaches $at; done; \
         find / -xdev \\( -name control.sock -o -name container.json -o -name supervisor.log \\) ; \
         cat /proc/1/cmdline | tr '\\0' ' '; kill -0 -1 2>/dev/null && echo signals others; cat /proc/net/unix | grep -v Num",
        root.display(),
        state.display()
    );
    let said = said(&world, &words).await;
    let mut lines = said.lines();
    let processes: u32 = lines.next().unwrap().trim().parse().unwrap();
    assert!(processes <= 4, "{said}");
    let rest: Vec<_> = lines.collect();
    assert!(rest.len() == 1 && rest[0].starts_with("/bin/sh -c "), "{rest:?}");
}

#[tokio::test]
async fn the_program_of_a_container_that_waits_cannot_be_written_to() {
    let world = World::new();
    let program = Path::new(env!("CARGO_BIN_EXE_oci-supervisor"));
    let before = fs::metadata(program).unwrap().modified().unwrap();
    let runtime = OciRuntime::open(world.config.clone(), Program::sealed(program).unwrap()).await.unwrap();
    world.load(&runtime, Image::new("test/tools:1", tools_layer())).await;
    runtime.create(&world.shell("waiting", "sleep 1000")).await.unwrap();
    // Worse than from inside: with all of root's rights, by the number that only the host knows.
    let waiting =
        world.processes().into_iter().filter_map(|process| process.split(':').next()?.parse::<u32>().ok());
    let mut tried = 0;
    for pid in waiting {
        let path = format!("/proc/{pid}/exe");
        let linked = fs::read_link(&path).unwrap();
        assert!(linked.to_str().unwrap().starts_with("/memfd:"), "{}", linked.display());
        tried += 1;
        for truncate in [false, true] {
            let opened = fs::OpenOptions::new().write(true).truncate(truncate).open(&path);
            let written = opened.and_then(|mut file| file.write_all(b"evil"));
            assert!(written.is_err(), "{path} was written to");
        }
    }
    assert_eq!(tried, 2, "the supervisor and the container");
    runtime.start(&named("waiting")).await.unwrap();
    runtime.remove(&named("waiting")).await.unwrap();
    assert_eq!(said_by(&runtime, &world.shell("next", "echo works")).await, "works\n");
    assert_eq!(fs::metadata(program).unwrap().modified().unwrap(), before);
    runtime.close().await.unwrap();
}

/// Loaded into the program before its first instruction: keeps the program open, and then is a shell.
const EVIL: &str = r#"
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>
__attribute__((constructor)) static void evil(void) {
    unsetenv("LD_PRELOAD");
    int program = open("/proc/self/exe", O_RDONLY);
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", program);
    execl("/bin/sh", "sh", "/evil.sh", path, (char *)0);
}
extern int unsetenv(const char *);
"#;
const EVIL_SHELL: &str = "ls -l $1; (echo evil >$1) && echo written; (echo evil >>$1) && echo appended; \
                          (: >$1) && echo truncated; head -c 4 $1 | tail -c 3; echo; exit 0\n";

#[tokio::test]
async fn an_image_that_runs_the_hosts_program_gets_a_sealed_copy() {
    let world = World::new();
    let (source, library) = (world.path("evil.c"), world.path("evil.so"));
    fs::write(&source, EVIL.replace("#include <unistd.h>", "#include <unistd.h>\n#include <stdlib.h>"))
        .unwrap();
    let compiled = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status();
    assert!(compiled.is_ok_and(|status| status.success()), "no C compiler");
    let program = Path::new(env!("CARGO_BIN_EXE_oci-supervisor"));
    let runtime = OciRuntime::open(world.config.clone(), Program::sealed(program).unwrap()).await.unwrap();
    let layer = tools_layer()
        .file("evil.so", 0o755, fs::read(&library).unwrap())
        .file("evil.sh", 0o755, EVIL_SHELL)
        .file("script", 0o755, "#!/proc/self/exe\n");
    let config = json!({ "Env": ["LD_PRELOAD=/evil.so"] });
    world.load(&runtime, Image::new("test/evil:1", layer).saying(config)).await;
    for entry in ["/proc/self/exe", "/script"] {
        let mut evil = spec("evil", "test/evil:1");
        evil.mounts = host_programs();
        evil.command = vec![entry.to_owned()];
        let said = said_by(&runtime, &evil).await;
        // The host's program, and nothing done to it.
        assert!(said.contains("memfd") && said.contains("ELF"), "{said}");
        for done in ["written", "appended", "truncated"] {
            assert!(!said.contains(done), "{said}");
        }
    }
    runtime.close().await.unwrap();
}

#[tokio::test]
async fn a_container_that_runs_as_a_supervisor_does_no_harm() {
    let world = World::new();
    let program = Path::new(env!("CARGO_BIN_EXE_oci-supervisor"));
    let runtime = OciRuntime::open(world.config.clone(), Program::sealed(program).unwrap()).await.unwrap();
    world.load(&runtime, Image::new("test/tools:1", tools_layer())).await;
    let mut double = world.shell("double", "");
    double.command = ["/proc/self/exe", "oci-supervisor", "/tmp"].map(str::to_owned).into();
    start(&runtime, &double).await;
    exit(&runtime, "double").await;
    runtime.remove(&named("double")).await.unwrap();
    world.is_clean().await;
    runtime.close().await.unwrap();
}

#[tokio::test]
async fn others_processes_are_out_of_reach_with_the_hosts_network_too() {
    let world = World::new();
    let runtime = world.with_images().await;
    let mut spec = world.shell("neighbour", "echo here; sleep 1000");
    spec.network = Network::Host;
    start(&runtime, &spec).await;
    until(&mut follow(&runtime, "neighbour").await, "here").await;
    let pid = seen(&runtime, "neighbour").await.pid.unwrap();
    let mut intruder = world.shell("intruder", &format!("[ -e /proc/{pid} ] && grep -q neighbour /proc/{pid}/environ && echo sees; ip link add evil type dummy 2>/dev/null && echo changes; echo tried"));
    intruder.network = Network::Host;
    assert_eq!(said_by(&runtime, &intruder).await, "tried\n");
    runtime.remove(&named("neighbour")).await.unwrap();
    runtime.close().await.unwrap();
}
