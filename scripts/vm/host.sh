#!/usr/bin/env bash
# The first process on the machine that vm.sh starts, with all files in place: host.sh MODULES LAYOUT DIRECTORY PATH COMMAND…
#
# Makes of it what an init system makes, as far as containers need it, runs the command, and ends the machine.
set -euo pipefail

modules=$1
layout=$2
directory=$3
export PATH=$4 HOME=/root TERM=dumb
shift 4

# Ends the machine with that value; vm.sh knows what it means.
end() {
    echo -en "\\x$1" | dd of=/dev/port bs=1 seek=$((0xf4)) status=none
}

# mounted TYPE DIRECTORY [OPTIONS]
mounted() {
    mkdir -p "$2"
    mount -n -t "$1" -o "${3:-rw}" "$1" "$2"
}

control_groups_v2() {
    mounted cgroup2 "$1" nosuid,nodev,noexec
}

# As systemd mounts them.
control_groups_v1() {
    local at=/sys/fs/cgroup set name
    mounted tmpfs $at mode=755
    for set in cpu,cpuacct cpuset memory devices freezer blkio pids net_cls,net_prio perf_event hugetlb; do
        mounted cgroup $at/$set "nosuid,nodev,noexec,$set"
        for name in ${set//,/ }; do
            [[ -e $at/$name ]] || ln -s "$set" "$at/$name"
        done
    done
    mounted cgroup $at/systemd nosuid,nodev,noexec,none,name=systemd
}

mounted proc /proc
mounted sysfs /sys
mounted devtmpfs /dev
trap 'sleep 1; end 2' EXIT
exec </dev/null
mounted devpts /dev/pts gid=5,mode=620,ptmxmode=666
mounted tmpfs /dev/shm mode=1777
mounted mqueue /dev/mqueue
mounted tmpfs /run mode=755
mounted tmpfs /tmp mode=1777
ln -sf /proc/self/fd /dev/fd
mkdir -p /lib/modules
mount -n --bind "$modules" "/lib/modules/$(uname -r)" 2>/dev/null ||
    ln -s "$modules" "/lib/modules/$(uname -r)"
command -v modprobe >/dev/null || ln -s "$(command -v busybox)" /sbin/modprobe
command -v modprobe >/proc/sys/kernel/modprobe
# The kernel would load them when they are first needed, but that takes longer than anybody waits for it.
modprobe -a veth nf_tables nft_chain_nat nft_nat nft_masq nft_redir nft_ct nft_fib_inet nft_reject_inet nft_numgen nft_hash
ip link set lo up

case $layout in
    v1) control_groups_v1 ;;
    v2)
        control_groups_v2 /sys/fs/cgroup
        # As systemd leaves them: whoever limits anything else has to enable it.
        echo '+memory +pids' >/sys/fs/cgroup/cgroup.subtree_control
        ;;
    hybrid)
        control_groups_v1
        control_groups_v2 /sys/fs/cgroup/unified
        ;;
esac

cd "$directory"
# The console is no terminal that anybody looks at.
"$@" 2>&1 | cat
# The machine stops at once, and what the console has yet to send with it.
sleep 1
end 1
