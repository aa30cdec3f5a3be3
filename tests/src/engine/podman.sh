#!/usr/bin/env bash
# Becomes a Podman service in a world: podman.sh DIRECTORY GROUP
#
# Podman has no option for where its control groups are. So it gets a control group namespace whose root is the world's
# group, and what it makes goes with the world. Its locks are in /dev/shm, which it would share with the host's Podman.
set -euo pipefail

directory=$1
group=$2
disk=$directory/disk

if [[ ${3:-} != inside ]]; then
    for root in /sys/fs/cgroup /sys/fs/cgroup/*; do
        if [[ -f $root/cgroup.procs && ! -L $root ]]; then
            mkdir -p "$root/$group/service"
            if [[ -f $root/cpuset.cpus ]]; then
                for part in "$root/$group" "$root/$group/service"; do
                    for what in cpus mems; do cat "$root/cpuset.$what" >"$part/cpuset.$what"; done
                done
            fi
            echo $$ >"$root/$group/cgroup.procs"
        fi
    done
    exec unshare --cgroup --mount bash "$0" "$directory" "$group" inside
fi

for root in /sys/fs/cgroup /sys/fs/cgroup/*; do
    if [[ -d $root/$group && ! -L $root ]]; then
        # The namespace's root must hold no process itself where groups below it have limits.
        echo $$ >"$root/$group/service/cgroup.procs"
        mount -n --bind "$root/$group" "$root"
    fi
done
mount -n -t tmpfs shm /dev/shm
rm -f "$directory/podman.sock"
export CONTAINERS_CONF=$directory/containers.conf
exec podman --root "$disk/root" --runroot "$disk/runroot" --tmpdir "$disk/libpod" \
    system service --time=0 "unix://$directory/podman.sock"
