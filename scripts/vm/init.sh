#!/bin/busybox sh
# shellcheck shell=dash
# The first program on the machine that vm.sh starts: reaches the other machine's files and goes on with /command there.
set -eu

mounted() {
    mkdir -p "$3"
    mount -t "$1" -o "$4" "$2" "$3"
}

/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
for module in virtio_pci 9pnet_virtio 9p overlay; do
    modprobe "$module"
done
# The other machine's files do not change while this one looks, so that what was read once need not be read again.
mounted 9p files /files ro,trans=virtio,version=9p2000.L,cache=loose,msize=512000
mounted tmpfs memory /memory mode=755
mkdir /memory/upper /memory/work
mounted overlay root /root lowerdir=/files,upperdir=/memory/upper,workdir=/memory/work
umount /proc
eval "set -- $(cat /command)"
exec switch_root /root /bin/bash "$@"
