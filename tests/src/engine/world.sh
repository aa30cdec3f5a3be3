#!/usr/bin/env bash
# The first process of an engine's own namespaces: world.sh DIRECTORY [DOCKERD_ARG…]
#
# Hides every place outside DIRECTORY that dockerd and containerd write to, starts dockerd, and obeys the lines that
# arrive in the `control` pipe: start, stop, kill, freeze, thaw. `handled` counts the lines it is done with.
set -euo pipefail

directory=$1
shift
disk=$directory/disk
dockerd=

# Makes a directory look as before while writes to it go nowhere.
make_ephemeral() {
    if [[ -d $1 ]]; then
        mkdir -p "$disk/hidden$1/upper" "$disk/hidden$1/work"
        mount -n -t overlay -o "lowerdir=$1,upperdir=$disk/hidden$1/upper,workdir=$disk/hidden$1/work" overlay "$1"
    fi
}

# An empty /run, but for /run/udev, which mandelboxes are given.
empty_run() {
    mkdir "$disk/udev"
    if [[ -d /run/udev ]]; then mount -n --rbind /run/udev "$disk/udev"; fi
    mount -n -t tmpfs -o mode=755 run /run
    mkdir /run/udev
    mount -n --rbind "$disk/udev" /run/udev
}

start() {
    dockerd --config-file "$disk/daemon.json" --data-root "$disk/data" --exec-root "$disk/exec" \
        --pidfile "$disk/dockerd.pid" --host "unix://$directory/docker.sock" \
        --exec-opt native.cgroupdriver=cgroupfs --cgroup-parent "/${directory##*/}" \
        "$@" </dev/null >>"$directory/dockerd.log" 2>&1 3<&- &
    dockerd=$!
}

finish() {
    if kill -s "$1" "$dockerd"; then wait "$dockerd" || true; fi
}

# The first process of a PID namespace sees its own number outside only through the old /proc.
read -r own_pid _ </proc/self/stat
echo "$own_pid" >"$directory/world"

mount -n -t proc proc /proc
mkdir "$disk"
mount -n -t tmpfs -o mode=711 engine "$disk"
make_ephemeral /etc
make_ephemeral /opt
empty_run
ip link set lo up
echo '{}' >"$disk/daemon.json"
export XTABLES_LOCKFILE=$disk/xtables.lock TMPDIR=$disk

mkfifo "$directory/control"
exec 3<>"$directory/control"
start "$@"
handled=0
while read -r order <&3; do
    case $order in
        start) start "$@" ;;
        stop) finish TERM ;;
        kill) finish KILL ;;
        freeze) kill -STOP "$dockerd" ;;
        thaw) kill -CONT "$dockerd" ;;
    esac
    handled=$((handled + 1))
    echo "$handled" >"$directory/handled.new"
    mv "$directory/handled.new" "$directory/handled"
done
