#!/usr/bin/env bash
# Keeps one world while anybody holds its lease, then leaves nothing of it: guard.sh DIRECTORY [DAEMON_COMMAND…]
#
# The world's processes live in namespaces that end with their first process, world.sh, and so do its mounts,
# interfaces and packet filter rules. What remains for this script to remove are control groups and the directory.
# Should this script be killed, the kernel kills world.sh, and the next guard removes the rest.
#
# Two locks tell the state of a directory: users share `lease`, the guard holds `guard`.
set -euo pipefail

directory=$1
shift

# Removes a control group and all inside it. Processes that were killed just now may still be in there.
remove_group() {
    local deadline=$((SECONDS + 10))
    until find "$1" -depth -type d -delete 2>/dev/null || [[ ! -d $1 || $SECONDS -ge $deadline ]]; do
        sleep 0.05
    done
}

# Removes the control groups and the directory of a world that has ended.
bury() {
    local directory=$1 group
    for group in /sys/fs/cgroup/"${directory##*/}" /sys/fs/cgroup/*/"${directory##*/}"; do
        if [[ -d $group ]]; then remove_group "$group"; fi
    done
    # Nobody may find the directory half gone and take it for a new one.
    mv "$directory" "$directory.gone"
    rm -rf "$directory.gone"
}

# Removes what killed guards have left: directories whose two locks are both free.
bury_abandoned() {
    local other
    for other in "${directory%/*}"/host-tests-*; do
        if [[ $other == *.gone ]]; then
            rm -rf "$other"
        elif [[ $other != "$directory" && -f $other/guard ]]; then
            (flock --nonblock 7 && flock --nonblock 8 && bury "$other") 7>>"$other/lease" 8>>"$other/guard" || true
        fi
    done
}

# Kills world.sh, and with it every process of its namespace. It is no child of this script, so its number could long
# be another process's, but not while unshare waits for it.
kill_world() {
    local process parent
    process=$(<"$directory/world") && read -r _ _ _ parent _ <"/proc/$process/stat" || return
    [[ $parent == "$unshare" ]] && kill -KILL "$process"
}

end() {
    trap - EXIT
    kill -KILL %flock || true
    kill_world || kill -KILL %setpriv || true
    # unshare ends after world.sh, which ends after every process of its namespace.
    wait "$unshare" || true
    bury "$directory"
}

exec 8>>"$directory/guard" 9>>"$directory/lease"
flock --nonblock 8
bury_abandoned

setpriv --pdeathsig KILL \
    unshare --mount --net --pid --fork --kill-child --propagation slave \
    bash "$directory/world.sh" "$directory" "$@" 8>&- 9>&- &
unshare=$!
# The lock belongs to the open file, which this script has open too: once taken, it keeps new users out to the end.
flock --exclusive 9 8>&- &
waiter=$!
trap end EXIT
trap exit TERM INT HUP
wait -n "$unshare" "$waiter" || true
