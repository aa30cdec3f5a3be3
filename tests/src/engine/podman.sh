#!/usr/bin/env bash
# Becomes a Podman service in a world: podman.sh DIRECTORY GROUP [rootless USER]
#
# Podman has no option for where its control groups are. So it gets a control group namespace whose root is the world's
# group, and what it makes goes with the world. Its locks are in /dev/shm, which it would share with the host's Podman.
set -euo pipefail

directory=$1
group=$2
disk=$directory/disk

# A user's has no control groups, and all that is his in /run, because he cannot come to DIRECTORY.
become_rootless() {
    local user=$1 home=/run/user/$1
    echo "podman-user:x:$user:$user::$home:/bin/sh" >>/etc/passwd
    echo "podman-user:x:$user:" >>/etc/group
    echo "podman-user:1000000:65536" | tee /etc/subuid >/etc/subgid
    install -d -o "$user" -g "$user" "$home"
    # The host's may be root's alone.
    mknod --mode=666 "$disk/tun" c 10 200
    mount -n --bind "$disk/tun" /dev/net/tun
    grep -v nproc "$directory/containers.conf" >"$home/containers.conf"
    export CONTAINERS_CONF=$home/containers.conf HOME=$home XDG_RUNTIME_DIR=$home TMPDIR=$home
    cd /
    exec setpriv --reuid "$user" --regid "$user" --clear-groups --inh-caps=-all \
        podman system service --time=0 "unix://$home/podman.sock"
}

if [[ ${3:-} == rootless ]]; then
    mount -n -t tmpfs -o mode=1777 shm /dev/shm
    become_rootless "$4"
fi

# Where control groups are mounted: one hierarchy of version 2, or several.
roots=(/sys/fs/cgroup)
if [[ $(stat --file-system --format %T /sys/fs/cgroup) != cgroup2fs ]]; then roots=(/sys/fs/cgroup/*); fi

# For the first service in the world, and for all after it: they find each other's mounts.
prepare() {
    local root part what
    for root in "${roots[@]}"; do
        if [[ ! -f $root/cgroup.procs || -L $root ]]; then continue; fi
        mkdir -p "$root/$group/service"
        if [[ -f $root/cpuset.cpus ]]; then
            for part in "$root/$group" "$root/$group/service"; do
                for what in cpus mems; do cat "$root/cpuset.$what" >"$part/cpuset.$what"; done
            done
        fi
        mount -n --bind "$root/$group" "$root"
    done
    mount -n -t tmpfs shm /dev/shm
    touch "$disk/prepared"
}

# enter GROUP: in every hierarchy.
enter() {
    local root
    for root in "${roots[@]}"; do
        if [[ -f $root/service/cgroup.procs && ! -L $root ]]; then echo $$ >"$root/$1/cgroup.procs"; fi
    done
}

if [[ ${3:-} != inside ]]; then
    if [[ ! -e $disk/prepared ]]; then prepare; fi
    enter .
    exec unshare --cgroup bash "$0" "$directory" "$group" inside
fi
# The namespace's root must hold no process itself where groups below it have limits.
enter service
rm -f "$directory/podman.sock"
export CONTAINERS_CONF=$directory/containers.conf
# Debian's conmon marks a container out of memory where the service happens to be.
cd "$disk"
exec podman --root "$disk/root" --runroot "$disk/runroot" --tmpdir "$disk/libpod" \
    system service --time=0 "unix://$directory/podman.sock"
