#!/usr/bin/env bash
# The first process of a world's own namespaces: world.sh DIRECTORY [DAEMON_COMMAND…]
#
# Hides every place outside DIRECTORY that engines write to, starts the daemon if there is one, and obeys the lines that
# arrive in the `control` pipe: start, stop, kill, freeze, thaw. `handled` counts the lines it is done with; it is there
# as soon as the world is made.
set -euo pipefail

directory=$1
shift
disk=$directory/disk
daemon=
handled=0

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
    "$@" </dev/null >>"$directory/log" 2>&1 3<&- &
    daemon=$!
}

finish() {
    if kill -s "$1" "$daemon"; then wait "$daemon" || true; fi
}

# Nobody finds the file half written.
tell_handled() {
    echo "$handled" >"$directory/handled.new"
    mv "$directory/handled.new" "$directory/handled"
}

# The first process of a PID namespace sees its own number outside only through the old /proc.
read -r own_pid _ </proc/self/stat
echo "$own_pid" >"$directory/world"

mount -n -t proc proc /proc
mkdir "$disk"
mount -n -t tmpfs -o mode=711 disk "$disk"
make_ephemeral /etc
make_ephemeral /opt
make_ephemeral /var/lib
empty_run
ip link set lo up
# As on a host that is no router, whatever this one is.
echo 0 >/proc/sys/net/ipv4/ip_forward
export XTABLES_LOCKFILE=$disk/xtables.lock TMPDIR=$disk

mkfifo "$directory/control"
exec 3<>"$directory/control"
if [[ $# -gt 0 ]]; then start "$@"; fi
tell_handled
while read -r order <&3; do
    case $order in
        start) start "$@" ;;
        stop) finish TERM ;;
        kill) finish KILL ;;
        freeze) kill -STOP "$daemon" ;;
        thaw) kill -CONT "$daemon" ;;
    esac
    handled=$((handled + 1))
    tell_handled
done
