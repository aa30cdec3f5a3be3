#!/usr/bin/env bash
# Runs a command on an emulated machine with other control groups than this one: vm.sh v1|v2|hybrid COMMAND…
#
# That machine has Debian's kernel, and this one's files as they are: what it writes is in its memory and gone with it.
# So the command is whatever runs here, at the same paths. Its output is this script's, and so is its success.
#
# It emulates the processor too, because a machine that is itself virtual often has nothing better; VM_ACCEL=kvm is for
# those that have. Needs root, for all files to be readable, Debian on x86-64, and `setup.sh vm`.
set -euo pipefail

# Of processors and memory.
cpus=2
memory=3G
# A command that has not ended by then has failed.
patience=${VM_PATIENCE:-30m}

if [[ $# -lt 2 || ! $1 =~ ^(v1|v2|hybrid)$ ]]; then
    echo "usage: vm.sh v1|v2|hybrid COMMAND…" >&2
    exit 64
fi
own=$(cd "$(dirname "$0")" && pwd)/vm
cache=${XDG_CACHE_HOME:-$HOME/.cache}/host-service/kernels
work=$(mktemp -d)
new=
trap 'rm -rf "$work" "$new"' EXIT

# What of the kernel's package is of use without hardware.
parts=(./boot/vmlinuz-\* ./lib/modules/\*/modules.\*)
for part in arch crypto fs lib net drivers/block drivers/net drivers/virtio; do
    parts+=("./lib/modules/*/kernel/$part")
done

# Unpacks the package $1 at $2, whole or not at all.
fetch() {
    echo "vm: fetching $1" >&2
    mkdir -p "$cache"
    # Renamed at the end, for which it has to be on the same file system.
    new=$(mktemp -d "$cache/.new.XXXXXX")
    (cd "$new" && apt-get download --quiet=2 -o APT::Sandbox::User=root "$1")
    dpkg-deb --fsys-tarfile "$new"/*.deb | tar --extract --directory "$new" --wildcards "${parts[@]}"
    rm "$new"/*.deb
    busybox depmod -b "$new" "${1#linux-image-}"
    # Another run may have been faster, and others' kernels are not for this one to remove.
    mv --no-target-directory "$new" "$2" || [[ -d $2 ]]
}

package=$(apt-cache depends --important linux-image-amd64 | sed -n 's/^ *Depends: \(linux-image-.*\)/\1/p' | head -n 1) || true
if [[ -z $package ]]; then
    echo "vm: apt knows no linux-image-amd64: this is not Debian, or apt-get update was never run" >&2
    exit 1
fi
kernel=$cache/$package
[[ -d $kernel ]] || fetch "$package" "$kernel"

# The first files: a shell, what it takes to reach all others, and what to do then.
modules=$kernel/lib/modules/${package#linux-image-}
first=$work/first
mkdir -p "$first"/{bin,dev,lib/modules,proc}
cp "$(command -v busybox)" "$first/bin/busybox"
# Debian has one without libraries and one with.
ldd "$first/bin/busybox" 2>/dev/null | grep --only-matching '/[^ ]*' | xargs --no-run-if-empty cp --parents -Lt "$first" || true
cp "$own/init.sh" "$first/init"
printf '%q ' "$own/host.sh" "$modules" "$1" "$PWD" "$PATH" "${@:2}" >"$first/command"
for name in fs/{9p/9p,fscache/fscache,netfs/netfs,overlayfs/overlay} net/9p/{9pnet,9pnet_virtio} \
    drivers/virtio/{virtio,virtio_ring,virtio_pci,virtio_pci_modern_dev,virtio_pci_legacy_dev}; do
    install -D "$modules/kernel/$name.ko" "$first/lib/modules/${package#linux-image-}/kernel/$name.ko"
done
busybox depmod -b "$first" "${package#linux-image-}"
(cd "$first" && find . | busybox cpio -o -H newc 2>/dev/null) >"$work/initramfs"

# shellcheck disable=SC2054 # The commas are qemu's.
machine=(
    -accel "${VM_ACCEL:-tcg,thread=multi}" -cpu max -machine q35 -smp "$cpus" -m "$memory"
    -nodefaults -no-user-config -display none -serial stdio -no-reboot
    -kernel "$kernel"/boot/vmlinuz-* -initrd "$work/initramfs"
    -append 'console=ttyS0 panic=-1 quiet loglevel=4'
    -virtfs local,path=/,mount_tag=files,security_model=none,readonly=on,multidevs=remap
    # Whoever writes N there ends it with the status 2N+1; host.sh writes 1 for success and 2 for failure.
    -device isa-debug-exit,iobase=0xf4,iosize=1
)
status=0
# It ends with this script, and timeout takes the machine along.
nice setpriv --pdeathsig TERM timeout --kill-after 5 "$patience" qemu-system-x86_64 "${machine[@]}" </dev/null || status=$?
case $status in
    3) ;;
    5) echo "vm: the command failed" >&2 && exit 1 ;;
    124 | 137) echo "vm: not done after $patience" >&2 && exit 1 ;;
    *) echo "vm: the machine broke down; status $status" >&2 && exit 1 ;;
esac
